"""samples.json: which volumes were drawn, from what and how."""

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from storage.documents.checkpoint import Intensity, View
from storage.documents.document import Document, Part
from storage.documents.snapshot import Digest


class GivenMask(Part):
    """Where the coarse mask came from that volumes were drawn for: a file, or a volume of the training's snapshot.

    Attributes:
        format: `labels`, or that of a scan; empty for a volume.
        files_digest: of the file or files; None for a volume.
        volume_id: of the volume; empty for a file.
    """

    format: str = ""
    files_digest: Digest | None = None
    volume_id: str = ""


class SamplerSettings(Part):
    """How volumes were drawn; the settings are those of `SampleConfig`.

    Attributes:
        name: of the sampler.
        evaluations: of the model per volume.
        predictor_step: only of the predictor-corrector.
        process: name and settings; None for a family without one.
        label: value of the label column, or None.
        conditions: what else the volumes should be like, by name; left out of the file where nothing was asked for.
        mask: the coarse mask they were drawn for; left out of the file where there was none.
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
    conditions: dict[str, float | str] = Field(default_factory=dict)
    mask: GivenMask | None = None

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key not in ("conditions", "mask") or value}


class Guided(Part):
    """What volumes were drawn towards: a measurement, by a guide.

    Attributes:
        measurement: its digest.
        guide: name of the guide.
        strength: of it; 0: the volumes are those that would be drawn without one.
        settings: further ones of the guide.
    """

    measurement: Digest
    guide: str
    strength: float
    settings: dict[str, Any] = Field(default_factory=dict)


class Verdict(Part):
    """Whether a volume could be a chest.

    Attributes:
        plausible: None where it is not judged, because the view shows no whole chest.
        failed: names of the anatomy figures outside their limits.
        figures: anatomy figures by name (docs/anatomy.md); None where one is not defined.
    """

    plausible: bool | None = None
    failed: list[str] = Field(default_factory=list)
    figures: dict[str, float | None] = Field(default_factory=dict)


class Redraw(Part):
    """The policy by which volumes were drawn again.

    Attributes:
        most: so often a volume may be drawn again; 0: never.
        judged: whether one that could be no chest is drawn again, or only one that is not finite.
        num_redrawn: volumes that were drawn more than once.
        tries: drawings of each volume, in the order of `Samples.volume_ids`.
    """

    most: int
    judged: bool
    num_redrawn: int
    tries: list[int]


class Excluded(Part):
    """A volume that was asked for and is not there.

    Attributes:
        index: its number.
        seed: of its last drawing.
        tries: drawings.
        reason: code, `not_finite`.
        sentence: what was found.
    """

    index: int
    seed: int
    tries: int
    reason: str
    sentence: str


class Samples(Document):
    """The volumes of a sample store.

    Attributes:
        store: path of the sample store, relative to the artifact.
        num_asked: volumes that were asked for; those that are not there are in `excluded`.
        volume_ids, seeds: of the volumes, in order; the seed is that of the drawing which was kept.
        sampler: how they were drawn.
        clipped_fraction: share of voxels outside int16, per volume.
        outside_window_fraction: share of voxels outside the Hounsfield window, which saturate, per volume.
        verdicts: per volume.
        redraw: what was drawn again.
        excluded: what is missing, with reasons.
        view, intensity: of the checkpoint; the view's edge is that of the samples.
        spacing_mm: voxel distance of the samples.
        guided: what they were drawn towards; None: nothing.
        warnings: sentences for whoever uses them, such as that a condition lies far from the training's values.
    """

    FORMAT: ClassVar[int] = 2
    NAME: ClassVar[str] = "samples.json"
    WHAT: ClassVar[str] = "list of samples"
    REMEDY: ClassVar[str] = "Sample the checkpoint again."

    store: str
    num_asked: int
    volume_ids: list[str]
    seeds: list[int]
    sampler: SamplerSettings
    clipped_fraction: list[float]
    outside_window_fraction: list[float]
    verdicts: list[Verdict]
    redraw: Redraw
    excluded: list[Excluded]
    view: View
    intensity: Intensity
    spacing_mm: float
    guided: Guided | None = None
    warnings: list[str] = Field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The content of the file; samples that were drawn freely, or without a warning, do not say so."""
        return {key: value for key, value in super().to_json().items() if key not in ("guided", "warnings") or value}

    @classmethod
    def upgraded(cls, values: dict[str, Any], version: int, where: str) -> dict[str, Any]:
        """Samples of format 1 were drawn once and not judged."""
        ids = values.get("volume_ids")
        if version != 1 or not isinstance(ids, list):
            return super().upgraded(values, version, where)
        redraw = {"most": 0, "judged": False, "num_redrawn": 0, "tries": [1] * len(ids)}
        return values | {"num_asked": len(ids), "verdicts": [{} for _ in ids], "redraw": redraw, "excluded": []}

    @model_validator(mode="after")
    def _one_of_each_per_volume(self) -> "Samples":
        of_each = (self.seeds, self.clipped_fraction, self.outside_window_fraction, self.verdicts, self.redraw.tries)
        if {len(values) for values in of_each} != {len(self.volume_ids)}:
            raise ValueError("volume_ids, seeds, fractions, verdicts and tries differ in length")
        if len(self.volume_ids) + len(self.excluded) != self.num_asked:
            raise ValueError(
                f"num_asked is {self.num_asked}, and it has {len(self.volume_ids)} volumes and {len(self.excluded)} exclusions"
            )
        if not self.volume_ids:
            raise ValueError("it lists no volume")
        return self
