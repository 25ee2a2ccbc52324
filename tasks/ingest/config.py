"""Configuration of stage ingest."""

from dataclasses import fields
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from storage.documents.volume import Grid
from storage.places import as_folder
from storage.privacy import beside_store
from storage.sources.npz import SPACING_MM
from storage.sources.source import Limits
from tasks.run.config import StageConfig


class IngestConfig(StageConfig):
    """The store's grid and what counts as a volume; then the secret of the patient keys."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"patient_key_file"})

    spacing_mm: float = Field(1.0, gt=0, le=20, description="voxel distance of level 0 on every axis")
    num_levels: int = Field(3, ge=1, le=6, description="pyramid levels; level k averages blocks of 2**k voxels")
    interpolation: Literal["cubic", "linear"] = Field("cubic", description="cubic B-spline or linear, onto the grid")
    min_slices: int = Field(16, ge=2, description="a series with fewer slices is quarantined as too_few_slices")
    min_length_mm: float = Field(150.0, ge=0, description="least extent along the head-foot axis; less is too_short")
    min_width_mm: float = Field(200.0, ge=0, description="least extent along both other axes; less is too_narrow")
    max_slice_mm: float = Field(10.0, gt=0, description="largest slice distance; more is thick_slices")
    max_jitter: float = Field(
        0.1, ge=0, lt=0.5, description="how far slices may lie from even positions, as a share of the slice distance"
    )
    max_hu: float = Field(30719.0, gt=3000, description="larger values are no HU: fill where they are a region")
    excluded_body_parts: tuple[str, ...] = Field(
        ("HEAD", "BRAIN", "SKULL", "NECK", "PELVIS", "EXTREMITY", "LEG", "KNEE", "FOOT", "ANKLE", "HIP", "ARM", "ELBOW", "HAND",
         "WRIST", "SHOULDER", "JAW", "EAR", "EYE"),
        description="BodyPartExamined that are skipped as other_body_part",
    )  # fmt: skip
    npz_spacing_mm: float = Field(
        SPACING_MM, gt=0, le=10, description="voxel distance on every axis of .npz, which say nothing of it"
    )
    nan: Literal["refuse", "air"] = Field(
        "refuse", description="voxels that are no finite number: refuse the scan, or air"
    )
    archives: bool = Field(True, description="zip and tar archives are read as if they were folders, one level deep")
    patient_key_file: str | None = Field(None, description="secret of the patient keys; default: <store>.patient-key")

    @field_validator("patient_key_file")
    @classmethod
    def _is_here(cls, value: str | None) -> str | None:
        if value is not None:
            as_folder(value, "the key file")
        return value

    @property
    def limits(self) -> Limits:
        """What counts as a volume, as a source format takes it."""
        return Limits(**{field.name: getattr(self, field.name) for field in fields(Limits)})

    @property
    def grid(self) -> Grid:
        """The grid of the store."""
        return Grid(spacing_mm=self.spacing_mm, num_levels=self.num_levels, interpolation=self.interpolation)

    def key_file(self, store: Path) -> Path:
        """Where the secret of a store's patient keys is."""
        return Path(self.patient_key_file or beside_store(store, ".patient-key"))
