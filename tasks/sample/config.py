"""Configuration of stage sample."""

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from prdit_models.diffusion.sampler import Sampler
from tasks.model.compute import Attention, ComputeConfig
from tasks.run.config import Seed, StageConfig


class RedrawConfig(StageConfig):
    """Which volumes are drawn again, from a seed derived from seed, index and try."""

    most: int = Field(
        0,
        ge=0,
        le=100,
        description="so often a volume that is not finite, or could be no chest, is drawn again; 0: never",
    )
    anatomy: bool | None = Field(
        None,
        description="judge volumes by their anatomy (docs/anatomy.md); default: where the view can show a whole chest, a box of "
        "240 mm or more in voxels of at most 8 mm. The first plausible volume is kept, or the last finite one",
    )


class SampleConfig(ComputeConfig):
    """How many volumes are drawn from a checkpoint, and how."""

    RUNTIME: ClassVar[frozenset[str]] = ComputeConfig.RUNTIME | {"batch_size", "preview_every"}

    num_volumes: int = Field(8, ge=1, description="volumes to draw")
    sampler: str = Field(
        "predictor-corrector", description="how a step is made (docs/samplers.md); published: predictor-corrector"
    )
    schedule: Literal["even", "published"] = Field(
        "even",
        description="even: exactly num_steps evaluations; published: multiples of 1000/num_steps, the last at t = 0",
    )
    num_steps: int = Field(50, ge=1, le=1000, description="evaluations of the model per volume")
    predictor_step: int = Field(
        2,
        ge=1,
        description="steps that the predictor of predictor-corrector skips ahead; 1 is plain Euler (no corrector)",
    )
    parametrization: Literal["velocity", "image"] = Field(
        "velocity",
        description="what follows from the model's two estimates: velocity, the published drift; image, the image alone (smoother)",
    )
    output: Literal["image", "state"] = Field(
        "image",
        description="what becomes the volume: image, the model's own image estimate at the last evaluation; state, where the "
        "sampler ends (published)",
    )
    label: str | None = Field(
        None, description="value of the label column the model was trained with; default: no label"
    )
    conditions: dict[str, int | float | str] = Field(
        default_factory=dict,
        description="what the volumes should be like, by the names of the training's conditions, such as age_years: 60, "
        "PatientSex: F; what is left out is not known to the model",
    )
    edge: int | None = Field(
        None,
        ge=1,
        description="edge of the volumes in level-0 voxels of the training's store, one of those it saw (view.edge, "
        "view.more_edges); default: view.edge",
    )
    mask: str | None = Field(
        None,
        description="coarse mask that the volumes follow, for a model trained with one: NIfTI file of labels (0 outside, 1 body, 2 "
        "lungs), or a CT scan (file or folder of a series) whose body and lungs are taken; default: none",
    )
    mask_volume: str | None = Field(
        None, description="volume that the model's training listed, whose own mask is taken; instead of mask"
    )
    guidance_scale: float = Field(
        1.0, gt=0, description="classifier-free guidance towards label, conditions and mask together; 1: none"
    )
    attention: Attention = Field(
        "auto", description="auto: xformers on CUDA, else SDPA; published-flash rounds q, k, v to bfloat16 as published"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: autocast of the network; about twice as fast where the processor has it"
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="volumes drawn at once by a worker: on a GPU in one batch, on a CPU each by a thread of its own (so that the "
        "bits do not depend on it), at most num_threads; default: as many as fit into memory, by measurement",
    )
    redraw: RedrawConfig = RedrawConfig()
    preview_every: int = Field(
        64,
        ge=1,
        description="volumes after which a picture of the newest is shown (MLflow, Prefect); the last is always shown",
    )
    seed: Seed = Field(42, description="volume i is drawn from a seed derived from this and i")
    weights: Literal["ema", "raw"] = Field("ema", description="which weights of the checkpoint")
    nifti: bool = Field(True, description="also write each volume as nifti/<index>.nii.gz")

    def __hash__(self) -> int:
        """What a process finds about drawings is cached by their settings."""
        return hash(self.model_dump_json())

    def key_fields(self) -> dict[str, Any]:
        """As every stage's; without later settings where there are none: keys are those of before there was that."""
        without = {name for name in ("conditions", "edge", "mask", "mask_volume") if not getattr(self, name)}
        return {name: value for name, value in super().key_fields().items() if name not in without}

    @field_validator("conditions", mode="before")
    @classmethod
    def _truth_as_text(cls, value: object) -> object:
        """YAML reads some categories as True; a value that is not given, or is no single one, is an error."""
        if not isinstance(value, dict):
            return value
        if empty := [name for name, one in value.items() if one is None or (isinstance(one, str) and not one.strip())]:
            raise ValueError(f"sample.conditions.{empty[0]} is empty; leave out what is not known.")
        for name, one in value.items():
            if not isinstance(one, int | float | str) or (isinstance(one, float) and not math.isfinite(one)):
                raise ValueError(f"sample.conditions.{name} is {one!r}; expected one finite number or one text.")
        return {name: str(one) if isinstance(one, bool) else one for name, one in value.items()}

    @field_validator("label", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """Labels are text; YAML reads some of them as True or 120.0."""
        if isinstance(value, bool | int | float):
            return str(value)
        if isinstance(value, str) and not value.strip():
            raise ValueError("sample.label is empty; leave it out to sample without a label.")
        return value

    @model_validator(mode="after")
    def _possible(self) -> "SampleConfig":
        self.as_sampler()
        if self.mask is not None and self.mask_volume is not None:
            raise ValueError("sample.mask and sample.mask_volume are both set; volumes are drawn for one mask.")
        if self.guidance_scale != 1.0 and self.label is None and not self.conditions and not self.masked:
            raise ValueError(
                f"sample.guidance_scale {self.guidance_scale} without sample.label, sample.conditions or sample.mask: guidance "
                "needs one of them."
            )
        return self

    @property
    def masked(self) -> bool:
        """Whether volumes are drawn for a mask."""
        return self.mask is not None or self.mask_volume is not None

    def as_sampler(self) -> Sampler:
        """The sampler these settings name.

        Raises: ValueError: they contradict each other.
        """
        return Sampler(self.sampler, self.num_steps, self.schedule, self.predictor_step, self.parametrization)
