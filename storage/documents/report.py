"""metrics.json: the figures of an evaluation."""

from typing import Any, ClassVar

from storage.documents.document import Document, Part
from storage.documents.samples import SamplerSettings


class FigureRecord(Part):
    """One number; the fields are those of `prdit_models.metrics.metric.Figure`."""

    value: float | None
    n_real: int
    n_generated: int
    unit: str
    features: str | None
    interval: dict[str, Any] | None
    note: str


class Features(Part):
    """The feature network: name, kind of its weights, seed of random ones, digest, what its figures can be compared with."""

    network: str
    weights: str
    seed: int | None
    digest: str
    statement: str


class Report(Document):
    """What an evaluation measured.

    Attributes:
        figures: by name.
        warnings: sentences to read before the figures.
        details: further JSON of each metric, by the metric's name.
        features: of the distances.
        protocol: what was compared with what.
        volume_size, voxel_mm: of the compared volumes.
        sampler: how the samples were drawn.
        clipped_fraction_mean, outside_window_fraction_mean: of the samples' voxels.
        notes: figures that the number of volumes rules out.
        n_real, n_held_out, n_generated: number of volumes.
    """

    FORMAT: ClassVar[int] = 3
    NAME: ClassVar[str] = "metrics.json"
    WHAT: ClassVar[str] = "report of an evaluation"
    REMEDY: ClassVar[str] = "Evaluate the samples again."

    figures: dict[str, FigureRecord]
    warnings: list[str]
    details: dict[str, Any]
    features: Features
    protocol: str
    volume_size: int
    voxel_mm: float
    sampler: SamplerSettings
    clipped_fraction_mean: float
    outside_window_fraction_mean: float
    notes: list[str]
    n_real: int
    n_held_out: int
    n_generated: int
