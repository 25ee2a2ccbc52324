"""The Prefect tasks of the training stages."""

from prefect import task

from storage.artifacts import Ref
from tasks.orchestration import as_state, task_progress
from tasks.stage import RunContext, StageOutcome
from tasks.train.config import TrainGlobalConfig, TrainLocalConfig, TrainRefinerConfig
from tasks.train.stage import train


@task(name="train-local", persist_result=False)
def train_local_task(store: Ref, split: Ref, config: TrainLocalConfig, context: RunContext) -> StageOutcome:
    """Store and split -> local checkpoint reference."""
    with task_progress("train-local") as progress:
        return as_state(train(store, split, config, context, progress))


@task(name="train-global", persist_result=False)
def train_global_task(
    store: Ref, split: Ref, local: Ref, config: TrainGlobalConfig, context: RunContext
) -> StageOutcome:
    """Store, split and local checkpoint -> global checkpoint reference."""
    with task_progress("train-global") as progress:
        return as_state(train(store, split, config, context, progress, below=local))


@task(name="train-refiner", persist_result=False)
def train_refiner_task(
    store: Ref, split: Ref, base: Ref, config: TrainRefinerConfig, context: RunContext
) -> StageOutcome:
    """Store, split and the checkpoint to refine -> refiner's checkpoint reference."""
    with task_progress("train-refiner") as progress:
        return as_state(train(store, split, config, context, progress, below=base))
