"""The Prefect tasks of the training stages: one function, each stage under its own name."""

from prefect import task

from storage.artifacts import Ref
from tasks.orchestration import as_state, task_progress
from tasks.stage import RunContext, StageOutcome
from tasks.train.config import TrainConfig
from tasks.train.spec import GLOBAL, LOCAL, REFINER, training_of
from tasks.train.stage import train


def _train(store: Ref, split: Ref, config: TrainConfig, context: RunContext, below: Ref | None = None) -> StageOutcome:
    """Store, split and the checkpoint below (none for stage 1) -> checkpoint reference."""
    with task_progress(training_of(config).stage.name) as progress:
        return as_state(train(store, split, config, context, progress, below=below))


train_local_task = task(name=LOCAL.name, persist_result=False)(_train)
train_global_task = task(name=GLOBAL.name, persist_result=False)(_train)
train_refiner_task = task(name=REFINER.name, persist_result=False)(_train)
