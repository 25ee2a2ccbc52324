"""export.json: what a folder of exported volumes holds."""

from typing import ClassVar

from pydantic import Field, model_validator

from storage.documents.document import Document, Part
from storage.documents.synthetic import Synthetic


class ExportedVolume(Part):
    """One exported volume.

    Attributes:
        volume_id: in its store.
        path: its file or folder, relative to the export.
        num_planes: slices; images of a DICOM series.
        digest: SHA-256 of its file, or of the hashes of its files by name.
        synthetic: whether no person was scanned.
        seed: that a generated volume was drawn from; None for a scan.
    """

    volume_id: str
    path: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$")
    num_planes: int = Field(ge=1)
    digest: str
    synthetic: bool
    seed: int | None = None


class Export(Document):
    """The volumes of an exported folder; it is written last.

    Attributes:
        format: row of `storage.exports.formats.EXPORTS`.
        level: of the pyramid; of an OME-Zarr copy 0, which has all.
        prdit: version that wrote it.
        snapshot: digest of the list that scans were chosen from; "" for generated volumes.
        generated: what generated the volumes; None for scans.
        volumes: in order.
    """

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "export.json"
    WHAT: ClassVar[str] = "list of exported volumes"
    REMEDY: ClassVar[str] = "Export the volumes again (`prdit export`)."

    format: str
    level: int = Field(ge=0)
    prdit: str
    snapshot: str
    generated: Synthetic | None
    volumes: tuple[ExportedVolume, ...]

    @model_validator(mode="after")
    def _has_volumes_once(self) -> "Export":
        if not self.volumes:
            raise ValueError("it lists no volume")
        if len({volume.path for volume in self.volumes}) != len(self.volumes):
            raise ValueError("two volumes have one path")
        return self
