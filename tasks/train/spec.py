"""What crosses into the training subprocess: one JSON file in, one reference out."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from storage import errors
from storage.artifacts import SCRATCH, Ref
from tasks.run.stage import Stage
from tasks.train.config import TrainingConfig

METRICS = "metrics.jsonl"
RESUME_STATES, BEST_WEIGHTS = "checkpoints", "best"  # folders of the scratch folder
TRAINER_LOCK = "trainer.lock"
RECIPE = 2
EXIT_FAILED = 1  # a fault; the log has its traceback
EXIT_REFUSED = 3  # with a `Refusal` as the last line
EXIT_STOPPED = 143  # 128 + SIGTERM: stopped as asked, state saved


def _points(directory: Path) -> list[dict[str, Any]]:
    """Every validation and the last training loss of a finished training: what a cached stage shows of its curves."""
    spool = directory / SCRATCH / METRICS  # with the times, where it still exists
    lines = (spool if spool.is_file() else directory / METRICS).read_text(encoding="utf-8").splitlines()
    points: list[dict[str, Any]] = [json.loads(line) for line in lines]
    last = max((index for index, point in enumerate(points) if "train/loss" in point), default=-1)
    return [point for index, point in enumerate(points) if "val/loss" in point or index == last]


def training_stage(name: str) -> Stage:
    """The stage of a training of a recipe, by the training's name."""
    return Stage(
        f"train-{name}",
        "checkpoint",
        RECIPE,
        files=(METRICS,),
        points=_points,
        figures=("train/loss", "val/loss", "val/loss_ema"),
        streams=True,
        section=f"recipe.{name}",
        resumable=(RESUME_STATES, BEST_WEIGHTS),
    )


class Refusal(BaseModel):
    """Why a training cannot be done, in one message: input it cannot use, or a disk that cannot be written.

    Attributes:
        error: class, of `storage.errors` where it is one of ours.
        message: what to do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: str
    message: str

    @classmethod
    def of(cls, error: errors.UserError) -> "Refusal":
        """What crosses back of an error."""
        return cls(error=type(error).__name__, message=str(error))

    @classmethod
    def find(cls, output: str) -> "Refusal | None":
        """The last one in the subprocess's output, below which a library may have printed; None where there is none."""
        for line in reversed(output.splitlines()):
            with suppress(ValidationError):
                return cls.model_validate_json(line)
        return None

    def as_error(self) -> errors.UserError:
        """As the parent raises it: our own class, or InputError for one that has its home elsewhere."""
        found = getattr(errors, self.error, None)
        kind = found if isinstance(found, type) and issubclass(found, errors.UserError) else errors.InputError
        return kind(self.message)


class TrainSpec(BaseModel):
    """Everything the subprocess needs for one training.

    Attributes:
        stage: name of its stage.
        config: its settings.
        snapshot, split: what it trains on.
        start: the checkpoint it starts from.
        directory: the stage's directory.
        provenance: what the artifact is committed with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    config: TrainingConfig
    snapshot: Ref
    split: Ref
    start: Ref | None = None
    directory: Path
    provenance: dict[str, Any]
