"""Configuration of stage split."""

from pydantic import Field

from tasks.run.config import StageConfig


class SplitConfig(StageConfig):
    """How patients are given roles."""

    val_fraction: float = Field(0.2, gt=0, lt=1, description="share of patients held out for validation")
    seed: int = Field(42, description="key of the hash that places new patients")
    name: str = Field("default", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="ledger of roles in the store")
