"""When a retraining is due, and what a challenger must show."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.drift.config import DriftConfig


class RetrainPolicy(BaseModel):
    """A named policy (`flows/policies/<name>.yaml`).

    A retraining is due when any of the first three rules is met and the window has passed; nothing new is never a reason. Before
    the first training only `min_new_volumes` counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, title="prdit policy of retraining")

    min_new_volumes: int | None = Field(
        10, ge=1, description="due with so many volumes that the last training did not have"
    )
    min_new_share: float | None = Field(
        0.1, gt=0, le=1, description="due when the new volumes are this share of those of the last training"
    )
    max_days: float | None = Field(
        30.0, gt=0, description="due when the last training began so many days ago and there is any new volume"
    )
    window_hours: float = Field(
        24.0, ge=0, le=8784, description="at most one retraining begins in so many hours; at most a year"
    )
    start: Literal["champion", "scratch"] = Field(
        "champion", description="champion: training goes on from the champion's weights; scratch: from fresh ones"
    )
    warm_steps_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the configured steps that a training takes which goes on from the champion",
    )
    promote: Literal["better", "not_worse_with_more_patients"] = Field(
        "better",
        description="better: the interval of the difference lies on the better side of 0; not_worse_with_more_patients: also where "
        "it lies below the margin and the challenger was trained on more patients",
    )
    margin: float | None = Field(
        None, gt=0, lt=1, description="of not_worse_with_more_patients: share of the champion's held-out loss"
    )
    level: float = Field(0.95, gt=0.5, lt=1, description="confidence level of the held-out loss's interval")
    min_reference_volumes: int = Field(
        5, ge=2, description="held-out volumes below which no challenger is promoted over a champion"
    )
    num_noises: int = Field(4, ge=1, description="noises per held-out volume at each of the process's validation times")
    max_copy_rate: float | None = Field(
        0.5,
        ge=0,
        lt=1,
        description="a challenger whose share of copies of training volumes is above this beyond noise is held; null: no limit",
    )
    min_anatomy_share: float | None = Field(
        0.5,
        gt=0,
        le=1,
        description="a first champion needs this share of samples that could be a chest: held where it has fewer beyond noise; "
        "null: no limit",
    )
    drift: DriftConfig = Field(
        default_factory=DriftConfig, description="limits of the gate that new scans have to pass"
    )

    @model_validator(mode="after")
    def _can_fire(self) -> "RetrainPolicy":
        """Refuse a policy by which no retraining would ever begin, and settings that nothing reads."""
        if self.min_new_volumes is None and self.min_new_share is None and self.max_days is None:
            raise ValueError(
                "this policy can never fire: min_new_volumes, min_new_share and max_days are all null, so no retraining is ever "
                "due. Set one of them."
            )
        if (self.margin is None) == (self.promote == "not_worse_with_more_patients"):
            raise ValueError(
                f"margin is {self.margin} with promote: {self.promote}; it is needed with not_worse_with_more_patients (such as "
                "0.01), and says nothing otherwise: leave it out"
            )
        if self.start == "scratch" and self.warm_steps_share != 1.0:
            raise ValueError(
                f"warm_steps_share is {self.warm_steps_share} with start: scratch, where no training starts warm; leave it out"
            )
        return self
