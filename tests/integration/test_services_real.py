"""The real services of a site: with a login, on S3, stopped and hanging, backed up, of older versions; the same on PostgreSQL."""

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import psutil
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from moto.server import ThreadedMotoServer
from sqlalchemy import text
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from flows import services as local
from flows.backup import back_up_and_migrate, backup, restore
from flows.databases import Database, DatabaseError, connected, databases, schema
from flows.doctor_services import check_services
from flows.server_settings import server_settings
from storage.errors import ConfigError
from tests.ports import free_ports
from tests.postgres import PASSWORD, postgres_server, skip_without_postgres

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

on_sqlite = pytest.mark.parametrize("site", ["sqlite"], indirect=True)  # where the database makes no difference
LOGIN = "operator:pass-of-the-login"
_DOWNGRADE_MLFLOW = (
    "import os; from alembic import command; from mlflow.store.db.utils import _get_alembic_config;"
    "command.downgrade(_get_alembic_config(os.environ['MLFLOW_BACKEND_STORE_URI']), '-1')"
)


class Site:
    """A folder with services, settings in its environment, and what was said of secrets."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state_dir = folder, folder / ".prdit" / "services"
        self.services: local.Services | None = None

    def up(self) -> local.Services:
        self.services = local.start(self.state_dir, home=self.folder)
        return self.services

    def down(self) -> None:
        local.stop(self.state_dir)

    @property
    def mlflow(self) -> MlflowClient:
        assert self.services
        return MlflowClient(self.services.mlflow_url)

    def flow(self, name: str) -> None:
        """A row in Prefect's database."""
        assert self.services
        local.call_api(self.services, "POST", "/flows/", {"name": name})

    def flows(self) -> list[str]:
        assert self.services
        return sorted(item["name"] for item in local.call_api(self.services, "POST", "/flows/filter", {}))

    def run(self, name: str) -> str:
        """A run in MLflow with an artifact."""
        run_id = str(self.mlflow.create_run("0", run_name=name).info.run_id)
        self.mlflow.log_text(run_id, name, "text.txt")
        return run_id

    def check_older_ones_are_refused_and_migrated(self, pair: tuple[Database, Database]) -> None:
        older(self)
        states = [schema(database) for database in pair]
        assert [state for state, _ in states] == ["older", "older"]
        with pytest.raises(DatabaseError, match=r"(?s)database of Prefect .*older than.*prdit migrate") as refused:
            self.up()
        assert "p@s-of" not in str(refused.value)
        assert local.running_processes(self.state_dir) == []
        assert [schema(database) for database in pair] == states  # nothing was changed
        folder, migrated = back_up_and_migrate(None, self.state_dir)
        assert migrated == ["Prefect", "MLflow"]
        assert [schema(database)[0] for database in pair] == ["current", "current"]
        assert {path.stem for path in (folder / "databases").iterdir()} == {"prefect", "mlflow"}

    def said(self) -> str:
        """Every log, and the arguments of every process."""
        logs = [path.read_text(errors="replace") for path in (self.state_dir / "logs").iterdir()]
        words = [" ".join(process.cmdline()) for process in local._started(self.state_dir)]
        assert len(words) >= 4
        return "\n".join([*logs, *words])


def names(database: Database, table: str, column: str) -> set[str]:
    with connected(database) as connection:
        return set(connection.execute(text(f"SELECT {column} FROM {table}")).scalars())


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "condition did not come true in time"
        time.sleep(0.3)
    return value


def status(url: str, method: str = "GET", body: Any = None, login: str = "") -> int:
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def older(site: Site) -> None:
    """Take both databases back by one real migration, with the servers' own means."""
    prefect, mlflow = databases(server_settings(), site.state_dir)
    for database, words in (
        (prefect, ["-m", "prefect", "--no-prompt", "server", "database", "downgrade", "-y", "-r", "-1"]),
        (mlflow, ["-c", _DOWNGRADE_MLFLOW]),
    ):
        environment = os.environ | database.variables()
        done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Address of a bucket on a real S3 server of this machine, which the environment names."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_ports())
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server._server.server_port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "key")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            boto3.client("s3").create_bucket(Bucket="scans")
            yield "s3://scans/prdit"
    finally:
        server.stop()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bucket: str) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp(request.param)
    real = local.CONFIGURATION.read_text()
    assert real.count("--patience 120") == 1
    configuration = folder / "supervisord.conf"  # the real one, less patient
    configuration.write_text(real.replace("--patience 120", "--patience 8 --interval 1"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PRDIT_DATABASE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
            patch.delenv(name, raising=False)
        patch.chdir(folder)
        patch.setenv("PRDIT_AUTH", LOGIN)
        patch.setenv("MLFLOW_TRACKING_USERNAME", LOGIN.split(":")[0])
        patch.setenv("MLFLOW_TRACKING_PASSWORD", LOGIN.split(":")[1])
        patch.setenv("PRDIT_ARTIFACTS", bucket)
        patch.setattr(local, "CONFIGURATION", configuration)
        value = Site(folder)
        try:
            if request.param == "sqlite":
                value.up()
                yield value
            else:
                skip_without_postgres()
                with postgres_server() as server:
                    patch.setenv("PRDIT_DATABASE", server.address())
                    value.up()
                    yield value
        finally:
            value.down()


def test_all_services_run_and_the_inbox_is_made(site: Site) -> None:
    assert site.services
    assert set(local.pids(site.services)) == {"supervisord", "prefect", "mlflow", "worker", "watcher", "health"}
    assert (site.folder / ".prdit" / "inbox").is_dir()
    assert local.running(site.state_dir) == site.services
    prefect, mlflow = databases(server_settings(), site.state_dir)
    assert schema(prefect)[0] == schema(mlflow)[0] == "current"
    findings = check_services(site.state_dir)
    assert {finding.name: finding.status for finding in findings if finding.status != "ok"} == {}
    assert len(findings) == 9  # five services, login, two databases, artifacts


@on_sqlite
def test_nobody_gets_in_without_the_login(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert site.services
    prefect, mlflow = site.services.prefect_api_url, site.services.mlflow_url
    search = f"{mlflow}/api/2.0/mlflow/experiments/search"
    for login, expected in (("", 401), (LOGIN + "x", 401), (LOGIN, 200)):
        assert status(f"{prefect}/flows/filter", "POST", {}, login) == expected
        assert status(search, "POST", {"max_results": 1}, login) == expected
        assert status(f"{mlflow}/", login=login) == expected
    assert status(f"{prefect}/health") == status(f"{mlflow}/health") == 200
    assert status(f"{mlflow}/health/../version") == 401
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    with pytest.raises(MlflowException, match="401"):
        MlflowClient(mlflow).search_experiments()
    monkeypatch.setenv("PRDIT_AUTH", "operator:another-password")
    with pytest.raises(local.LoginError, match="another login than PRDIT_AUTH"):
        local.running(site.state_dir)


@on_sqlite
def test_runs_log_in(site: Site) -> None:
    """A run of the worker's asks the server for its parameters and reports how it ended."""
    assert site.services
    local.deploy(site.services, site.folder)
    assert "prdit" in site.flows()
    found = local.call_api(site.services, "GET", "/deployments/name/prdit/split")
    body = {"parameters": {"overrides": {"nonsense": 1}}, "state": {"type": "SCHEDULED"}}
    run = local.call_api(site.services, "POST", f"/deployments/{found['id']}/create_flow_run", body)

    def ended() -> Any:
        state = local.call_api(site.services, "GET", f"/flow_runs/{run['id']}")["state"]  # type: ignore[arg-type]
        return state if state["type"] in ("FAILED", "CRASHED", "COMPLETED") else None

    state = wait_for(ended, 180)
    assert state["type"] == "FAILED"
    assert "nonsense: unknown key" in state["message"]


@on_sqlite
def test_events_cannot_be_injected_without_the_login(site: Site) -> None:
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


@on_sqlite
def test_artifacts_go_to_s3(site: Site) -> None:
    run_id = site.run("on S3")
    keys = [item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket="scans")["Contents"]]
    assert [key for key in keys if run_id in key] == [f"prdit/0/{run_id}/artifacts/text.txt"]
    assert not (site.state_dir / "mlflow" / "artifacts").exists()
    assert Path(site.mlflow.download_artifacts(run_id, "text.txt")).read_text() == "on S3"


def test_passwords_stand_in_no_log_and_no_argument(site: Site) -> None:
    said = site.said()
    for secret in (LOGIN, LOGIN.split(":")[1], PASSWORD, PASSWORD.replace("%40", "@")):
        assert secret not in said
    watcher = psutil.Process(local.pids(site.services)["watcher"]).environ()  # type: ignore[arg-type]
    assert "PRDIT_DATABASE" not in watcher


@on_sqlite
def test_what_hangs_is_killed_and_started_again(site: Site) -> None:
    """SIGSTOP: the process is there, and supervisord is content with it."""
    assert site.services
    services = site.services
    for name in ("prefect", "mlflow", "watcher"):
        before = local.pids(services)
        stopped = [psutil.Process(before[name]), *psutil.Process(before[name]).children(recursive=True)]
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        wait_for(lambda name=name, before=before: local.pids(services)[name] not in (0, before[name]))
        assert psutil.wait_procs(stopped, timeout=30)[1] == []
        wait_for(lambda: local.running(site.state_dir) == services)
        after = local.pids(services)
        assert {key for key in after if after[key] != before[key]} == {name}
    log = (site.state_dir / "logs" / "health.log").read_text()
    assert re.findall(r"(\w+) \(process \d+\) has not answered for \d+ s and is killed", log) == [
        "prefect",
        "mlflow",
        "watcher",
    ]


def test_a_back_up_of_running_services_and_a_migration(site: Site, tmp_path: Path) -> None:
    """Backed up while they run; then both databases are older than their servers; then put back to the back-up."""
    site.flow("kept")
    kept = site.run("kept")
    backup(tmp_path / "backup", site.state_dir)
    site.flow("later")
    later = site.run("later")
    for call in (
        lambda: restore(tmp_path / "backup", site.state_dir),
        lambda: back_up_and_migrate(None, site.state_dir),
    ):
        with pytest.raises(ConfigError, match="The services run"):
            call()
    site.down()
    pair = databases(server_settings(), site.state_dir)
    site.check_older_ones_are_refused_and_migrated(pair)
    assert {"kept", "later"} <= names(pair[0], "flow", "name")
    assert {kept, later} <= names(pair[1], "runs", "run_uuid")
    if pair[0].file is None:
        with pytest.raises(ConfigError, match="has tables already") as refused:
            restore(tmp_path / "backup", site.state_dir)
        assert "p@s-of" not in str(refused.value)
        with connected(pair[0], "postgres") as connection:
            for name in ("prefect", "mlflow"):
                connection.execute(text(f"ALTER DATABASE {name} RENAME TO {name}_before"))
    _, aside = restore(tmp_path / "backup", site.state_dir)
    if pair[0].file:
        assert aside is not None
        assert (aside / ".prdit" / "services" / "mlflow" / "mlflow.db").is_file()
    site.up()
    assert "kept" in site.flows()
    assert "later" not in site.flows()
    assert site.mlflow.get_run(kept).info.run_name == "kept"
    with pytest.raises(MlflowException, match="not found"):
        site.mlflow.get_run(later)
