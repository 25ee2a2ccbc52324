"""checkpoint.json: what the weights of a checkpoint are, so that they can be used without the configuration of their training."""

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from storage.documents.document import Document, Part


class Intensity(Part):
    """How HU map to the model's range; the fields are those of `prdit_models.intensity.HounsfieldWindow`."""

    lower_hu: float
    upper_hu: float
    model_lower: float
    model_upper: float
    mapping: str


class View(Part):
    """What a model sees of a volume: a box of `edge` level-0 voxels, pooled to `size`; `centre` (z, y, x), None for the middle.

    `more_edges` are those of other boxes that its training saw, too; left out of the file where there are none.
    """

    size: int
    edge: int
    centre: tuple[int, int, int] | None
    more_edges: tuple[int, ...] = ()

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key != "more_edges" or value}


class Labels(Part):
    """The label column of a training and what the model's integer labels mean, in order."""

    column: str
    values: tuple[str, ...]


class CoarseMask(Part):
    """The coarse mask that the model was shown beside its volumes: names of its channels, and the edge of its cells in voxels."""

    channels: tuple[str, ...]
    cell: int = Field(ge=1)


class Number(Part):
    """A number that conditions a model: what it is given is (value - mean) / std, and whether the value is known.

    Neither the smallest nor the largest value of the training volumes is recorded: it would be that of one patient.

    Attributes:
        name: of the column, or of a property of the scan.
        mean, std: of the training volumes of which it is known; of all volumes at all edges of the view.
    """

    name: str
    mean: float
    std: float = Field(gt=0)

    @property
    def range(self) -> tuple[float, float]:
        """Where the training's values lie, about: the mean and three standard deviations on both sides."""
        return self.mean - 3 * self.std, self.mean + 3 * self.std


class Category(Part):
    """A category that conditions a model: what it is given is 1 in the place of the value, and zeros.

    Attributes:
        name: of the column.
        values: of the training volumes, in order.
    """

    name: str
    values: tuple[str, ...] = Field(min_length=2)


class Gates(Part):
    """Losses of a training that gates compare; None where there is none or it is not finite.

    Attributes:
        first_loss, last_loss: training loss of the first step and mean over the last ones.
        val_loss, val_loss_ema: validation losses of the weights and of their EMA.
        val_loss_ema_parts: parts of the EMA's validation loss, by name.
    """

    first_loss: float | None
    last_loss: float | None
    val_loss: float | None
    val_loss_ema: float | None
    val_loss_ema_parts: dict[str, float]


class Average(Part):
    """A post-hoc average: relative width, optimiser step it is of (None: the last), coefficient by snapshot file."""

    sigma_rel: float
    updates: int | None
    shares: dict[str, float]


class Imported(Part):
    """Where an imported checkpoint comes from, and what its file did not state.

    Attributes:
        variant: arithmetic: `prdit`, `fm`, `sr` or `tf`.
        model_name: as stored in the file; empty where it stores none.
        source_sha256: of the file.
        substituted: set of weights that the file lacks, replaced by the other; empty where it has both.
        epoch: of the training.
        dataset: published data set that was assumed; None where the file states all of it.
        per_scan_intensity: whether each training scan was scaled by itself.
    """

    variant: str
    model_name: str
    source_sha256: str
    substituted: str
    epoch: int
    dataset: str | None
    per_scan_intensity: bool


class Checkpoint(Document):
    """Description of a checkpoint's weights.

    Attributes:
        family: name of the model family.
        model: description of the model, by its family.
        process: name and settings of the process it was trained with; None for a family without one.
        intensity, view: what it was trained on.
        axes: order of the model's axes: `zyx` as in the store, `xyz` for published LIDC models.
        spacing_mm: voxel distance of the training store's level 0.
        step: optimiser steps of the weights.
        seed: of the training.
        gates: losses; None where the weights were not measured (imported, averaged).
        labels, conditions, mask, average, imported: only of a model with labels, of one with conditions (in the order of its
            inputs), of one with a mask, of an average, of an import; left out of the file otherwise.
    """

    FORMAT: ClassVar[int] = 2
    NAME: ClassVar[str] = "checkpoint.json"
    WHAT: ClassVar[str] = "checkpoint description"
    REMEDY: ClassVar[str] = "Train the stage again, or import the checkpoint again."

    family: str
    model: dict[str, Any]
    process: dict[str, Any] | None
    intensity: Intensity
    view: View
    axes: Literal["zyx", "xyz"]
    spacing_mm: float
    step: int
    seed: int
    gates: Gates | None
    labels: Labels | None = None
    conditions: tuple[Number | Category, ...] | None = None
    mask: CoarseMask | None = None
    average: Average | None = None
    imported: Imported | None = None

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        values = super().to_json()
        return {name: value for name, value in values.items() if value is not None or name not in _OPTIONAL}


_OPTIONAL = ("labels", "conditions", "mask", "average", "imported")
