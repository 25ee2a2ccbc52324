"""Doctor's findings on services made to be wrong."""

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from flows import doctor_services as module
from flows import services as local
from flows.databases import databases, newest_revision, revisions
from flows.doctor import Check
from flows.doctor_services import check_services
from flows.server_settings import ServerSettings


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("PRDIT_DATABASE", "PRDIT_ARTIFACTS", "PRDIT_AUTH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".prdit" / "services"


def by_name(findings: list[Check]) -> dict[str, Check]:
    return {finding.name: finding for finding in findings}


def test_nothing_is_said_where_there_is_no_site(state_dir: Path) -> None:
    assert check_services(state_dir) == []


def test_wrong_settings_are_named(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRDIT_AUTH", "no-user")
    (finding,) = check_services(state_dir)
    assert finding.status == "fail"
    assert "PRDIT_AUTH cannot be used" in finding.detail


def test_services_that_do_not_run(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state_dir.mkdir(parents=True)
    found = by_name(check_services(state_dir))
    assert (found["services"].status, found["services"].remedy) == ("warn", "prdit up")
    assert found["Prefect database"].status == found["artifacts"].status == "ok"
    monkeypatch.setattr(local, "running_processes", lambda folder: [1, 2, 3])
    services = by_name(check_services(state_dir))["services"]
    assert services.status == "fail"
    assert "supervisord has died; 3 of its processes run on" in services.detail


def info(state: str, pid: int = 7) -> dict[str, Any]:
    return {"statename": state, "pid": pid}


def test_each_service_by_itself(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (state_dir / "logs").mkdir(parents=True)
    (state_dir / "logs" / "watcher.log").write_text("looking\nthe inbox lies in the store\n")
    (state_dir.parent / "site.yaml").write_text("listener: {allowed: [SCANNER]}\n")
    services = local.Services(state_dir=state_dir, prefect_ui_url="http://p", mlflow_url="http://m")
    processes = {"prefect": info("RUNNING"), "mlflow": info("BACKOFF", 0), "watcher": info("FATAL", 0)}
    monkeypatch.setattr(local, "supervised", lambda folder: services)
    monkeypatch.setattr(local, "processes", lambda _: processes | {"worker": info("STARTING")})
    monkeypatch.setattr(module, "check_login", lambda _: None)
    found = by_name(check_services(state_dir))
    expected = {
        "prefect": "ok",
        "mlflow": "warn",
        "worker": "ok",
        "watcher": "fail",
        "listener": "warn",
        "health": "warn",
    }
    assert {name: found[f"service {name}"].status for name in expected} == expected
    assert "given up; it last said: looking | the inbox lies in the store" in found["service watcher"].detail
    assert "watcher.log" in found["service watcher"].remedy
    assert "no scans are received" in found["service listener"].detail
    assert "every user of this machine" in found["login"].detail


def test_a_wrong_login_is_named(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state_dir.mkdir(parents=True)
    services = local.Services(state_dir=state_dir, prefect_ui_url="http://p", mlflow_url="http://m")
    monkeypatch.setattr(local, "supervised", lambda folder: services)
    monkeypatch.setattr(local, "processes", lambda _: {})

    def refused(_: local.Services) -> None:
        raise local.LoginError("takes another login")

    monkeypatch.setattr(module, "check_login", refused)
    login = by_name(check_services(state_dir))["login"]
    assert (login.status, login.detail) == ("fail", "takes another login")


def test_databases_of_other_versions_and_unreachable_ones(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = databases(ServerSettings(), state_dir)
    for database, revision in zip(pair, ("unknown", revisions(pair[1])[newest_revision(pair[1])]), strict=True):
        assert database.file
        database.file.parent.mkdir(parents=True)
        with sqlite3.connect(database.file) as connection:
            connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
            connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
        connection.close()
    found = by_name(check_services(state_dir))
    assert "a newer Prefect wrote it" in found["Prefect database"].detail
    assert (found["MLflow database"].status, found["MLflow database"].remedy) == (
        "fail",
        "prdit down, then prdit migrate",
    )
    monkeypatch.setenv("PRDIT_DATABASE", "postgresql://me:hidden-word@127.0.0.1:1")
    for name in ("Prefect database", "MLflow database"):
        finding = by_name(check_services(state_dir))[name]
        assert finding.status == "fail"
        assert "127.0.0.1:1" in finding.detail
        assert "hidden" not in finding.detail


def test_a_place_for_artifacts_that_cannot_be_used(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state_dir.mkdir(parents=True)
    monkeypatch.setenv("PRDIT_ARTIFACTS", "s3://bucket/x")
    for name, value in (("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1"), ("AWS_ACCESS_KEY_ID", "k")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    finding = by_name(check_services(state_dir))["artifacts"]
    assert finding.status == "fail"
    assert "s3://bucket/x cannot be reached" in finding.detail
    monkeypatch.setenv("PRDIT_ARTIFACTS", "art")
    assert by_name(check_services(state_dir))["artifacts"].detail == str(Path("art").resolve())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert by_name(check_services(state_dir))["artifacts"].status == "fail"
