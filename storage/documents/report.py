"""metrics.json: the figures of an evaluation."""

from typing import Any, ClassVar

from storage.documents.checkpoint import Intensity
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
    """The feature network of the distances.

    Attributes:
        extractor: name in the table of extractors.
        title: the network in words.
        digest: of its weights and of how volumes are put in: distances of different digests do not compare.
        random: whether its weights are random.
        width: length of a volume's features.
        input_size: voxels (D, H, W) that volumes are resized to; None: as they are.
        statement: what the distances can be compared with, one sentence.
    """

    extractor: str
    title: str
    digest: str
    random: bool
    width: int
    input_size: tuple[int, int, int] | None
    statement: str


class Report(Document):
    """What an evaluation measured.

    Attributes:
        figures: by name.
        references: the same figures of real volumes: one half of them against the other half (`floor`), and for the order test
            at most `num_references` of each half, as they are (`real`), `blurred` and `noised`; empty where there were too few.
        blind: figures that do not order the references, with a sentence.
        warnings: sentences to read before the figures.
        details: further JSON of each metric, by the metric's name.
        features: of the distances.
        protocol: what was compared with what.
        intensity: to which values both sides are saturated.
        volume_size, voxel_mm: of the compared volumes.
        sampler: how the samples were drawn.
        clipped_fraction_mean, outside_window_fraction_mean: of the samples' voxels.
        notes: figures that the number of volumes rules out.
        n_real, n_held_out, n_generated: number of volumes.
    """

    FORMAT: ClassVar[int] = 4
    NAME: ClassVar[str] = "metrics.json"
    WHAT: ClassVar[str] = "report of an evaluation"
    REMEDY: ClassVar[str] = "Evaluate the samples again."

    figures: dict[str, FigureRecord]
    references: dict[str, dict[str, FigureRecord]]
    blind: dict[str, str]
    warnings: list[str]
    details: dict[str, Any]
    features: Features
    protocol: str
    intensity: Intensity
    volume_size: int
    voxel_mm: float
    sampler: SamplerSettings
    clipped_fraction_mean: float
    outside_window_fraction_mean: float
    notes: list[str]
    n_real: int
    n_held_out: int
    n_generated: int
