"""What every source format gives: the facts of one file's header, and one scan as HU with geometry.

This module knows no format. A format is a module beside it that defines a `Format`, and one row of
`storage.sources.formats.FORMATS`.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from storage.errors import UnusableSeriesError
from storage.geometry import Float3
from storage.verdicts import sentence


@dataclass(frozen=True)
class FileFacts:
    """What the header of one file says.

    Attributes:
        format: name of the format that recognised it; "" where none did.
        scan: id of the scan it belongs to (a DICOM series' UID, say); "" where it belongs to none.
        reason: why it cannot be part of a volume, from `storage.verdicts.REASONS`; "" where it can.
        detail: for the reason's sentence; never a patient's data.
        patient_id: "" when absent; in memory only, never written.
    """

    format: str = ""
    scan: str = ""
    reason: str = ""
    detail: str = ""
    patient_id: str = ""


@dataclass(frozen=True)
class Limits:
    """What counts as a volume.

    Attributes:
        min_slices: a scan with fewer is too short.
        nan: what voxels that are no finite number become: "refuse" the scan, or take them as "air".
    """

    min_slices: int = 2
    nan: Literal["refuse", "air"] = "refuse"


@dataclass(frozen=True)
class SourceVolume:
    """A scan as acquired.

    Attributes:
        hu: HU, at least AIR_HU, shape (k, j, i), int16, or float32 where values are not whole.
        spacing_mm: distances along index i, j and k.
        origin_mm: LPS centre of voxel [0, 0, 0].
        direction: 3 × 3, columns are the unit LPS steps of index i, j, k: of either handedness, not orthogonal under gantry tilt.
        attributes: allow-listed attributes (`storage.sources.attributes`).
        pixel_digest: SHA-256 of the HU as float32, plane by plane.
        num_duplicates: files left out because they repeat another file.
        tilt_deg: angle between the step along k and the normal of i and j.
        notes: sentences about what was assumed or replaced.
    """

    hu: NDArray[Any]
    spacing_mm: Float3
    origin_mm: Float3
    direction: NDArray[np.float64]
    attributes: dict[str, Any]
    pixel_digest: str
    num_duplicates: int = 0
    tilt_deg: float = 0.0
    notes: tuple[str, ...] = ()

    def geometry(self) -> dict[str, list[float]]:
        """JSON geometry rounded to 1e-5, as it enters the volume id."""
        return {
            "spacing_mm": [round(v, 5) for v in self.spacing_mm],
            "origin_mm": [round(v, 5) + 0.0 for v in self.origin_mm],
            "direction": [round(float(v), 5) + 0.0 for v in self.direction.ravel()],
        }


ReadHeader = Callable[[BinaryIO, Path], FileFacts | None]
Load = Callable[[Path, Sequence[str], str, Limits], SourceVolume]


@dataclass(frozen=True)
class Format:
    """One format of scans.

    Attributes:
        name: as in `FileFacts.format`.
        read_header: (seekable stream at the start of a file, the file's path) -> facts, or None where the file has another format.
            It raises only OSError, where the file cannot be read.
        load: (source folder, relative paths of one scan's files, scan id, limits) -> the scan.
            Raises `UnusableSeriesError` with a reason code; sources are only read.
    """

    name: str
    read_header: ReadHeader
    load: Load


def pixel_digest(hu: NDArray[Any]) -> str:
    """Hex SHA-256 of HU (k, j, i) as little-endian float32, plane by plane."""
    digest = hashlib.sha256()
    for plane in hu:
        digest.update(np.ascontiguousarray(plane, dtype="<f4").data)
    return digest.hexdigest()


def tilt_deg(direction: NDArray[np.float64]) -> float:
    """Angle between the step along k and the normal of i and j, degrees to three places; directions as in `SourceVolume`."""
    normal = np.cross(direction[:, 0], direction[:, 1])
    cosine = abs(float(direction[:, 2] @ normal)) / float(np.linalg.norm(normal))
    return round(float(np.degrees(np.arccos(min(1.0, cosine)))), 3)


def refuse(reason: str, where: str, detail: str, file: str | None = None) -> NoReturn:
    """Raise the `UnusableSeriesError` of a reason code; `file` is the relative path that `where` or `detail` names."""
    shown = None if file is None else as_utf8(file)
    raise UnusableSeriesError(reason, sentence(reason, as_utf8(where), as_utf8(detail)), shown)


def as_utf8(name: str) -> str:
    """A path as text that can be written: bytes of a name that are not UTF-8 become `\\udcXX`."""
    return name.encode("utf-8", "backslashreplace").decode()


def short(error: BaseException) -> str:
    """Kind and first line of an error, for a sentence."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}" if str(error) else type(error).__name__
