"""The Prefect task of stage ingest."""

from pathlib import Path

from prefect import task

from tasks.ingest.config import IngestConfig
from tasks.ingest.stage import ingest_stage
from tasks.orchestration import as_state, task_progress
from tasks.stage import RunContext, StageOutcome


@task(name="ingest", persist_result=False)
def ingest_task(
    source: str,
    store: str,
    config: IngestConfig,
    context: RunContext,
    num_workers: int | None,
    patient_key_file: str | None,
) -> StageOutcome:
    """Folder of scans -> store reference."""
    with task_progress("ingest") as progress:
        outcome = ingest_stage(
            Path(source),
            Path(store),
            config,
            context,
            progress,
            num_workers=num_workers,
            patient_key_file=Path(patient_key_file) if patient_key_file else None,
        )
    return as_state(outcome)
