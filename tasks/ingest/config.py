"""Configuration of stage ingest."""

from typing import ClassVar, Literal

from pydantic import Field

from tasks.run.config import StageConfig


class IngestConfig(StageConfig):
    """The store's grid and what counts as a volume; then where the work is done and the secret of the patient keys."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"num_workers", "scheduler", "patient_key_file"})

    spacing_mm: float = Field(1.0, gt=0, le=20, description="voxel distance of level 0 on every axis")
    num_levels: int = Field(3, ge=1, le=6, description="pyramid levels; level k averages blocks of 2**k voxels")
    interpolation: Literal["cubic", "linear"] = Field("cubic", description="cubic B-spline or linear, onto the grid")
    min_slices: int = Field(16, ge=2, description="a series with fewer slices is quarantined as too_few_slices")
    nan: Literal["refuse", "air"] = Field(
        "refuse", description="voxels that are no finite number: refuse the scan, or air"
    )
    num_workers: int | None = Field(None, ge=1, description="processes; default by cores and memory")
    scheduler: str | None = Field(None, description="address of a running Dask scheduler; default: local processes")
    patient_key_file: str | None = Field(None, description="secret of the patient keys; default: <store>.patient-key")
