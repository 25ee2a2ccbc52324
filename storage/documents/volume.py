"""`commits/<volume_id>.json` of a volume store: a volume exists once this is written. And the store's grid."""

from typing import Any, ClassVar

from pydantic import Field, model_validator

from storage.documents.document import Document, Part
from storage.errors import VersionError
from storage.geometry import Float3, Int3


class Grid(Part):
    """The one grid of a store.

    Attributes:
        spacing_mm: voxel distance of level 0 on every axis.
        num_levels: pyramid levels of each volume (level k has blocks of 2**k voxels).
        interpolation: how scans were resampled to the grid ("none" for volumes generated on it).
    """

    spacing_mm: float = Field(gt=0)
    num_levels: int = Field(ge=1, le=6)
    interpolation: str


class StoreRoot(Document, Grid):
    """The attribute `prdit` in `zarr.json` of a store."""

    FORMAT: ClassVar[int] = 2
    WHAT: ClassVar[str] = "volume store's root"
    REMEDY: ClassVar[str] = "`prdit ingest SOURCE --store STORE --repair` writes it again."

    orientation: str = "LPS"
    unit: str = "HU"

    @property
    def grid(self) -> Grid:
        """The grid alone."""
        return Grid(spacing_mm=self.spacing_mm, num_levels=self.num_levels, interpolation=self.interpolation)

    @classmethod
    def upgraded(cls, values: dict[str, Any], version: int, where: str) -> dict[str, Any]:
        """Stores of format 1, of before the first release, are not read."""
        if version < cls.FORMAT:
            raise VersionError(
                f"{where} has format_version {version}; this prdit reads {cls.FORMAT}. Ingest the scans into a new store."
            )
        return super().upgraded(values, version, where)


class StoredArray(Part):
    """One level as it was committed: its shape (z, y, x) and the SHA-256 of its values as little-endian int16."""

    shape: Int3
    sha256: str


class StoredFile(Part):
    """One file as it was committed."""

    size: int
    sha256: str


class ScanFacts(Part):
    """What ingest records of the scan that a volume was made from.

    Attributes:
        scan: SeriesInstanceUID, or another id of the scan; with the part's name where the scan has several volumes.
        num_parts: volumes of the scan.
        format: it was read from.
        files_digest: hash of the hashes of its files.
        recipe: version of the arithmetic from source to stored HU.
        pixels: hash of its HU with ascending axes (`storage.sources.source.oriented_digest`), equal for copies of one scan.
        num_slices: of the scan.
        num_duplicates: files left out because they repeat another file.
        spacing_mm: voxel distances (x, y, z) of the scan.
        tilt_deg: angle between slice step and slice normal.
        cut: share of body and of lung outside the default view.
        completeness: "complete" where a count of the slices was known and met, else "unknown".
        notes: what was assumed or replaced when the scan was read.
    """

    scan: str
    num_parts: int = 1
    format: str = "dicom"
    files_digest: str
    recipe: int
    num_slices: int
    num_duplicates: int = 0
    spacing_mm: Float3
    tilt_deg: float = 0.0
    cut: dict[str, float] = Field(default_factory=dict)
    completeness: str = "unknown"
    notes: tuple[str, ...] = ()
    pixels: str = ""


class VolumeRecord(Document):
    """One committed volume.

    Attributes:
        volume_id: its id.
        folder: name of its folder below `volumes/`: the id and a hash of the files.
        shape: of level 0 (z, y, x).
        spacing_mm, origin_mm: of level 0 (x, y, z), LPS.
        arrays: the levels.
        files: every file of its folder, by relative path.
        attributes: allow-listed facts of the scan (docs/data-model.md), or of how a volume was generated.
        scan: what it was made from; None for a generated volume.
    """

    FORMAT: ClassVar[int] = 2
    WHAT: ClassVar[str] = "commit record of a volume"
    REMEDY: ClassVar[str] = (
        "`prdit ingest SOURCE --store STORE --repair` writes it again where SOURCE still has the scan."
    )

    volume_id: str
    folder: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    shape: Int3
    spacing_mm: Float3
    origin_mm: Float3
    arrays: dict[str, StoredArray]
    files: dict[str, StoredFile]
    attributes: dict[str, Any]
    scan: ScanFacts | None = None

    @model_validator(mode="after")
    def _complete(self) -> "VolumeRecord":
        names = [str(level) for level in range(len(self.arrays))]
        if not names or sorted(self.arrays) != sorted(names):
            raise ValueError(f"arrays are {sorted(self.arrays)}; expected 0, 1, … without a gap")
        if missing := [f"{name}/zarr.json" for name in names if f"{name}/zarr.json" not in self.files]:
            raise ValueError(f"files lacks {', '.join(missing)}")
        if outside := [name for name in self.files if name.startswith("/") or ".." in name.split("/")]:
            raise ValueError(f"files names {outside[0]!r}, which is outside the volume's folder")
        return self

    def level_files(self, level: int) -> dict[str, StoredFile]:
        """The files of one level, by path relative to the level's folder."""
        prefix = f"{level}/"
        return {name.removeprefix(prefix): file for name, file in self.files.items() if name.startswith(prefix)}
