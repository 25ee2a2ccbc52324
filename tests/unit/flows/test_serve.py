"""What each service becomes: its command, its environment, and where passwords are not."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import Settings

from flows import serve as module
from flows.automations import SILENCE_S
from flows.databases import databases
from flows.serve import become, main
from flows.server_settings import ServerSettings
from storage.errors import ConfigError


class Became(Exception):
    """Instead of exec."""


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("PRDIT_DATABASE", "PRDIT_ARTIFACTS", "PRDIT_AUTH", "PRDIT_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """Arguments and environment of every program that was started instead of this one."""
    found: list[tuple[list[str], dict[str, str]]] = []

    def execve(path: str, words: list[str], environment: dict[str, str]) -> None:
        assert path == words[0] == sys.executable
        found.append((words[1:], environment))
        raise Became

    monkeypatch.setattr(os, "execve", execve)
    return found


def start(name: str, site: Path, became: Any, **options: Any) -> tuple[str, dict[str, str]]:
    with pytest.raises(Became):
        become(name, site / "state", host=options.pop("host", "127.0.0.1"), port=options.pop("port", None), **options)
    words, environment = became[-1]
    return " ".join(words), environment


def test_servers_on_files(site: Path, became: Any) -> None:
    words, environment = start("prefect", site, became)
    assert words == "-m prefect server start --host 127.0.0.1 --port 4200"
    assert environment["PREFECT_HOME"] == str(site / "state" / "prefect")
    assert "PREFECT_SERVER_API_AUTH_STRING" not in environment
    words, environment = start("mlflow", site, became, port=5001)
    assert words == "-m mlflow server --host 127.0.0.1 --port 5001 --workers 1"
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{site}/state/mlflow/mlflow.db"
    assert environment["MLFLOW_ARTIFACTS_DESTINATION"] == str(site / "state" / "mlflow" / "artifacts")


def test_prefect_takes_what_it_is_given(site: Path, became: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that its settings refuse would keep the server from starting."""
    _, environment = start("prefect", site, became)
    for key, value in environment.items():
        if key.startswith("PREFECT_"):
            monkeypatch.setenv(key, value)
    settings = Settings()
    assert settings.server.ui.static_directory == str(site / "state" / "prefect" / "ui")
    assert settings.server.events.retention_period.days == 7
    assert settings.server.services.db_vacuum.retention_period.days == 90


def test_runs_of_a_worker_send_heartbeats_before_they_count_as_silent(
    site: Path, became: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts it: systemd and containers give it no environment of ours."""
    monkeypatch.delenv("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", raising=False)
    _, environment = start("worker", site, became)
    monkeypatch.setenv("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    frequency = Settings().flows.heartbeat_frequency
    assert frequency is not None
    assert 5 * frequency <= SILENCE_S


def test_secrets_are_in_the_environment_of_those_who_need_them(
    site: Path, became: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRDIT_AUTH", "me:word-of-login")
    monkeypatch.setenv("PRDIT_DATABASE", "postgresql://you:word-of-data@db")
    monkeypatch.setattr(module, "prepare", lambda database: None)  # nobody is at that address
    monkeypatch.setattr(module, "entry_points", lambda group: EntryPoints({"prdit-login"}))
    for name in ("prefect", "mlflow", "worker", "watcher", "listener"):
        words, environment = start(name, site, became)
        assert "word-of" not in words
        assert environment["PREFECT_API_AUTH_STRING"] == environment["PRDIT_AUTH"] == "me:word-of-login"
        assert environment["MLFLOW_TRACKING_PASSWORD"] == "word-of-login"
        holders = {key for key, value in environment.items() if "word-of-data" in value}
        assert bool(holders) == (name in ("prefect", "mlflow", "worker"))
        if name == "worker":
            assert holders == {"PRDIT_DATABASE"}  # as it was given, for maintenance
    words, environment = start("mlflow", site, became)
    assert words.endswith("--app-name prdit-login")
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg2://you:word-of-data@db/mlflow"
    _, environment = start("prefect", site, became)
    assert environment["PREFECT_SERVER_API_AUTH_STRING"] == "me:word-of-login"
    assert environment["PREFECT_API_DATABASE_CONNECTION_URL"] == "postgresql+asyncpg://you:word-of-data@db/prefect"


class EntryPoints:
    def __init__(self, names: set[str]) -> None:
        self.names = names


def test_mlflow_is_not_started_open_where_its_login_is_missing(
    site: Path, became: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRDIT_AUTH", "me:word-of-login")
    monkeypatch.setattr(module, "entry_points", lambda group: EntryPoints({"basic-auth"}))
    with pytest.raises(ConfigError, match="install it again"):
        become("mlflow", site / "state", host="127.0.0.1", port=None)
    assert became == []


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "server.example"])
def test_other_machines_need_a_login(site: Path, became: Any, name: str, host: str) -> None:
    with pytest.raises(ConfigError, match="would let everybody on the network in"):
        become(name, site / "state", host=host, port=None)
    assert became == []
    for local in ("127.0.0.1", "localhost", "::1"):
        start(name, site, became, host=local)


def test_others_are_programs_of_prdit(site: Path, became: Any) -> None:
    assert start("watcher", site, became)[0] == "-m flows.cli watch"
    words, environment = start("listener", site, became)
    assert words == "-m flows.cli listen"
    assert environment["PRDIT_HEARTBEAT"] == str(site / "state" / "alive" / "listener")
    assert start("worker", site, became, worker_name="one")[0].endswith("--name one")


def test_it_works_in_the_sites_folder(site: Path, became: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home, state = site / "home", site / "elsewhere"
    home.mkdir()
    state.mkdir()
    monkeypatch.chdir(state)
    monkeypatch.setenv("PRDIT_HOME", str(home))
    with pytest.raises(Became):
        main(["mlflow", "--port", "1"])
    assert Path.cwd() == home
    assert became[-1][1]["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{state}/mlflow/mlflow.db"


def test_an_error_is_one_sentence_in_the_log(site: Path, became: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRDIT_AUTH", "no-password")
    with pytest.raises(SystemExit, match="prefect cannot start: PRDIT_AUTH cannot be used"):
        main(["prefect"])
    assert databases(ServerSettings(), site)[0].file == site / "prefect" / "prefect.db"
