"""Limits of the drift gate."""

from pydantic import BaseModel, ConfigDict, Field


class DriftConfig(BaseModel):
    """Limits of the drift gate, each printed in its finding. docs/decisions/0017-drift-gate.md has what they were measured on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    enabled: bool = Field(True, description="false: batches are listed without being looked at")
    min_reference: int = Field(
        8,
        ge=3,
        description="volumes the store must list before new ones are compared with them; with fewer, absolute limits",
    )
    spread: float = Field(
        6.0, gt=0, description="robust standard deviations that a figure of a volume may lie from the store's median"
    )
    air_hu: tuple[float, float] = Field(
        (-1024.0, -920.0), description="HU of the peak of the air around the body, least and most"
    )
    muscle_hu: tuple[float, float] = Field(
        (0.0, 95.0), description="HU of the peak of muscle and organs, least and most"
    )
    histogram_hu: float = Field(
        60.0,
        gt=0,
        description="distance (Wasserstein-1) of the batch's HU histogram from the store's; more where the store's own do",
    )
    slice_mm: tuple[float, float] = Field((0.2, 10.0), description="slice distance of a scan, least and most")
    pixel_mm: tuple[float, float] = Field((0.2, 6.5), description="pixel distance of a scan, least and most")
    spacing_factor: float = Field(
        1.5, ge=1, description="factor that slice and pixel distance may lie beyond the range of the store's scans"
    )
    flip_margin: float = Field(
        0.02,
        gt=0,
        description="correlation with the mean chest that a volume must gain by being flipped along an axis to count as flipped",
    )
    duplicate_hu: float = Field(
        45.0, ge=0, description="RMS difference in HU on 8 mm voxels below which two volumes count as one scan"
    )
    copy_ratio: float = Field(
        0.25,
        gt=0,
        le=1,
        description="of the median distance from the listed volumes, where that is less than duplicate_hu",
    )
    copies_per_patient: int = Field(
        3, ge=1, description="volumes of one scan (kernels, say) that one patient may have; none may have two patients"
    )
    patient_share: float = Field(0.5, gt=0, le=1, description="share of a batch of 10 volumes or more from one patient")
