"""A stage as a Prefect task: its progress artifact, and a state that says when the stage was cached."""

import base64
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect import task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext
from prefect.states import Completed

from tasks.run.private import without_paths
from tasks.run.progress import Advance, Pace, show_progress
from tasks.run.stage import StageOutcome

_UPDATE_S = 2.0  # each update is a request to the server of about 10 ms
logger = logging.getLogger("prdit.progress")


@contextmanager
def task_progress(name: str) -> Iterator[Advance]:
    """`advance(done, total)` that also keeps a Prefect progress artifact up to date inside a task run.

    The artifact appears with the first report: a stage found in the cache has none.
    """
    tracked = TaskRunContext.get() is not None
    artifact: Any = None
    last, pace = 0.0, Pace()

    def report(done: int, total: int) -> None:
        nonlocal artifact, last
        now = time.monotonic()
        left = pace.text(done, total, now)
        if not tracked or (now - last < _UPDATE_S and done != total):
            return
        last = now
        percent, text = min(100.0, 100.0 * done / max(total, 1)), f"{done} of {total}{left}"
        try:
            if artifact is None:
                artifact = create_progress_artifact(progress=percent, key=f"prdit-{name}", description=text)
            else:
                update_progress_artifact(artifact_id=artifact, progress=percent, description=text)
        except Exception as error:  # noqa: BLE001  # a progress bar must never end a training
            logger.warning("the progress artifact of %s was not updated: %s", name, error)

    with show_progress(name, also=report) as advance:
        yield advance


def publish_table(name: str, rows: list[dict[str, Any]]) -> None:
    """Show rows as a Prefect table artifact `prdit-<name>-table` of the task run; outside a task run nothing happens."""
    if TaskRunContext.get() is not None:
        _publish(name, "table", create_table_artifact, key=f"prdit-{name}-table", table=rows)


def publish_flow_table(name: str, rows: list[dict[str, Any]], about: str) -> None:
    """Show rows as a Prefect table artifact `prdit-<name>` of the flow run, with a description; outside one nothing happens."""
    if FlowRunContext.get() is not None:
        _publish(name, "table", create_table_artifact, key=f"prdit-{name}", table=rows, description=about)


def publish_picture(name: str, jpeg: bytes, caption: str) -> None:
    """Show a picture as Prefect artifact `prdit-<name>-picture` of the task run; outside a task run nothing happens.

    Args:
        name: of the stage.
        jpeg: the picture, small: it is stored in Prefect's database.
        caption: a line below it.
    """
    data = base64.b64encode(jpeg).decode()
    markdown = f"![{caption}](data:image/jpeg;base64,{data})\n\n{caption}"
    if TaskRunContext.get() is not None:
        _publish(name, "picture", create_markdown_artifact, key=f"prdit-{name}-picture", markdown=markdown)


def _publish(name: str, what: str, create: Callable[..., Any], **content: Any) -> None:
    """Make an artifact; a server that refuses it is only warned of."""
    try:
        create(**content)
    except Exception as error:  # noqa: BLE001  # an artifact must never end a stage
        logger.warning("the %s artifact of %s was not made: %s", what, name, error)


def as_state(outcome: StageOutcome) -> Any:
    """The task's final state: `Cached` where a verified artifact was used, `Completed` where the stage ran."""
    name = "Cached" if outcome.cached else "Completed"
    return Completed(
        name=name, message=f"{outcome.ref.kind} {outcome.ref.digest[:19]} in {outcome.seconds:.1f} s", data=outcome
    )


def run_as_task(name: str, work: Callable[[Advance], StageOutcome], *, source: str | None = None) -> StageOutcome:
    """Run a stage as a task run of its name, which shows its progress; what it raises is raised here.

    Args:
        name: of the stage.
        work: the stage, given where to report progress.
        source: folder that neither logs nor the task's state name.
    """

    @task(name=name, persist_result=False, cache_policy=NO_CACHE)  # the stage has a cache of its own
    def stage() -> Any:
        with without_paths(source), task_progress(name) as progress:
            return as_state(work(progress))

    outcome: StageOutcome = stage(return_state=True).result()
    return outcome
