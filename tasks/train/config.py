"""Configuration of one training of a recipe."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from prdit_models.diffusion.process import PROCESSES, Process
from prdit_models.families.family import FAMILIES
from storage.places import as_folder
from tasks.model.compute import Attention, ComputeConfig
from tasks.model.view import IntensityConfig, ViewConfig
from tasks.run.config import Seed
from tasks.run.settings import settings_of
from tasks.train.augmentation import AugmentationConfig
from tasks.train.mask import MaskConfig


class TrainingConfig(ComputeConfig):
    """One training: a family, its settings, the process, what it starts from, what it sees, and how the loop runs.

    Defaults are the published values unless named otherwise (SPEC §4).
    """

    RUNTIME: ClassVar[frozenset[str]] = ComputeConfig.RUNTIME | {
        "enabled",
        "log_every",
        "checkpoint_every",
        "sample_every",
        "cache_mb",
        "cache_dir",
        "loader_workers",
        "checkpointing",
    }

    enabled: bool = Field(True, description="whether a run has this training")
    family: str = Field(..., description="model family: local, global, refiner, or another package's")
    start: str | None = Field(
        None, description="earlier training whose checkpoint it starts from; default: none, trained from scratch"
    )
    start_weights: Literal["ema", "raw"] = Field("ema", description="which weights of that checkpoint (published: raw)")
    settings: Any = Field(None, description="settings of the family", validate_default=False)
    process: Any = Field(
        None,
        description="name (cosine, flow, ddpm) and settings of the process; default: that of its start, or cosine",
    )
    view: ViewConfig | None = Field(None, description="only for training from scratch; others take that of their start")
    intensity: IntensityConfig | None = Field(None, description="only for training from scratch, as view")
    label_column: str | None = Field(
        None, description="column of the store's volume table that conditions the model (sample.label); default: none"
    )
    label_dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of training volumes shown without their label, conditions and mask, for guidance (Ho & Salimans 2022)",
    )
    conditions: tuple[str, ...] = Field(
        (),
        description="what else conditions the model (sample.conditions): columns of the store's volume table, voxel_mm, "
        "field_of_view_mm, scan_length_mm (docs/options.md); default: none",
    )
    mask: MaskConfig | None = Field(
        None,
        description="coarse mask that conditions the model, body-and-lungs (sample.mask); dropped with label and conditions; "
        "default: none",
    )
    attention: Attention = Field(
        "auto", description="auto: xformers on CUDA, else SDPA; published-flash rounds q, k, v to bfloat16 as published"
    )
    steps: int = Field(..., ge=1, description="optimiser steps; with seconds: at most so many")
    seconds: float | None = Field(
        None,
        gt=0,
        description="seconds of optimiser steps, their data included, after which the training ends, wherever it is then; "
        "validation, pictures and written states do not count; default: all steps",
    )
    batch_size: int = Field(64, ge=1, description="volumes computed together, over all ranks")
    accumulation: int = Field(1, ge=1, description="batches whose gradients make one optimiser step")
    lr: float = Field(..., gt=0, description="AdamW learning rate")
    lr_decay: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the steps, at the end, over which lr falls linearly to 0; 0: constant (published)",
    )
    lr_shape: Literal["linear", "cosine"] = Field("linear", description="how lr falls over that share")
    lr_warmup: int = Field(0, ge=0, description="steps over which lr rises linearly from 0; 0: none (published)")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="global gradient norm")
    spike_factor: float = Field(
        20.0,
        ge=0,
        description="a step whose loss is this many times the mean of the last 50 is skipped; 0: none is (published)",
    )
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    ema_warmup: bool = Field(
        True, description="decay at step n is min(ema_decay, (1+n)/(10+n)); false: constant (published)"
    )
    ema_snapshots: int = Field(
        0,
        ge=0,
        description="steps between snapshots of two power-function averages (EDM2, Karras et al. 2024), from which `prdit ema` "
        "makes an average of another length afterwards; 0: none",
    )
    select: Literal["last", "best"] = Field(
        "last", description="weights that become the checkpoint: the last, or those of the lowest validation loss (EMA)"
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
    augmentation: AugmentationConfig = Field(
        default_factory=AugmentationConfig,
        description="random changes of training volumes besides shifts (published: none)",
    )
    seed: Seed = 42
    val_every: int = Field(500, ge=1, description="steps between validations; the last step is always validated")
    val_volumes: int = Field(16, ge=1, description="validation volumes used at most (by volume id)")
    sample_every: int = Field(
        0,
        ge=0,
        description="steps between pictures of four volumes drawn by the EMA, in the stage's MLflow run; 0: none",
    )
    log_every: int = Field(10, ge=1, description="steps between logged training losses")
    checkpoint_every: int = Field(500, ge=1, description="steps between resumable states")
    cache_mb: int = Field(
        2048,
        ge=0,
        description="MiB for stored training volumes kept in memory, or in cache_dir; all ranks of a machine share them",
    )
    cache_dir: str | None = Field(None, description="folder on a local disk for that cache; default: memory")
    loader_workers: int | None = Field(
        None,
        ge=0,
        description="processes that prepare batches, per rank; default: on CUDA its share of the cores, 4 at most; on the CPU none",
    )

    @field_validator("cache_dir")
    @classmethod
    def _is_here(cls, value: str | None) -> str | None:
        if value is not None:
            as_folder(value, "cache_dir")
        return value

    @field_validator("mask", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"of": value} if isinstance(value, str) else value

    @property
    def changes_volumes(self) -> bool:
        """Whether training volumes are changed, each time anew, when they are shown."""
        return bool(self.max_shift) or self.augmentation != AugmentationConfig()

    @model_validator(mode="before")
    @classmethod
    def _typed(cls, values: Any) -> Any:
        """Settings and process become what the family and the process define."""
        if not isinstance(values, dict) or not isinstance(values.get("family"), str):
            return values
        family = FAMILIES[values["family"]]
        typed = dict(values)
        typed["settings"] = settings_of(family.settings, values.get("settings") or {}, "settings")
        if isinstance(process := values.get("process"), str):
            process = {"name": process}
        if isinstance(process, Mapping):
            chosen = dict(process)
            typed["process"] = settings_of(PROCESSES[str(chosen.pop("name", "cosine"))], chosen, "process")
        elif process is not None and getattr(process, "name", None) not in PROCESSES:
            raise ValueError(
                f"process is {process!r}; expected a name ({', '.join(PROCESSES.names())}) or a mapping with a name."
            )
        return typed

    def key_fields(self) -> dict[str, Any]:
        """As every stage's; without later settings where there are none: keys are those of before there was that."""
        without = {name for name in ("seconds", "conditions", "mask") if not getattr(self, name)}
        return {name: value for name, value in super().key_fields().items() if name not in without}

    @field_validator("conditions")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in value if value.count(name) > 1}):
            raise ValueError(f"conditions names {', '.join(twice)} more than once")
        return value

    @model_validator(mode="after")
    def _known_length(self) -> "TrainingConfig":
        if self.seconds is not None and self.lr_decay:
            raise ValueError(
                f"lr_decay is {self.lr_decay} and seconds {self.seconds:g}: how many steps fit into that time is not known "
                "beforehand, so the rate cannot fall towards their end. Set lr_decay to 0, or leave seconds out."
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> "TrainingConfig":
        family = FAMILIES[self.family]
        if self.process is not None and self.process.name not in family.processes:
            known = ", ".join(family.processes) or "none"
            raise ValueError(
                f"process {self.process.name!r} does not fit family {self.family!r}, which works with: {known}."
            )
        if family.needs and self.start is None:
            raise ValueError(
                f"start is not set; family {self.family!r} starts from a {family.needs}: name the earlier training that makes it."
            )
        if self.label_column in self.conditions:
            raise ValueError(
                f"conditions names {self.label_column}, which is label_column already; leave one of them out."
            )
        if self.start is not None and not family.needs:
            raise ValueError(
                f"start is {self.start!r}, but family {self.family!r} is trained from scratch. Leave it out."
            )
        if self.start is not None and (self.view or self.intensity):
            given = " and ".join(name for name in ("view", "intensity") if getattr(self, name))
            raise ValueError(
                f"{given} cannot be set here: this training sees what {self.start!r} saw, which it starts from. Set it there."
            )
        return self

    @field_serializer("process")
    def _process_as_stored(self, process: Process | None) -> dict[str, Any] | None:
        return None if process is None else process.to_dict()
