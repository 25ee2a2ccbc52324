"""The real services of a site, with a login, and on PostgreSQL, with older versions. The rest is tests/drills/services.py."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import yaml
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
    with real_site(tmp_path, "sqlite", patience_s=120) as site:
        check_only_this_machine_is_served(site)
        check_events_cannot_be_injected(site)
        check_nobody_gets_in(site)
        check_deployments(site)
        check_killed_ones_are_started_again(site)
    assert local._started(site.state_dir) == {}


def test_on_postgresql(tmp_path: Path) -> None:
    """All services on PostgreSQL, backed up while they run; then a migration and the way back."""
    skip_without_postgres()
    (tmp_path / "site").mkdir()
    with real_site(tmp_path / "site", "postgresql") as value:
        check_all_run(value)
        check_secrets(value)
        check_back_up_and_migration(value, tmp_path)


def check_only_this_machine_is_served(site: Site) -> None:
    assert site.services
    listening = {
        (c.laddr.ip, c.laddr.port)
        for process in local._started(site.state_dir)
        for c in process.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    }
    ports = {int(url.rsplit(":", 1)[1]) for url in (site.services.prefect_ui_url, site.services.mlflow_url)}
    assert {ip for ip, _ in listening} == {"127.0.0.1"}
    assert ports <= {port for _, port in listening}


def check_deployments(site: Site) -> None:
    """They work in the folder they are made in; one that cannot be made says why."""
    assert site.services
    project = site.folder / "project"
    project.mkdir()
    local.deploy(site.services, project)
    found = local.call_api(site.services, "POST", "/deployments/filter", {})
    steps = [item["pull_steps"][0]["prefect.deployments.steps.set_working_directory"] for item in found]
    assert steps == [{"directory": str(project)}] * len(yaml.safe_load(local.DEPLOYMENTS.read_text())["deployments"])
    bad = site.folder / "bad.yaml"
    bad.write_text("deployments:\n- {name: one, entrypoint: flows.no_such_module.no}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "DEPLOYMENTS", bad)
        with pytest.raises(local.ServiceError, match=r"(?s)exit code 1:.*no_such_module"):
            local.deploy(site.services, project)


def check_killed_ones_are_started_again(site: Site) -> None:
    services = site.services
    assert services
    before = local.pids(services)
    for name in ("mlflow", "prefect"):
        os.kill(before[name], signal.SIGKILL)
        wait_for(lambda name=name: local.pids(services)[name] not in (0, before[name]))  # type: ignore[misc]
    wait_for(lambda: local.running(site.state_dir) == services)
    after = local.pids(services)
    assert {name for name in after if after[name] != before[name]} == {"mlflow", "prefect"}


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
