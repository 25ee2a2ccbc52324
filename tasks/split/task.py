"""The Prefect task of stage split."""

from prefect import task

from storage.artifacts import Ref
from tasks.orchestration import as_state
from tasks.split.config import SplitConfig
from tasks.split.stage import split_stage
from tasks.stage import RunContext, StageOutcome


@task(name="split", persist_result=False)
def split_task(store: Ref, config: SplitConfig, context: RunContext) -> StageOutcome:
    """Store reference -> split reference."""
    return as_state(split_stage(store, config, context))
