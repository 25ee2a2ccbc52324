"""Configuration of a post-hoc average."""

from pydantic import Field

from tasks.run.config import StageConfig


class AverageConfig(StageConfig):
    """Which average is made from a training's snapshots."""

    sigma_rel: float = Field(0.10, description="width of the average relative to the training's length")
    updates: int | None = Field(None, ge=1, description="optimiser step at which the average ends; default: the last")
