"""measurement.json: what was measured of a volume, by which operator, and where it comes from; its values lie beside it."""

from typing import Any, ClassVar

from pydantic import Field, model_validator

from storage.documents.document import Document, Part
from storage.documents.snapshot import Digest
from storage.geometry import Float3, Int3


class MeasuredGrid(Part):
    """The voxels of the volume that was measured: those of the model that is to reconstruct it.

    Attributes:
        shape: (z, y, x).
        spacing_mm: voxel distances (x, y, z).
        origin_mm: LPS position (x, y, z) of the centre of voxel [0, 0, 0].
    """

    shape: Int3
    spacing_mm: Float3
    origin_mm: Float3


class Simulated(Part):
    """A measurement that was computed from a stored volume, with noise.

    Attributes:
        snapshot: digest of the snapshot that lists the volume.
        volume_id: of the volume.
        seed: of the noise.
    """

    snapshot: Digest
    volume_id: str
    seed: int


class Recorded(Part):
    """A measurement that was read from files.

    Attributes:
        format: of the files: `dicom`, `nifti`, …, or `npy`.
        files_digest: hash of the hashes of the files.
        notes: what was assumed or replaced when they were read.
    """

    format: str
    files_digest: str
    notes: tuple[str, ...] = ()


class Measurement(Document):
    """What was measured, y = A·x + b + noise.

    Attributes:
        operator: name and settings of the operator.
        unit: of the values: HU, or mm of water.
        shape: of the values.
        sha256: of `values.safetensors`, which has them as float32 under `values`.
        noise_std: of the noise, in the unit.
        saturated_fraction: share of what was read in HU that lay outside the model's Hounsfield window, and was put to its ends.
        grid: of the volume that was measured.
        simulated, recorded: where it comes from, one of both.
    """

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "measurement.json"
    VALUES: ClassVar[str] = "values.safetensors"
    WHAT: ClassVar[str] = "description of a measurement"
    REMEDY: ClassVar[str] = "Reconstruct from the scan or the store again: the measurement is made again."

    operator: dict[str, Any]
    unit: str
    shape: tuple[int, ...]
    sha256: str
    noise_std: float = Field(ge=0)
    saturated_fraction: float
    grid: MeasuredGrid
    simulated: Simulated | None = None
    recorded: Recorded | None = None

    def to_json(self) -> dict[str, Any]:
        """The content of the file; it says of one place where the measurement comes from."""
        return {key: value for key, value in super().to_json().items() if value is not None}

    @model_validator(mode="after")
    def _from_one_place(self) -> "Measurement":
        if (self.simulated is None) == (self.recorded is None):
            raise ValueError("it must say that it was simulated, or that it was recorded, and not both")
        return self
