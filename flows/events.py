"""The event that scans have arrived, which runs `retrain/on-new-scans` (its trigger is in prefect.yaml).

An event only wakes: it may be lost, or come twice. Who emits it says so again as long as there are scans that nobody has taken.
"""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import uuid4

ARRIVED = "prdit.scans.arrived"
DEPLOYMENT = "retrain/on-new-scans"
_TIMEOUT_S = 10.0
logger = logging.getLogger("prdit.inbox")


def emit_arrived(num_series: int, num_batches_open: int) -> bool:
    """Say to Prefect's server that complete series wait; where a run that will take them waits already, nothing is needed.

    Server and authentication are those of the environment of the services (`PREFECT_API_URL`, `PREFECT_API_AUTH_STRING`).

    Args:
        num_series: complete series that no batch has.
        num_batches_open: batches that are made and not ingested.
    Returns: whether the server has taken the event, or a run waits; False where it cannot be reached: say so again later.
    """
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        logger.warning("PREFECT_API_URL names no Prefect server, so nothing runs for %d new series", num_series)
        return False
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": ARRIVED,
        "resource": {"prefect.resource.id": "prdit.inbox", "prefect.resource.name": "inbox"},
        "payload": {"num_series": num_series, "num_batches_open": num_batches_open},
    }
    try:
        return _waits() or _post(event)
    except Exception as error:  # noqa: BLE001  # no answer, an error status, a wrong password, a server of another version
        status = getattr(getattr(error, "response", None), "status_code", "no answer")  # 401: authentication
        logger.warning("Prefect's server did not take the event %s: %s, %s", ARRIVED, type(error).__name__, status)
        return False


def _waits() -> bool:
    """Whether a run that will take the scans waits for its turn: one is enough, however long a training takes."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.exceptions import ObjectNotFound

    waiting = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED, StateType.PENDING]))
    with get_client(sync_client=True, httpx_settings={"timeout": _TIMEOUT_S}) as client:
        try:
            deployment = client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            return False
        found = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
            flow_run_filter=FlowRunFilter(state=waiting),
            limit=1,
        )
    return bool(found)


def _post(event: Mapping[str, object]) -> bool:
    """By one request: Prefect's `emit_event` hands events to a thread, and says nothing where they are lost."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True, httpx_settings={"timeout": _TIMEOUT_S}) as client:
        client.request("POST", "/events", json=[event])  # an error status is raised
    return True
