"""When a retraining is due, and what a challenger must show."""

from pydantic import BaseModel, ConfigDict


class RetrainPolicy(BaseModel):
    """A named policy (`flows/policies/<name>.yaml`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
