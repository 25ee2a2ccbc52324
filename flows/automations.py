"""What Prefect's server does by itself: runs whose process died, runs that never started, and how many run at once.

The triggers of deployments are in prefect.yaml. Limits are those of the work pool and of its queues, which count the runs that are
Pending or Running: they hold when a worker or the server was killed. Limits of deployments are not used: they are per deployment
(new scans and the nightly run are two), and their leases are in the memory of the server, whose restart would cancel what runs.
"""

import contextlib
import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psutil

from flows.services import WORK_POOL, ServiceError, Services, call_api

RETRAIN_QUEUE = "retrain"
SILENCE_S = 150.0  # five heartbeats of 30 s: with a restart of the server in between, and in three minutes all the same
LOST = "No heartbeat: the process of this run died."  # the message of such a run's state begins with it

_ALIVE = "prefect.flow-run.heartbeat"
_WAITING = ("Pending", "Submitting")
_BEGUN = ("Running", "Retrying", "Rerunning")
_OVER = ("Completed", "Failed", "TimedOut", "Crashed", "Cancelled")
_OVER_RETRAIN = ("Held", "Nothing new", "Waiting", "Promoted", "Challenger held")  # names of its Completed
_LATER = ("Scheduled", "Late", "AwaitingConcurrencySlot", "Paused", "Suspended", "Resuming")
_AGAIN = "AwaitingRetry"  # in the same process, without heartbeats, for a time that is shorter than the silence
_SILENT_NAME = "prdit: a run without a heartbeat is Crashed"
_STUCK_NAME = "prdit: a run that does not start is scheduled again"
_ATTEMPTS, _PAUSE_S = 5, 2.0
_ANSWER_S = 60.0  # a server that registers deployments on a busy machine answers late


def switched_off(services: Services) -> frozenset[str]:
    """Deployments that are paused and automations that are disabled, by name: asked before deployments are registered anew.

    Registering resumes the former, and makes the triggers of deployments anew. (Schedules that are paused stay so.)
    """
    deployments = _api(services, "POST", "/deployments/filter", {})
    automations = _api(services, "POST", "/automations/filter", {})
    paused = (item["name"] for item in deployments if item["paused"])
    return frozenset({*paused, *(item["name"] for item in automations if not item["enabled"])})


def ensure_automations(services: Services, off: Collection[str] = frozenset(), *, silence_s: float = SILENCE_S) -> None:
    """Make the automations and limits, or leave them where they are so already; called whenever deployments are registered.

    What a person has switched off stays so.

    Args:
        services: the Prefect server among them.
        off: what was `switched_off` before the deployments were registered.
        silence_s: seconds without a heartbeat after which a process counts as dead; Prefect's least is 10.
    Raises: ServiceError: the server does not answer, or refuses.
    """
    _switch_off(services, off)
    for automation in _automations(silence_s):
        _ensure(services, automation)
    _limit(services, f"/work_pools/{WORK_POOL}")
    _limit(services, f"/work_pools/{WORK_POOL}/queues/{RETRAIN_QUEUE}")
    crash_silent(services, silence_s)


def crash_silent(services: Services, silence_s: float = SILENCE_S) -> list[str]:
    """Set runs to Crashed that count as Running, though the server has no heartbeat of them in a while; returns their ids.

    The automation does so too, from events; this one asks, for events that were lost with a server or a machine. A run that
    has a process on this machine lives, whatever the server knows.
    """
    since = (datetime.now(UTC) - timedelta(seconds=silence_s)).isoformat()
    names = [*_BEGUN, "Cancelling", _AGAIN]
    running = {"flow_runs": {"state": {"name": {"any_": names}}, "start_time": {"before_": since}}}
    silent = []
    living = _runs_here()
    for run in _api(services, "POST", "/flow_runs/filter", running):
        if UUID(run["id"]) in living:
            continue
        beats = {
            "occurred": {"since": since, "until": datetime.now(UTC).isoformat()},
            "event": {"name": [_ALIVE]},
            "resource": {"id": [f"prefect.flow-run.{run['id']}"]},
        }
        if not _api(services, "POST", "/events/filter", {"filter": beats, "limit": 1})["events"]:
            state = {"state": {"type": "CRASHED", "message": LOST}}
            _api(services, "POST", f"/flow_runs/{run['id']}/set_state", state)
            silent.append(run["id"])
    return silent


def _runs_here() -> set[UUID]:
    """Flow runs that have a process of this user on this machine."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ValueError):
            found.add(UUID(process.environ().get("PREFECT__FLOW_RUN_ID", "")))
    return found


def _api(services: Services, method: str, path: str, body: Any = None) -> Any:
    """One request, tried again: a server that has just been given all deployments answers 503 where its database is busy."""
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(ServiceError):
            return call_api(services, method, path, body, timeout_s=_ANSWER_S)
        time.sleep(_PAUSE_S)
    return call_api(services, method, path, body, timeout_s=_ANSWER_S)


def _automations(silence_s: float) -> tuple[dict[str, Any], ...]:
    beats = [_ALIVE, f"prefect.flow-run.{_AGAIN}"]
    begins = [f"prefect.flow-run.{name}" for name in _BEGUN]
    ends = [f"prefect.flow-run.{name}" for name in (*_OVER, *_OVER_RETRAIN, *_LATER)]
    waits = [f"prefect.flow-run.{name}" for name in _WAITING]
    return (
        _silence(
            _SILENT_NAME,
            "Its process was killed, or its machine: the slot is free for the next run.",
            ([*beats, *begins], [*beats, *ends], silence_s),
            {"state": "CRASHED", "message": f"{LOST} Retry goes on from the last checkpoint."},
        ),
        _silence(
            _STUCK_NAME,
            "Its worker died before it had started the run, which has done nothing yet.",
            (waits, [*beats, *begins, *ends], silence_s),
            {"state": "SCHEDULED", "message": "It did not start in time: scheduled again."},
        ),
    )


def _silence(
    name: str, description: str, events: tuple[list[str], list[str], float], change: dict[str, Any]
) -> dict[str, Any]:
    """An automation that changes a run's state where, after some events, none of some others comes in time."""
    after, expected, within_s = events
    return {
        "name": name,
        "description": description,
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "after": after,
            "expect": expected,
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": within_s,
        },
        "actions": [{"type": "change-flow-run-state", **change}],
    }


def _ensure(services: Services, automation: dict[str, Any]) -> None:
    """Make an automation, or change it where it differs; a change forgets what the server was waiting for, so not otherwise."""
    named = {"automations": {"name": {"any_": [automation["name"]]}}}
    found = _api(services, "POST", "/automations/filter", named)
    for doubled in found[1:]:
        _api(services, "DELETE", f"/automations/{doubled['id']}")
    if not found:
        _api(services, "POST", "/automations/", automation)
    elif not _has(found[0], {key: value for key, value in automation.items() if key != "enabled"}):
        _api(services, "PUT", f"/automations/{found[0]['id']}", automation | {"enabled": found[0]["enabled"]})


def _has(found: Any, wanted: Any) -> bool:
    """Whether what the server has says what is wanted; it adds keys of its own, and sorts some lists as it likes."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(_has(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list) and all(isinstance(value, str) for value in wanted):
        return isinstance(found, list) and sorted(found) == sorted(wanted)
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_has, found, wanted))
    return bool(found == wanted)


def _switch_off(services: Services, names: Collection[str]) -> None:
    for item in _api(services, "POST", "/deployments/filter", {}):
        if item["name"] in names:
            _api(services, "POST", f"/deployments/{item['id']}/pause_deployment")
    for item in _api(services, "POST", "/automations/filter", {}):
        if item["name"] in names and item["enabled"]:
            _api(services, "PATCH", f"/automations/{item['id']}", {"enabled": False})


def _limit(services: Services, path: str) -> None:
    """One run at a time, unless somebody has chosen another limit."""
    if _api(services, "GET", path)["concurrency_limit"] is None:
        _api(services, "PATCH", path, {"concurrency_limit": 1})
