"""reconstruction.json: what was reconstructed from a measurement, and, where the truth is known, how near it is."""

from typing import ClassVar, Literal

from pydantic import Field

from storage.documents.document import Document, Part
from storage.documents.snapshot import Digest


class Accuracy(Part):
    """How near a volume is to the truth and to the measurement.

    Attributes:
        psnr_db: peak signal-to-noise ratio, the peak is the width of the Hounsfield window.
        ssim: structural similarity of the volumes in the window (one scale).
        error_hu: mean absolute error by band of the truth's HU (air, lung, fat, soft, bone), and of `all`; None where it has
            no such voxel.
        residual: root mean square of measurement minus A·volume, in the measurement's unit.
    """

    psnr_db: float
    ssim: float
    error_hu: dict[str, float | None]
    residual: float


class Likeness(Part):
    """Whether samples repeat training volumes: root mean square distances, in HU.

    Attributes:
        to_training: of every sample to the training volume nearest to it.
        to_truth: of every sample to the truth.
        truth_to_training: of the truth to the training volume nearest to it.
        num_training: volumes that were searched.
    """

    to_training: list[float]
    to_truth: list[float]
    truth_to_training: float
    num_training: int


class Truth(Part):
    """What is known because the measurement was simulated.

    Attributes:
        volume_id: of the volume.
        role: of its patient in the model's training: `held_out`, `trained` (the model has seen the patient), or `unknown`.
        accuracy: by what is compared: `mean` of the samples, `sample` (the first), and the baselines.
        coverage: share of voxels whose interval holds the truth, by nominal coverage as text; of a mask, of those that were not
            measured.
        likeness: None where no training volumes are known.
    """

    volume_id: str
    role: Literal["held_out", "trained", "unknown"]
    accuracy: dict[str, Accuracy]
    coverage: dict[str, float] = Field(default_factory=dict)
    likeness: Likeness | None = None


class Reconstruction(Document):
    """What samples of one measurement say together. `estimate.safetensors` has `mean`, `std`, `low` and `high`, float32 HU.

    Attributes:
        measurement, checkpoint: digests.
        num_samples: that it is made of.
        level: nominal coverage of the interval from `low` to `high`.
        noise_std: of the measurement, in its unit.
        unit: of the measurement.
        residuals: root mean square of measurement minus A·sample, of every sample, in that unit.
        truth: None of a measurement that was recorded.
        warnings: sentences that whoever uses the volumes must know.
    """

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "reconstruction.json"
    ESTIMATE: ClassVar[str] = "estimate.safetensors"
    WHAT: ClassVar[str] = "description of a reconstruction"
    REMEDY: ClassVar[str] = "Reconstruct the measurement again."

    measurement: Digest
    checkpoint: str
    num_samples: int
    level: float
    noise_std: float
    unit: str
    residuals: list[float]
    truth: Truth | None = None
    warnings: list[str] = Field(default_factory=list)
