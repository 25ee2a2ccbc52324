"""What happens at the end of a flow run beside the run itself: a message to the people of the site, and whether it is tried again.

Only runs of deployments are attended so: whoever starts one in a terminal sees how it ends. Where no process is left to run a hook
(the run's and its worker's were killed together), the next run to start sends the message: `on_running`.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.states import Scheduled
from prefect.utilities.urls import url_for

from flows.automations import LOST
from flows.notify import NotifyConfig, Severity, notify
from flows.orphans import worker_lost, worker_watched
from flows.site import load_site
from storage.errors import ConfigError, LockedError, UserError
from storage.registry import RegistryUnavailableError

DAY_S = 24 * 3600.0
DAMAGED = "DamageError"  # how `maintenance` ends where it found damage
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
    if found and found.group(1) == DAMAGED:
        return  # `maintenance` has sent a message that says what is damaged
    why = found.group(1) if found else state.name
    _say(flow_run, "failure", f"{flow.name} failed ({why})", f"The page of the run says why. {_AGAIN}")


def on_crashed(flow: Any, flow_run: Any, state: Any) -> None:
    """A run's process was ended from outside; where its worker had died, the next worker goes on with the run."""
    if worker_lost() and _schedule_again(flow_run):
        text = "Its worker died. The run has saved what it did, and the next worker goes on with it by itself."
        _say(flow_run, "info", f"{flow.name} is scheduled again", text)
        return
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


def _schedule_again(flow_run: Any) -> bool:
    """What `Retry` on the page does; not for a run that a person was cancelling. Returns: whether it was done."""
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(flow_run.id)
        if any(state.type is StateType.CANCELLING for state in states[-2:]):
            return False
        again: State[Any] = Scheduled(message="Its worker died: the next one goes on from the last checkpoint.")
        client.set_flow_run_state(flow_run.id, again, force=True)
    return True


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
}  # arguments of `prefect.flow`; the body of the flow runs in `attended`


@contextmanager
def attended() -> Iterator[None]:
    """The body of a flow: an error that a retry cannot change is not retried, and a run in a terminal never; the worker is watched.

    A `UserError` says what a person has to do (but for a lock, and an MLflow that does not answer); a timeout would only be reached
    again. Prefect has conditions for the retries of tasks, not of flows: the run's own number of retries is set to 0.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    deployed = run is not None and run.deployment_id is not None
    try:
        with worker_watched() if deployed else nullcontext():
            yield
    except TerminationSignal:  # a cancelled run has no retries
        raise
    except BaseException as error:
        if run is not None and (_is_final(error) or not deployed):
            policy = run.empirical_policy.model_copy(update={"retries": 0})
            try:
                with get_client(sync_client=True) as client:
                    client.update_flow_run(run.id, empirical_policy=policy)
            except Exception as away:  # noqa: BLE001  # the run's own error is what has to be seen
                logger.warning("the run may be tried again in vain: Prefect does not answer (%s)", type(away).__name__)
        raise


def _is_final(error: BaseException) -> bool:
    """Whether a retry would come to the same: what a person has to correct, and a timeout, which is no Exception."""
    if isinstance(error, (RegistryUnavailableError, LockedError)):  # the server or the lock may be there the next time
        return False
    return isinstance(error, UserError) or not isinstance(error, Exception)
