"""The Prefect task of stage evaluate."""

from prefect import task

from storage.artifacts import Ref
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.stage import evaluate_stage
from tasks.orchestration import as_state, task_progress
from tasks.stage import RunContext, StageOutcome


@task(name="evaluate", persist_result=False)
def evaluate_task(samples: Ref, store: Ref, split: Ref, config: EvaluateConfig, context: RunContext) -> StageOutcome:
    """Samples, store and split references -> report reference."""
    with task_progress("evaluate") as progress:
        return as_state(evaluate_stage(samples, store, split, config, context, progress))
