"""The Prefect task of stage ingest."""

from pathlib import Path

from prefect import task

from tasks.ingest.config import IngestConfig
from tasks.ingest.stage import ingest_stage
from tasks.orchestration import as_state, task_progress
from tasks.stage import RunContext, StageOutcome


@task(name="ingest", persist_result=False)
def ingest_task(source: str, store: str, config: IngestConfig, context: RunContext) -> StageOutcome:
    """Folder of scans -> store reference."""
    with task_progress("ingest") as progress:
        return as_state(ingest_stage(Path(source), Path(store), config, context, progress))
