"""state.json: what a stopped training needs to resume besides its arrays."""

from typing import ClassVar

from pydantic import field_validator

from storage.documents.document import Document, Part

GROUPS = frozenset({"model", "ema", "optimizer", "buffers"})


class BestValidation(Part):
    """The validation with the lowest EMA loss so far.

    Attributes:
        step: of the validation.
        loss: validation loss of the EMA weights.
        raw, ema: losses of both sets of weights, by name.
        files: SHA-256 of the files that hold the weights, by set.
    """

    step: int
    loss: float
    raw: dict[str, float]
    ema: dict[str, float]
    files: dict[str, str]


class TrainingPosition(Part):
    """Where a training stands.

    Attributes:
        step: of the loop.
        updates: optimiser steps taken.
        first_loss: of the first step; None before it.
        recent: training losses of the last steps.
        best: where the best weights are kept.
        snapshots: optimiser steps whose averages are written.
    """

    step: int
    updates: int
    first_loss: float | None
    recent: tuple[float, ...]
    best: BestValidation | None
    snapshots: tuple[int, ...]


class TrainingState(Document):
    """A position and the hashes of the arrays that belong to it.

    Attributes:
        position: where the training stands.
        files: SHA-256 of `<group>.safetensors` by group of arrays; those of `GROUPS` at least.
    """

    FORMAT: ClassVar[int] = 3
    NAME: ClassVar[str] = "state.json"
    WHAT: ClassVar[str] = "training state"
    REMEDY: ClassVar[str] = "Remove its folder, or leave it: it is not used."

    position: TrainingPosition
    files: dict[str, str]

    @field_validator("files")
    @classmethod
    def _all_groups(cls, files: dict[str, str]) -> dict[str, str]:
        if missing := sorted(GROUPS - files.keys()):
            raise ValueError(f"no arrays of {', '.join(missing)}")
        return files
