"""The real services of a site: with a login; on PostgreSQL, backed up, of older versions. The rest is tests/drills/services.py."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from flows import services as local
from tests.postgres import skip_without_postgres
from tests.processes import wait_for
from tests.real_services import (
    LOGIN,
    Site,
    check_all_run,
    check_back_up_and_migration,
    check_secrets,
    real_site,
    status,
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


def test_on_sqlite(tmp_path: Path) -> None:
    with real_site(tmp_path, "sqlite") as site:
        check_events_cannot_be_injected(site)
        check_nobody_gets_in(site)


def test_on_postgresql(tmp_path: Path) -> None:
    """All services on PostgreSQL, backed up while they run; then a migration and the way back."""
    skip_without_postgres()
    (tmp_path / "site").mkdir()
    with real_site(tmp_path / "site", "postgresql") as value:
        check_all_run(value)
        check_secrets(value)
        check_back_up_and_migration(value, tmp_path)


def check_nobody_gets_in(site: Site) -> None:
    assert site.services
    prefect, mlflow = site.services.prefect_api_url, site.services.mlflow_url
    search = f"{mlflow}/api/2.0/mlflow/experiments/search"
    for login, expected in (("", 401), (LOGIN + "x", 401), (LOGIN, 200)):
        assert status(f"{prefect}/flows/filter", "POST", {}, login) == expected
        assert status(search, "POST", {"max_results": 1}, login) == expected
        assert status(f"{mlflow}/", login=login) == expected
    assert status(f"{prefect}/health") == status(f"{mlflow}/health") == 200
    assert status(f"{mlflow}/health/../version") == 401
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_PASSWORD")
        with pytest.raises(MlflowException, match="401"):
            MlflowClient(mlflow).search_experiments()
        patch.setenv("PRDIT_AUTH", "operator:another-password")
        with pytest.raises(local.LoginError, match="another login than PRDIT_AUTH"):
            local.running(site.state_dir)


def check_events_cannot_be_injected(site: Site) -> None:
    assert site.services

    def event(name: str) -> dict[str, Any]:
        resource = {"prefect.resource.id": "prdit.inbox"}
        return {"occurred": "2026-01-01T00:00:00Z", "event": name, "resource": resource, "id": str(uuid4())}

    async def by_socket(token: str | None) -> None:
        url = f"{site.services.prefect_api_url}/events/in".replace("http://", "ws://")  # type: ignore[union-attr]
        async with connect(url, subprotocols=["prefect"], open_timeout=20) as socket:  # type: ignore[list-item]
            await socket.send(json.dumps({"type": "auth", "token": token}))
            assert json.loads(await socket.recv()) == {"type": "auth_success"}
            await socket.send(json.dumps(event("by.socket")))

    url = f"{site.services.prefect_api_url}/events"
    assert status(url, "POST", [event("without.login")]) == 401
    for token in (None, "wrong"):
        with pytest.raises(ConnectionClosed):
            asyncio.run(by_socket(token))
    assert status(url, "POST", [event("by.request")], LOGIN) == 204
    asyncio.run(by_socket(LOGIN))

    def known() -> set[str]:
        body = {"filter": {"resource": {"id": ["prdit.inbox"]}, "occurred": {"since": "2025-12-01T00:00:00Z"}}}
        return {item["event"] for item in local.call_api(site.services, "POST", "/events/filter", body)["events"]}  # type: ignore[arg-type]

    wait_for(lambda: known() >= {"by.request", "by.socket"}, 60)
    assert known() == {"by.request", "by.socket"}
