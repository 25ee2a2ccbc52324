"""Configuration of stage ingest."""

from typing import Literal

from pydantic import Field

from tasks.config import StageConfig


class IngestConfig(StageConfig):
    """The store's grid and what counts as a volume. Every field changes what a store holds."""

    spacing_mm: float = Field(1.0, gt=0, le=20, description="voxel distance of level 0 on every axis")
    num_levels: int = Field(3, ge=1, le=6, description="pyramid levels; level k averages blocks of 2**k voxels")
    interpolation: Literal["cubic", "linear"] = Field("cubic", description="cubic B-spline or linear, onto the grid")
    min_slices: int = Field(16, ge=2, description="a series with fewer slices is quarantined as too_few_slices")
