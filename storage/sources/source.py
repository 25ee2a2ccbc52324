"""What every source format gives: the facts of one file's header, and one scan as HU with geometry.

This module knows no format. A format is a module beside it that defines a `Format`, and one row of
`storage.sources.formats.FORMATS`.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray

from storage.errors import UnusableSeriesError
from storage.geometry import AIR_HU, Float3
from storage.privacy import with_placeholder, without_quotes
from storage.verdicts import sentence

FARTHEST_MM = 1e6  # of a position: beyond it there is no room, and a float32 cannot tell voxels apart


@dataclass(frozen=True)
class FileFacts:
    """What the header of one file says.

    Attributes:
        format: name of the format that recognised it; "" where none did.
        scan: id of the scan it belongs to (a DICOM series' UID, say); "" where it belongs to none.
        reason: why it cannot be part of a volume, from `storage.verdicts.REASONS`; "" where it can.
        detail: for the reason's sentence; never a patient's data.
        patient_id: "" when absent; in memory only, never written.
        study: what its examination has in common, a DICOM study's UID, say; "" when absent.
        issuer: who gave the patient's id, "" when absent; in memory only, never written.
    """

    format: str = ""
    scan: str = ""
    reason: str = ""
    detail: str = ""
    patient_id: str = ""
    study: str = ""
    issuer: str = ""


@dataclass(frozen=True)
class Limits:
    """What counts as a volume; the same fields of `tasks.ingest.config.IngestConfig` describe them to users.

    Attributes:
        min_slices: a scan with fewer is too short.
        min_length_mm: least extent along the patient's head-foot axis.
        min_width_mm: least extent along both other axes.
        max_slice_mm: largest slice distance.
        max_jitter: how far slices may lie from even positions, as a share of the slice distance.
        max_hu: values above are no HU: fill where they are a region, an error where they are the scan.
        excluded_body_parts: BodyPartExamined that are skipped, in capitals.
        nan: what voxels that are no finite number become: "refuse" the scan, or take them as "air".
        synthetic: whether scans whose files say that no person was scanned are taken: "refuse" or "accept".
    """

    min_slices: int = 2
    min_length_mm: float = 0.0
    min_width_mm: float = 0.0
    max_slice_mm: float = 10.0
    max_jitter: float = 0.1
    max_hu: float = 30719.0
    excluded_body_parts: tuple[str, ...] = ()
    nan: Literal["refuse", "air"] = "refuse"
    synthetic: Literal["refuse", "accept"] = "refuse"


@dataclass(frozen=True)
class ScanRequest:
    """What `Format.load` is asked for.

    Attributes:
        source: folder of the source.
        files: relative paths of one scan's files, sorted; opened with `storage.sources.files.open_file`.
        scan_id: as in `FileFacts.scan`.
        limits: what counts as a volume.
        num_expected: images that a manifest of the source says this scan has; None where none does.
        spacing_mm: voxel distances (x, y, z) for formats whose files do not have them; None where unknown.
        num_beside: other CT images of the same study in the source, scouts among them.
        num_no_slices: files of the scan that are images of other kinds, and are not in `files`.
    """

    source: Path
    files: tuple[str, ...]
    scan_id: str
    limits: Limits = Limits()
    num_expected: int | None = None
    spacing_mm: Float3 | None = None
    num_beside: int = 0
    num_no_slices: int = 0

    @property
    def where(self) -> str:
        """How sentences call the scan."""
        return f"Scan {self.scan_id}"


@dataclass(frozen=True)
class LeftOut:
    """One image of a scan that is not part of its volume: relative path, reason code and detail of its verdict."""

    file: str
    reason: str
    detail: str


@dataclass(frozen=True)
class SourceVolume:
    """A scan as acquired.

    Attributes:
        hu: HU, at least AIR_HU, or FILL_HU where nothing was measured; shape (k, j, i), int16, or float32 where values are not
            whole.
        spacing_mm: distances along index i, j and k; along k the mean where `slice_mm` is given.
        origin_mm: LPS centre of voxel [0, 0, 0].
        direction: 3 × 3, columns are the unit LPS steps of index i, j, k: of either handedness, not orthogonal under gantry tilt.
        attributes: allow-listed attributes (`storage.sources.attributes`).
        pixel_digest: `pixel_digest(hu)`, the same for the same values whichever type `hu` has.
        part: which volume of its scan, where a scan has several ("acquisition 2"); "" where it is the only one.
        num_parts: volumes of its scan.
        slice_mm: distance of each plane from the first along k, strictly increasing, where they are uneven; None where even.
        left_out: images of the scan that are no part of a volume of it; on the first volume of a scan only.
        num_duplicates: files left out because they repeat another file.
        tilt_deg: angle between the step along k and the normal of i and j.
        completeness: "complete" where a count of the slices is known and met, else "unknown".
        notes: sentences about what was assumed or replaced, without file names.
    """

    hu: NDArray[Any]
    spacing_mm: Float3
    origin_mm: Float3
    direction: NDArray[np.float64]
    attributes: dict[str, Any]
    pixel_digest: str
    part: str = ""
    num_parts: int = 1
    slice_mm: tuple[float, ...] | None = None
    left_out: tuple[LeftOut, ...] = ()
    num_duplicates: int = 0
    tilt_deg: float = 0.0
    completeness: Literal["complete", "unknown"] = "unknown"
    notes: tuple[str, ...] = ()

    def geometry(self) -> dict[str, Any]:
        """JSON geometry rounded to 1e-5, as it enters the volume id."""
        return {
            "spacing_mm": [round(v, 5) for v in self.spacing_mm],
            "origin_mm": [round(v, 5) + 0.0 for v in self.origin_mm],
            "direction": [round(float(v), 5) + 0.0 for v in self.direction.ravel()],
            "slice_mm": None if self.slice_mm is None else [round(v, 5) for v in self.slice_mm],
        }


ReadHeader = Callable[[BinaryIO, Path], FileFacts | None]
IdentifyingWords = Callable[[BinaryIO], frozenset[str]]
Preview = Callable[[ScanRequest], NDArray[np.float32] | None]
Load = Callable[[ScanRequest], Iterator[SourceVolume]]


@dataclass(frozen=True)
class Format:
    """One format of scans.

    Attributes:
        name: as in `FileFacts.format`.
        read_header: (seekable stream at the start of a file, the file's path) -> facts, or None where the file has another format.
            It raises only OSError, where the file cannot be read.
        load: request -> the volumes of a scan, nearly always one, each read when it is asked for. Every header is checked before
            the first: a scan of which one volume is broken is refused. Raises `UnusableSeriesError` with a reason code.
        identifying: stream of a file -> words of its header that may identify a patient (`storage.privacy.words_of`): no text
            that leaves the source has one of them. It raises nothing.
        preview: request -> one image of the scan (rows, columns), in HU where they are known, for the page about a refused scan;
            None where that cannot be had at little cost. It raises nothing.
    """

    name: str
    read_header: ReadHeader
    load: Load
    identifying: IdentifyingWords = lambda stream: frozenset()
    preview: Preview = lambda request: None


def pixel_digest(hu: NDArray[Any], lowest: int | None = None) -> str:
    """Hex SHA-256 of HU (k, j, i), plane by plane: as little-endian int16, or as float32 where a value is no int16.

    Where `lowest` is given, lower values count as that.
    """
    with np.errstate(invalid="ignore"):  # of a value beyond int16 another one is made, which is not equal
        whole = hu.dtype == np.int16 or all((plane.astype(np.int16) == plane).all() for plane in hu)
    digest = hashlib.sha256()
    for plane in hu if lowest is None else (np.maximum(plane, lowest) for plane in hu):
        digest.update(np.ascontiguousarray(plane, dtype="<i2" if whole else "<f4").data)
    return digest.hexdigest()


def oriented_digest(scan: SourceVolume) -> str:
    """`pixel_digest` of a scan with its axes in the order z, y, x and ascending, and fill as air.

    It is the same however a copy stores the axes, and whether or not its header declares fill.
    """
    affine = np.eye(4)
    affine[:3, :3] = scan.direction
    order = io_orientation(affine)
    turned, filled = (order != [[0, 1], [1, 1], [2, 1]]).any(), scan.hu.min() < AIR_HU
    if not turned and not filled:
        return scan.pixel_digest
    hu = apply_orientation(scan.hu.transpose(2, 1, 0), order).transpose(2, 1, 0)
    return pixel_digest(hu, AIR_HU if filled else None)


def check_synthetic(limits: Limits, where: str, detail: str) -> None:
    """Refuse a scan whose file says that no person was scanned, unless such are taken.

    Args:
        limits: what counts as a volume.
        where: the scan.
        detail: what of the file says so.
    Raises: UnusableSeriesError: "synthetic".
    """
    if limits.synthetic == "refuse":
        refuse("synthetic", where, detail)


def tilt_deg(direction: NDArray[np.float64]) -> float:
    """Angle between the step along k and the normal of i and j, degrees to three places; directions as in `SourceVolume`."""
    normal = np.cross(direction[:, 0], direction[:, 1])
    cosine = abs(float(direction[:, 2] @ normal)) / float(np.linalg.norm(normal))
    return round(float(np.degrees(np.arccos(min(1.0, cosine)))), 3)


def refuse(reason: str, where: str, detail: str, file: str | None = None) -> NoReturn:
    """Raise the `UnusableSeriesError` of a reason code.

    Args:
        reason: code of `storage.verdicts.REASONS`.
        where: the scan, and the file where it is about one.
        detail: for the reason's sentence; never a patient's data.
        file: relative path that `where` or `detail` names: in the message `storage.privacy.PATH` stands for it.
    """
    shown = None if file is None else as_utf8(file)
    where, detail = (with_placeholder(as_utf8(text), shown or "") for text in (where, detail))
    raise UnusableSeriesError(reason, sentence(reason, where, detail), shown)


def as_utf8(name: str) -> str:
    """A path as text that can be written: bytes of a name that are not UTF-8 become `\\udcXX`."""
    return name.encode("utf-8", "backslashreplace").decode()


def short(error: BaseException) -> str:
    """Kind and first line of an error, for a sentence; without what it quotes, which may come from a name or a header.

    A colon or full stop that ends it is left out.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror}"
    lines = str(error).strip().splitlines()
    first = without_quotes(lines[0])[:120].strip(" \t:;,.") if lines else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
