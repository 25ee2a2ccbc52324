"""What crosses into the training subprocess: one JSON file in, one reference out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from storage.artifacts import Ref
from tasks.stage import Stage
from tasks.train.config import TrainConfig, TrainGlobalConfig, TrainLocalConfig, TrainRefinerConfig

LOCAL = Stage("train-local", "checkpoint-local", recipe=1)
GLOBAL = Stage("train-global", "checkpoint-global", recipe=1)
REFINER = Stage("train-refiner", "checkpoint-refiner", recipe=1)

METRICS = "metrics.jsonl"
EXIT_BAD_INPUT = 3
EXIT_STOPPED = 143  # 128 + SIGTERM: stopped as asked, state saved


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
