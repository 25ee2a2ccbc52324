"""What crosses into the training subprocess: one JSON file in, one reference out."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from storage.artifacts import Ref
from tasks.stage import Stage
from tasks.train.config import TrainGlobalConfig, TrainLocalConfig

LOCAL = Stage("train-local", "checkpoint-local", recipe=1)
GLOBAL = Stage("train-global", "checkpoint-global", recipe=1)

METRICS = "metrics.jsonl"
EXIT_BAD_INPUT = 3
EXIT_STOPPED = 143  # 128 + SIGTERM: stopped as asked, state saved


class TrainSpec(BaseModel):
    """One training, complete.

    Attributes:
        stage: `train-local` or `train-global`.
        config: its settings, as JSON (parsed again by `stage_config`).
        store, split: what it trains on.
        local: the stage-1 checkpoint, for stage 2.
        directory: the stage's directory.
        provenance: what the artifact is committed with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Literal["train-local", "train-global"]
    config: dict[str, Any]
    store: Ref
    split: Ref
    local: Ref | None = None
    directory: Path
    provenance: dict[str, Any]

    def stage_config(self) -> TrainLocalConfig | TrainGlobalConfig:
        """The typed configuration."""
        model = TrainLocalConfig if self.stage == LOCAL.name else TrainGlobalConfig
        return model.model_validate(self.config)
