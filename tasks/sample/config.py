"""Configuration of stage sample."""

from typing import ClassVar, Literal

from pydantic import Field

from tasks.config import ComputeConfig


class SampleConfig(ComputeConfig):
    """How many volumes are drawn from a checkpoint, and how."""

    RUNTIME: ClassVar[frozenset[str]] = ComputeConfig.RUNTIME | {"batch_size"}

    num_volumes: int = Field(8, ge=1, description="volumes to draw")
    num_steps: int = Field(50, ge=1, le=1000, description="sampler steps; divisors of 1000 give exactly that many")
    predictor_step: int = Field(
        2, ge=1, description="visited steps the predictor jumps; 1 is plain Euler (no corrector)"
    )
    batch_size: int = Field(4, ge=1, description="volumes drawn together; the same volumes whatever it is")
    seed: int = Field(42, ge=0, description="volume i is drawn from a seed derived from this and i")
    weights: Literal["ema", "raw"] = Field("ema", description="which weights of the checkpoint")
    nifti: bool = Field(True, description="also write each volume as nifti/<index>.nii.gz")
