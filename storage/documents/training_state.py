"""state.json: what a stopped training needs to resume besides its arrays."""

import json
from typing import Any, ClassVar, Self

from pydantic import field_validator, model_validator

from storage.documents.document import Document, Part
from storage.errors import DamagedArtifactError
from storage.files import sha256_json

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
        steps: of the whole training, as configured when this was written.
        updates: optimiser steps taken.
        first_loss: of the first step; None before it.
        recent: training losses of the last steps.
        best: where the best weights are kept.
        snapshots: optimiser steps whose averages are written.
        window: values of the steps since the last line, by name; None for one that is not finite.
        rewinds: how often the training went back to an earlier state.
        skipped: steps without an update, in all.
        skipped_in_a_row: the last of them, by turn.
        settings: digest of what the training computes, but for `steps`.
        snapshot: digest of the volumes it is trained on.
        world: ranks that wrote it.
        seconds: of the steps that led here, without validation and what else stands between them; of states before they were
            counted: 0.
    """

    step: int
    steps: int
    updates: int
    first_loss: float | None
    recent: tuple[float, ...]
    best: BestValidation | None
    snapshots: tuple[int, ...]
    window: tuple[dict[str, float | None], ...]
    rewinds: int
    skipped: int
    skipped_in_a_row: dict[str, int]
    settings: str
    snapshot: str
    world: int
    seconds: float


class TrainingState(Document):
    """A position and the hashes of the arrays that belong to it.

    Attributes:
        position: where the training stands.
        files: SHA-256 of `<group>.safetensors` by group of arrays; those of `GROUPS` at least.
        digest: SHA-256 of the two, as `TrainingState.of` gives it: a flipped bit in a number would not show otherwise.
    """

    FORMAT: ClassVar[int] = 5
    NAME: ClassVar[str] = "state.json"
    WHAT: ClassVar[str] = "training state"
    REMEDY: ClassVar[str] = "Remove its folder, or leave it: it is not used."

    position: TrainingPosition
    files: dict[str, str]
    digest: str

    @classmethod
    def of(cls, position: TrainingPosition, files: dict[str, str]) -> Self:
        """The state of a position whose arrays have these hashes."""
        return cls(position=position, files=files, digest=_digest(position, files))

    @classmethod
    def parse(cls, data: bytes, where: str) -> Self:
        """As `Document.parse`; also damaged where one byte is not as it was written."""
        state = super().parse(data, where)
        if state.to_bytes() != data and _version(data) == cls.FORMAT:
            raise DamagedArtifactError(f"{where} was changed after it was written. {cls.remedy(where)}")
        return state

    @classmethod
    def upgraded(cls, values: dict[str, Any], version: int, where: str) -> dict[str, Any]:
        """States of format 4 had no seconds; their digest is checked before they get any."""
        position, files = values.get("position"), values.get("files")
        if version != 4 or not isinstance(position, dict) or not isinstance(files, dict):
            return super().upgraded(values, version, where)
        if "seconds" in position or values.get("digest") != sha256_json({"position": position, "files": files}):
            raise DamagedArtifactError(f"{where} was changed after it was written. {cls.remedy(where)}")
        counted = position | {"seconds": 0.0}
        return values | {"position": counted, "digest": sha256_json({"position": counted, "files": files})}

    @field_validator("files")
    @classmethod
    def _all_groups(cls, files: dict[str, str]) -> dict[str, str]:
        if missing := sorted(GROUPS - files.keys()):
            raise ValueError(f"no arrays of {', '.join(missing)}")
        return files

    @model_validator(mode="after")
    def _undamaged(self) -> Self:
        if self.digest != _digest(self.position, self.files):
            raise ValueError("its digest is not that of its content, which was changed after it was written")
        return self


def _version(data: bytes) -> object:
    return json.loads(data)["format_version"]


def _digest(position: TrainingPosition, files: dict[str, str]) -> str:
    return sha256_json({"position": position.model_dump(mode="json"), "files": files})
