"""What crosses between a stage and the ranks of its training: one JSON file in, one out."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from storage import errors
from storage.artifacts import SCRATCH, Ref
from storage.files import naming_path, write_text_atomic
from tasks.run.stage import Stage
from tasks.train.config import TrainingConfig
from tasks.train.point_log import read_points

METRICS = "metrics.jsonl"
RESUME_STATES, BEST_WEIGHTS, PREVIEWS = "checkpoints", "best", "samples"  # folders of the scratch folder
RECIPE = 3


def _points(directory: Path) -> list[dict[str, Any]]:
    """Every validation and the last training loss of a finished training: what a cached stage shows of its curves."""
    spool = directory / SCRATCH / METRICS  # with the times, where it still exists
    points = read_points(spool if spool.is_file() else directory / METRICS)
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

    def as_error(self) -> errors.UserError:
        """As the parent raises it: our own class, or InputError for one that has its home elsewhere."""
        found = getattr(errors, self.error, None)
        kind = found if isinstance(found, type) and issubclass(found, errors.UserError) else errors.InputError
        return kind(self.message)


class Outcome(BaseModel):
    """How a launch of a training ended, written by one of its ranks; without one it was killed, or failed.

    Attributes:
        ref: the checkpoint, where it came to its end.
        refusal: why it cannot be done.
        fault: what went wrong that would go wrong again; the log has its traceback.
        stopped_at: step whose state was saved when it was asked to stop.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ref: Ref | None = None
    refusal: Refusal | None = None
    fault: str | None = None
    stopped_at: int | None = None

    def save(self, scratch: Path, token: int) -> None:
        """Write it for the launch of this number. Raises: UnwritableError."""
        write_text_atomic(_outcome_file(scratch, token), self.model_dump_json())

    @classmethod
    def forget_stop(cls, scratch: Path, token: int) -> None:
        """Remove that of a launch that was stopped and goes on: should it be lost later, it was not stopped then."""
        found = cls.find(scratch, token)
        if found is not None and found.stopped_at is not None:
            _outcome_file(scratch, token).unlink(missing_ok=True)

    @classmethod
    def forget(cls, scratch: Path, token: int) -> None:
        """Remove that of an earlier launch of this number: they begin anew where `lease/` was removed. Raises: UnwritableError."""
        path = _outcome_file(scratch, token)
        with naming_path(path):
            path.unlink(missing_ok=True)

    @classmethod
    def find(cls, scratch: Path, token: int) -> "Outcome | None":
        """That of a launch; None where it has none. Raises: DamagedArtifactError."""
        path = _outcome_file(scratch, token)
        try:
            return cls.model_validate_json(path.read_bytes()) if path.is_file() else None
        except ValueError as error:
            raise errors.DamagedArtifactError(
                f"{path} is damaged: how launch {token} of the training ended is not known. Run it again: it resumes."
            ) from error


def _outcome_file(scratch: Path, token: int) -> Path:
    return scratch / f"outcome-{token}.json"


class TrainSpec(BaseModel):
    """Everything the ranks need for one training.

    Attributes:
        stage: name of its stage.
        config: its settings.
        snapshot, split: what it trains on.
        start: the checkpoint it starts from.
        initial: checkpoint of an earlier training like this one, with whose weights it begins; None: with fresh ones.
        directory: the stage's directory.
        provenance: what the artifact is committed with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    config: TrainingConfig
    snapshot: Ref
    split: Ref
    start: Ref | None = None
    initial: Ref | None = None
    directory: Path
    provenance: dict[str, Any]
