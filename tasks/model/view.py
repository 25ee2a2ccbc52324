"""What a model sees of a stored volume: a pooled box, with Hounsfield units mapped to the model's range."""

from typing import Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from prdit_models.intensity import HounsfieldWindow
from storage.volume_store import VolumeStore
from tasks.run.config import StageConfig

Shift = tuple[int, int, int]


class ViewConfig(StageConfig):
    """What part of a stored volume the model sees: a cubic box of level 0, pooled to `size`³ voxels."""

    size: int = Field(64, ge=4, description="edge of the model's volume in voxels")
    edge: int = Field(256, ge=8, description="edge of the box in level-0 voxels")
    centre: tuple[int, int, int] | None = Field(
        None, description="box centre (z, y, x) in level-0 voxels; default: the middle"
    )
    more_edges: tuple[int, ...] = Field(
        (),
        description="edges of other boxes that the training sees, too, pooled to the same size: one model for several voxel "
        "distances (docs/options.md, Conditions); default: none",
    )

    @model_validator(mode="after")
    def _whole_pooling(self) -> "ViewConfig":
        if self.edge % self.size:
            raise ValueError(
                f"view.size {self.size} does not divide view.edge {self.edge}: each model voxel must be the mean of a "
                "whole block. Choose sizes such as 256, 128, 64 or 32 for an edge of 256."
            )
        if wrong := [edge for edge in self.more_edges if edge < 1 or edge % self.size]:
            raise ValueError(
                f"view.size {self.size} does not divide view.more_edges {', '.join(map(str, wrong))}: each model voxel must be the "
                f"mean of a whole block. Choose multiples of {self.size}."
            )
        if len(set(self.edges)) < len(self.edges):
            raise ValueError(
                f"view.edge and view.more_edges are {', '.join(map(str, self.edges))}; name each edge once."
            )
        return self

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`more_edges` is left out where there are none, so that keys are those of before there were any."""
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key != "more_edges" or value}

    @property
    def edges(self) -> tuple[int, ...]:
        """Of all boxes, its own first."""
        return (self.edge, *self.more_edges)

    def at(self, edge: int) -> "ViewConfig":
        """The view of one of its boxes alone."""
        return self.model_copy(update={"edge": edge, "more_edges": ()})

    def voxel_mm(self, spacing_mm: float) -> float:
        """Voxel distance of what the model sees, for a store of `spacing_mm`."""
        return self.edge * spacing_mm / self.size


class IntensityConfig(StageConfig):
    """How Hounsfield units become what a model sees."""

    lower_hu: float = -1000.0
    upper_hu: float = 1000.0
    mapping: Literal["window", "published-lidc", "published-rad"] = Field(
        "window",
        description="window: [lower_hu, upper_hu] to [-1, 1], the same for every scan, values outside saturate; published-lidc and "
        "published-rad: scaled by each scan's own quantile and minimum as published, so that HU of samples are nominal",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "IntensityConfig":
        if not self.lower_hu < self.upper_hu:
            raise ValueError(f"intensity.lower_hu {self.lower_hu} must lie below intensity.upper_hu {self.upper_hu}")
        return self


def read_as_seen(
    store: VolumeStore, volume_id: str, view: ViewConfig, window: HounsfieldWindow, centre: Shift | None = None
) -> torch.Tensor:
    """A stored volume as a model sees it, in model range, shape (S, S, S), axes (z, y, x).

    A window is applied after pooling, so that stored coarse levels are read; mappings that follow the scan read it in full
    resolution, because the published quantiles were taken there.

    Args:
        store: opened store.
        volume_id: which volume.
        view: box and size.
        window: how HU become the model's range.
        centre: level-0 voxel (z, y, x) in the middle of the box; default: the view's.
    Raises: ValueError, MissingArtifactError, DamagedArtifactError: see `VolumeStore.read_view`.
    """
    middle = centre or view.centre
    if window.follows_scan:
        return window.of_scan(torch.from_numpy(store.read_view(volume_id, view.edge, view.edge, middle)), view.size)
    return window.to_model(torch.from_numpy(store.read_view(volume_id, view.size, view.edge, middle)))
