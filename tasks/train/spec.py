"""What crosses into the training subprocess: one JSON file in, one reference out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from storage.artifacts import SCRATCH, Kind, Ref
from tasks.stage import Stage
from tasks.train.config import TrainConfig, TrainGlobalConfig, TrainLocalConfig, TrainRefinerConfig

METRICS = "metrics.jsonl"
EXIT_BAD_INPUT = 3
EXIT_STOPPED = 143  # 128 + SIGTERM: stopped as asked, state saved


def _points(directory: Path) -> list[dict[str, Any]]:
    """Every validation and the last training loss of a finished training: what a found stage shows of its curves."""
    spool = directory / SCRATCH / METRICS  # with the times, where it is still there
    lines = (spool if spool.is_file() else directory / METRICS).read_text(encoding="utf-8").splitlines()
    points: list[dict[str, Any]] = [json.loads(line) for line in lines]
    last = max((index for index, point in enumerate(points) if "train/loss" in point), default=-1)
    return [point for index, point in enumerate(points) if "val/loss" in point or index == last]


def _stage(name: str, kind: Kind) -> Stage:
    return Stage(
        name,
        kind,
        recipe=1,
        files=(METRICS,),
        points=_points,
        figures=("train/loss", "val/loss", "val/loss_ema"),
        streams=True,
    )


LOCAL = _stage("train-local", "checkpoint-local")
GLOBAL = _stage("train-global", "checkpoint-global")
REFINER = _stage("train-refiner", "checkpoint-refiner")


@dataclass(frozen=True)
class Training:
    """What tells the training stages apart.

    Attributes:
        stage: identity.
        config: type of its settings.
        below: role of the checkpoint it starts from in its inputs, empty for stage 1.
        below_kinds: kinds that checkpoint may have.
    """

    stage: Stage
    config: type[TrainConfig]
    below: str
    below_kinds: tuple[str, ...]


TRAININGS = {
    training.stage.name: training
    for training in (
        Training(LOCAL, TrainLocalConfig, "", ()),
        Training(GLOBAL, TrainGlobalConfig, "local", ("checkpoint-local",)),
        Training(REFINER, TrainRefinerConfig, "base", ("checkpoint-global", "checkpoint-refiner")),
    )
}


def training_of(config: TrainConfig) -> Training:
    """The training whose settings these are."""
    return next(training for training in TRAININGS.values() if type(config) is training.config)


class TrainSpec(BaseModel):
    """One training, complete.

    Attributes:
        stage: name of the training.
        config: its settings, as JSON (parsed again by `stage_config`).
        store, split: what it trains on.
        below: the checkpoint it starts from: stage 1's for stage 2, the model to refine for stage 3.
        directory: the stage's directory.
        provenance: what the artifact is committed with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Literal["train-local", "train-global", "train-refiner"]
    config: dict[str, Any]
    store: Ref
    split: Ref
    below: Ref | None = None
    directory: Path
    provenance: dict[str, Any]

    @property
    def training(self) -> Training:
        """What this training is."""
        return TRAININGS[self.stage]

    def stage_config(self) -> TrainConfig:
        """The typed configuration."""
        return self.training.config.model_validate(self.config)
