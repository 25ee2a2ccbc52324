"""samples.json: which volumes were drawn, from what and how."""

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from storage.documents.checkpoint import Intensity, View
from storage.documents.document import Document, Part


class SamplerSettings(Part):
    """How volumes were drawn; the settings are those of `SampleConfig`.

    Attributes:
        name: of the sampler.
        evaluations: of the model per volume.
        predictor_step: only of the predictor-corrector.
        process: name and settings; None for a family without one.
        label: value of the label column, or None.
    """

    name: str
    schedule: str
    num_steps: int
    evaluations: int
    predictor_step: int | None
    parametrization: str
    output: str
    label: str | None
    guidance_scale: float
    process: dict[str, Any] | None
    seed: int
    weights: Literal["ema", "raw"]
    precision: str


class Samples(Document):
    """The volumes of a sample store.

    Attributes:
        store: path of the sample store, relative to the artifact.
        volume_ids, seeds: of the volumes, in order.
        sampler: how they were drawn.
        clipped_fraction: share of voxels outside int16, per volume.
        outside_window_fraction: share of voxels outside the Hounsfield window, per volume.
        view, intensity: of the checkpoint.
        spacing_mm: voxel distance of the samples.
    """

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "samples.json"
    WHAT: ClassVar[str] = "list of samples"
    REMEDY: ClassVar[str] = "Sample the checkpoint again."

    store: str
    volume_ids: list[str]
    seeds: list[int]
    sampler: SamplerSettings
    clipped_fraction: list[float]
    outside_window_fraction: list[float]
    view: View
    intensity: Intensity
    spacing_mm: float

    @model_validator(mode="after")
    def _one_of_each_per_volume(self) -> "Samples":
        count = len(self.volume_ids)
        if not count == len(self.seeds) == len(self.clipped_fraction) == len(self.outside_window_fraction):
            raise ValueError("volume_ids, seeds and fractions differ in length")
        if not count:
            raise ValueError("it lists no volume")
        return self
