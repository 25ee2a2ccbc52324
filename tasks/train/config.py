"""Configuration of the training stages."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tasks.config import Attention, ComputeConfig, StageConfig


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

    def voxel_mm(self, spacing_mm: float) -> float:
        """Voxel distance of what the model sees, for a store of `spacing_mm`."""
        return self.edge * spacing_mm / self.size


class IntensityConfig(StageConfig):
    """How Hounsfield units become what a model sees."""

    lower_hu: float = -1000.0
    upper_hu: float = 1000.0
    mapping: Literal["window", "published-lidc", "published-rad"] = Field(
        "window",
        description="window: [lower_hu, upper_hu] to [-1, 1], the same for every scan, values outside saturate; published-lidc and "
        "published-rad: scaled by each scan's own quantile and minimum as published, so that HU of samples are nominal",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "IntensityConfig":
        if not self.lower_hu < self.upper_hu:
            raise ValueError(f"intensity.lower_hu {self.lower_hu} must lie below intensity.upper_hu {self.upper_hu}")
        return self


class OptimizationConfig(ComputeConfig):
    """What the training stages have in common (SPEC §4; defaults are the published values unless named otherwise)."""

    RUNTIME: ClassVar[frozenset[str]] = ComputeConfig.RUNTIME | {
        "log_every",
        "checkpoint_every",
        "cache_mb",
        "checkpointing",
    }

    steps: int = Field(..., ge=1, description="optimiser steps")
    batch_size: int = Field(64, ge=1)
    lr: float = Field(..., gt=0, description="AdamW learning rate")
    lr_decay: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the steps, at the end, over which lr falls linearly to 0; 0: constant (published)",
    )
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="global gradient norm")
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    ema_warmup: bool = Field(
        True, description="decay at step n is min(ema_decay, (1+n)/(10+n)); false: constant (published)"
    )
    noise_std: float = Field(0.5, gt=0, description="std of the process's noise")
    time_distribution: Literal["uniform", "logit-normal"] = Field(
        "uniform",
        description="of the diffusion step; logit-normal favours the middle of the schedule (Esser et al. 2024)",
    )
    logit_mean: float = Field(0.0, description="of logit-normal steps")
    logit_std: float = Field(1.0, gt=0, description="of logit-normal steps")
    ema_snapshots: int = Field(
        0,
        ge=0,
        description="steps between snapshots of two power-function averages (EDM2, Karras et al. 2024), from which `prdit ema` "
        "makes an average of another length afterwards; 0: none",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast of the forward pass")
    compile: bool = Field(False, description="torch.compile; where it fails, training goes on without and says why")
    checkpointing: bool = Field(
        False, description="recompute each block in the backward pass: a third more time, a fraction of the memory"
    )
    max_shift: int = Field(
        0,
        ge=0,
        multiple_of=4,
        description="training boxes are shifted by up to this many level-0 voxels on every axis, in steps of 4 (published: 0)",
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
    arithmetic: Literal["prdit", "tf"] = Field("prdit", description="tf: TF-PRDiT's norms; same weights, other results")
    norm: Literal["layer", "rms"] = Field(
        "layer", description="before modulations; rms: RMSNorm (Zhang & Sennrich 2019)"
    )
    prediction: Literal["noise_image", "image"] = Field(
        "noise_image", description="what the network puts out; image: x0 alone, trained with the velocity's loss (JiT)"
    )
    view: ViewConfig = Field(default_factory=lambda: ViewConfig())
    intensity: IntensityConfig = Field(default_factory=lambda: IntensityConfig())
    steps: int = Field(104_000, ge=1, description="optimiser steps")
    lr: float = Field(1e-4, gt=0, description="AdamW learning rate")


class TrainGlobalConfig(OptimizationConfig):
    """Stage 2: the global refiner on a frozen local denoiser. View, intensity, noise, norms and prediction come from stage 1."""

    preset: str = Field("XS/12/4", description="size/patch/depth with the local stage's patch and a depth above 0")
    local_weights: Literal["ema", "raw"] = Field(
        "ema", description="which stage-1 weights are frozen in (published: raw)"
    )
    joint_local: bool = Field(False, description="train the local branch along instead of freezing it")
    attention: Attention = Field(
        "auto", description="auto: xformers on CUDA, else SDPA; published-flash rounds q, k, v to bfloat16 as published"
    )
    qk_norm: bool = Field(False, description="RMS norm of queries and keys (ViT-22B, Dehghani et al. 2023)")
    position: Literal["table", "rotary"] = Field(
        "table", description="rotary: rotary embedding in mm (RoFormer, Su et al. 2021); size L needs it"
    )
    label_column: str | None = Field(
        None, description="column of the store's volume table that conditions the model (sample.label); default: none"
    )
    label_dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of training volumes shown without their label, for guidance (Ho & Salimans 2022)",
    )
    select: Literal["last", "best"] = Field(
        "last", description="weights that become the checkpoint: the last, or those of the lowest validation loss (EMA)"
    )
    steps: int = Field(130_000, ge=1, description="optimiser steps")
    lr: float = Field(8e-5, gt=0, description="AdamW learning rate")


class TrainRefinerConfig(OptimizationConfig):
    """Stage 3: a local denoiser one pyramid level above a frozen model. View, intensity and noise come from that model."""

    RUNTIME: ClassVar[frozenset[str]] = OptimizationConfig.RUNTIME | {"enabled"}

    enabled: bool = Field(False, description="whether the flow has this stage: sampling is then from the refined model")
    preset: str = Field("XS/12/0", description="size/patch/0 of the refining head")
    base_weights: Literal["ema", "raw"] = Field("ema", description="which weights of the model below")
    low_frequency_weight: float = Field(
        1.0, ge=0, description="weight of the refined image's pooled distance to the image of the model below"
    )
    fine_tune_lr: float | None = Field(
        None, gt=0, description="learning rate of the model below, trained along; default: frozen"
    )
    select: Literal["last", "best"] = Field(
        "last", description="weights that become the checkpoint: the last, or those of the lowest validation loss (EMA)"
    )
    batch_size: int = Field(4, ge=1)
    steps: int = Field(20_000, ge=1, description="optimiser steps")
    lr: float = Field(1e-4, gt=0, description="AdamW learning rate of the head")


TrainConfig = TrainLocalConfig | TrainGlobalConfig | TrainRefinerConfig
