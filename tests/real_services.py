"""The real services of a site, for tests and drills: with a login, on SQLite or PostgreSQL, artifacts here or on S3; and checks."""

import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy import text

from flows import services as local
from flows.backup import back_up_and_migrate, backup, restore
from flows.databases import Database, DatabaseError, connected, databases, schema
from flows.doctor_services import check_services
from flows.server_settings import server_settings
from storage.errors import ConfigError
from tests.postgres import PASSWORD, postgres_server

KINDS = ("sqlite", "postgresql")
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
        words = []
        for process in local._started(self.state_dir):
            with suppress(psutil.NoSuchProcess):  # that of a run which has just ended
                words.append(" ".join(process.cmdline()))
        assert len(words) >= 4
        return "\n".join([*logs, *words])


def names(database: Database, table: str, column: str) -> set[str]:
    with connected(database) as connection:
        return set(connection.execute(text(f"SELECT {column} FROM {table}")).scalars())


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


@contextmanager
def real_site(folder: Path, kind: str, artifacts: str = "", patience_s: int = 8) -> Iterator[Site]:
    """A site in a folder whose services run until the block ends; this process works in it, with its settings.

    Args:
        folder: with the services' files.
        kind: of the databases, one of `KINDS`.
        artifacts: PRDIT_ARTIFACTS; empty: the folder of the services.
        patience_s: how long a service waits for one that does not answer.
    """
    real = local.CONFIGURATION.read_text()
    assert real.count("--patience 120") == 1
    configuration = folder / "supervisord.conf"  # the real one, less patient
    configuration.write_text(real.replace("--patience 120", f"--patience {patience_s} --interval 1"))
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for name in ("PRDIT_DATABASE", "PRDIT_ARTIFACTS", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
            patch.delenv(name, raising=False)
        patch.chdir(folder)
        patch.setenv("PRDIT_AUTH", LOGIN)
        patch.setenv("MLFLOW_TRACKING_USERNAME", LOGIN.split(":")[0])
        patch.setenv("MLFLOW_TRACKING_PASSWORD", LOGIN.split(":")[1])
        if artifacts:
            patch.setenv("PRDIT_ARTIFACTS", artifacts)
        patch.setattr(local, "CONFIGURATION", configuration)
        if kind == "postgresql":
            patch.setenv("PRDIT_DATABASE", stack.enter_context(postgres_server()).address())
        site = Site(folder)
        stack.callback(site.down)
        site.up()
        yield site


def check_all_run(site: Site) -> None:
    """Every service runs on current databases, and the doctor is content."""
    assert site.services
    assert set(local.pids(site.services)) == {"supervisord", "prefect", "mlflow", "worker", "watcher", "health"}
    assert (site.folder / ".prdit" / "inbox").is_dir()
    assert local.running(site.state_dir) == site.services
    prefect, mlflow = databases(server_settings(), site.state_dir)
    assert schema(prefect)[0] == schema(mlflow)[0] == "current"
    findings = check_services(site.state_dir)
    assert {finding.name: finding.status for finding in findings if finding.status != "ok"} == {}
    assert len(findings) == 9  # five services, login, two databases, artifacts


def check_secrets(site: Site) -> None:
    """Passwords stand in no log, in no argument, and not where people's folders are read."""
    assert site.services
    said = site.said()
    for secret in (LOGIN, LOGIN.split(":")[1], PASSWORD, PASSWORD.replace("%40", "@")):
        assert secret not in said
    watcher = psutil.Process(local.pids(site.services)["watcher"]).environ()
    assert "PRDIT_DATABASE" not in watcher


def check_back_up_and_migration(site: Site, folder: Path) -> None:
    """Backed up while they run; then both databases are older than their servers; then put back to the back-up."""
    site.flow("kept")
    kept = site.run("kept")
    backup(folder / "backup", site.state_dir)
    site.flow("later")
    later = site.run("later")
    for call in (
        lambda: restore(folder / "backup", site.state_dir),
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
            restore(folder / "backup", site.state_dir)
        assert "p@s-of" not in str(refused.value)
        with connected(pair[0], "postgres") as connection:
            for name in ("prefect", "mlflow"):
                connection.execute(text(f"ALTER DATABASE {name} RENAME TO {name}_before"))
    _, aside = restore(folder / "backup", site.state_dir)
    if pair[0].file:
        assert aside is not None
        assert (aside / ".prdit" / "services" / "mlflow" / "mlflow.db").is_file()
    site.up()
    assert "kept" in site.flows()
    assert "later" not in site.flows()
    assert site.mlflow.get_run(kept).info.run_name == "kept"
    with pytest.raises(MlflowException, match="not found"):
        site.mlflow.get_run(later)
