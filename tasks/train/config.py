"""Configuration of the two training stages."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tasks.config import ComputeConfig, StageConfig


class ViewConfig(StageConfig):
    """What part of a stored volume the model sees: a cubic box of level 0, pooled to `size`³ voxels."""

    size: int = Field(64, ge=4, description="edge of the model's volume in voxels")
    edge: int = Field(256, ge=8, description="edge of the box in level-0 voxels")
    centre: tuple[int, int, int] | None = Field(
        None, description="box centre (z, y, x) in level-0 voxels; default: the middle"
    )

    @model_validator(mode="after")
    def _whole_pooling(self) -> "ViewConfig":
        if self.edge % self.size:
            raise ValueError(
                f"view.size {self.size} does not divide view.edge {self.edge}: each model voxel must be the mean of a "
                "whole block. Choose sizes such as 256, 128, 64 or 32 for an edge of 256."
            )
        return self


class IntensityConfig(StageConfig):
    """The Hounsfield window mapped to [-1, 1]; values outside saturate."""

    lower_hu: float = -1000.0
    upper_hu: float = 1000.0

    @model_validator(mode="after")
    def _ordered(self) -> "IntensityConfig":
        if not self.lower_hu < self.upper_hu:
            raise ValueError(f"intensity.lower_hu {self.lower_hu} must lie below intensity.upper_hu {self.upper_hu}")
        return self


class OptimizationConfig(ComputeConfig):
    """What both training stages have in common (SPEC §4; defaults are the published values unless named otherwise)."""

    RUNTIME: ClassVar[frozenset[str]] = ComputeConfig.RUNTIME | {"log_every", "checkpoint_every", "cache_mb"}

    steps: int = Field(..., ge=1, description="optimiser steps")
    batch_size: int = Field(64, ge=1)
    lr: float = Field(..., gt=0, description="AdamW learning rate, constant")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="global gradient norm")
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    ema_warmup: bool = Field(
        True, description="decay at step n is min(ema_decay, (1+n)/(10+n)); false: constant (published)"
    )
    noise_std: float = Field(0.5, gt=0, description="std of the process's noise")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast of the forward pass")
    max_shift: int = Field(
        0, ge=0, description="training boxes are shifted by up to this many level-0 voxels on every axis (published: 0)"
    )
    seed: int = Field(42, ge=0)
    val_every: int = Field(500, ge=1, description="steps between validations; the last step is always validated")
    val_volumes: int = Field(16, ge=1, description="validation volumes used at most (by volume id)")
    log_every: int = Field(10, ge=1, description="steps between logged training losses")
    checkpoint_every: int = Field(500, ge=1, description="steps between resumable checkpoints")
    cache_mb: int = Field(2048, ge=0, description="memory for training views kept in RAM")


class TrainLocalConfig(OptimizationConfig):
    """Stage 1: the local denoiser, alone."""

    preset: str = Field("XS/12/0", description="size/patch/depth; depth 0 is the local denoiser")
    view: ViewConfig = Field(default_factory=lambda: ViewConfig())
    intensity: IntensityConfig = Field(default_factory=lambda: IntensityConfig())
    steps: int = Field(104_000, ge=1, description="optimiser steps")
    lr: float = Field(1e-4, gt=0, description="AdamW learning rate, constant")


class TrainGlobalConfig(OptimizationConfig):
    """Stage 2: the global refiner on a frozen local denoiser. View, intensity and noise come from stage 1."""

    preset: str = Field("XS/12/4", description="size/patch/depth with the local stage's patch and a depth above 0")
    local_weights: Literal["ema", "raw"] = Field(
        "ema", description="which stage-1 weights are frozen in (published: raw)"
    )
    select: Literal["last", "best"] = Field(
        "last", description="weights that become the checkpoint: the last, or those of the lowest validation loss (EMA)"
    )
    steps: int = Field(130_000, ge=1, description="optimiser steps")
    lr: float = Field(8e-5, gt=0, description="AdamW learning rate, constant")
