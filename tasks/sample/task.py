"""The Prefect task of stage sample."""

from prefect import task

from storage.artifacts import Ref
from tasks.orchestration import as_state, task_progress
from tasks.sample.config import SampleConfig
from tasks.sample.stage import sample_stage
from tasks.stage import RunContext, StageOutcome


@task(name="sample", persist_result=False)
def sample_task(checkpoint: Ref, config: SampleConfig, context: RunContext) -> StageOutcome:
    """Checkpoint reference -> samples reference."""
    with task_progress("sample") as progress:
        return as_state(sample_stage(checkpoint, config, context, progress))
