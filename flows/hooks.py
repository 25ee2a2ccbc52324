"""What happens at the end of a flow run beside the run itself: a message to the people of the site, and whether it is tried again.

Only runs of deployments are attended so: whoever starts one in a terminal sees how it ends. Where no process is left to run a hook
(the run's and its worker's were killed together), the next run to start sends the message: `on_running`.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRunPolicy, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.utilities.urls import url_for

from flows.automations import LOST
from flows.notify import NotifyConfig, Severity, notify
from flows.site import load_site
from storage.errors import ConfigError, UserError

DAY_S = 24 * 3600.0
HELD = "Held"  # name of the Completed state of a run that waits for a person

_REPORTED = "crash-reported"  # tag of a run
_KIND = re.compile(r"exception: (\w+)")
_AGAIN = (
    "What is finished is kept: `Retry` on its page, or `prefect flow-run retry {id}`, goes on from the last checkpoint."
)
logger = logging.getLogger("prdit.notify")


def on_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """A run has failed, and is not tried again."""
    found = _KIND.search(state.message or "")
    why = found.group(1) if found else state.name
    _say(flow_run, "failure", f"{flow.name} failed ({why})", f"The page of the run says why. {_AGAIN}")


def on_crashed(flow: Any, flow_run: Any, state: Any) -> None:
    """A run's process was ended from outside."""
    what = "Its process was ended: killed, out of memory, or with the services or the machine."
    _say(flow_run, "failure", f"{flow.name} crashed", f"{what} {_AGAIN}")


def on_cancellation(flow: Any, flow_run: Any, state: Any) -> None:
    """A person has cancelled a run."""
    _say(flow_run, "info", f"{flow.name} was cancelled", _AGAIN)


def on_completion(flow: Any, flow_run: Any, state: Any) -> None:
    """A run is complete; where it is held, a person has to decide."""
    if state.name == HELD:
        text = (
            f"{state.message or 'New scans are held.'} `prdit inbox ls` says what is held and why, and how to decide."
        )
        _say(flow_run, "attention", f"{flow.name}: new scans are held", text)


def on_running(flow: Any, flow_run: Any, state: Any) -> None:
    """Report runs that the server found dead: nobody was left to say so. Each is reported once, and has a tag then."""
    if flow_run.deployment_id is None:
        return
    crashed = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED]))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=crashed), sort=FlowRunSort.END_TIME_DESC, limit=20
        )
        for lost in runs:
            if lost.state and (lost.state.message or "").startswith(LOST) and _REPORTED not in lost.tags:
                client.update_flow_run(lost.id, tags=[*lost.tags, _REPORTED])
                what = "Neither it nor its worker was left: both were killed, or the machine was off."
                _say(lost, "failure", "a run's process died", f"{what} {_AGAIN}")


def _say(flow_run: Any, severity: Severity, subject: str, text: str) -> None:
    """A message on a deployment's run, with its page."""
    if flow_run.deployment_id is None:
        return
    page = url_for(flow_run)
    lines = [f"Run {flow_run.name}: {text.replace('{id}', str(flow_run.id))}", *([page] if page else [])]
    notify(_notify_config(), severity, subject, "\n".join(lines))


def _notify_config() -> NotifyConfig:
    try:
        return load_site().notify
    except ConfigError as error:
        logger.error("messages go to the log alone: %s", error)
        return NotifyConfig()


ATTENDED: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": 60,
    "on_running": [on_running],
    "on_failure": [on_failure],
    "on_crashed": [on_crashed],
    "on_cancellation": [on_cancellation],
    "on_completion": [on_completion],
}  # arguments of `prefect.flow`; the body runs in `retried_where_it_helps`


@contextmanager
def retried_where_it_helps() -> Iterator[None]:
    """In this block, errors that a retry cannot change, and runs in a terminal, are not retried by Prefect.

    A `UserError` says what a person has to do; a timeout would only be reached again. Prefect has conditions for the retries of
    tasks, not of flows: the run's own number of retries is set to 0.
    """
    try:
        yield
    except TerminationSignal:  # a cancelled run has no retries
        raise
    except BaseException as error:
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            raise
        final = isinstance(error, UserError) or not isinstance(error, Exception)  # a timeout is none
        if final or context.flow_run.deployment_id is None:
            policy = context.flow_run.empirical_policy or FlowRunPolicy()
            with get_client(sync_client=True) as client:
                client.update_flow_run(context.flow_run.id, empirical_policy=policy.model_copy(update={"retries": 0}))
        raise
