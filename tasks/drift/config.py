"""Limits of the drift gate."""

from pydantic import BaseModel, ConfigDict


class DriftConfig(BaseModel):
    """Limits of the drift gate, each printed in its finding."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
