"""Maintenance: damage is named and ends the run as failed, what is not kept goes, and little disk is said."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from flows import maintenance as module
from flows.cli import app
from flows.config import load_config
from flows.maintenance import DamageError, maintain, maintenance
from flows.pipeline import pipeline
from flows.room import make_room
from storage.artifacts import Ref
from storage.documents.upkeep import Upkeep
from storage.registry import ModelVersion
from tasks.maintain.config import RetentionConfig
from tasks.maintain.disk import NoRoomError
from tasks.maintain.run import Installation
from tests.factories import make_store
from tests.mlflow_process import Server
from tests.store_damage import flip
from tests.unit.tasks.aged_work import Work

DAY_MS = 86_400_000
Sent = list[tuple[str, str, str]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    messages: Sent = []
    monkeypatch.setattr(
        module, "notify", lambda config, severity, subject, text: messages.append((severity, subject, text))
    )
    return messages


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = Path(".prdit")
    make_store(root / "store")
    (root / "work").mkdir()
    return Installation(root / "store", root / "work", root / "services", root / "arrivals", root / "errors")


def now_ms() -> float:
    return time.time() * 1000


def damage_one(store: Path) -> str:
    """Flip a byte of a volume; its id."""
    path = next(path for path in sorted(store.glob("volumes/**/c/0/0/0")) if path.is_file())
    flip(path)
    return path.relative_to(store / "volumes").parts[0].partition("-")[0]


def test_a_whole_store_is_verified_and_the_record_kept(place: Installation) -> None:
    found = maintain(place, RetentionConfig(), None)
    assert (found.verified, found.damage) == (3, ())
    assert Upkeep.load(place.workdir) == found
    sizes = {each.name: each.size_bytes for each in found.places}
    assert sizes["store"] == sum(path.stat().st_size for path in place.store.rglob("*") if path.is_file())


def test_damage_ends_the_flow_as_failed_and_is_named_by_id(place: Installation, sent: Sent) -> None:
    volume = damage_one(place.store)
    with pytest.raises(DamageError, match=volume):
        maintenance.fn()
    (message,) = [each for each in sent if each[0] == "failure"]
    assert volume in message[2]
    assert [each.name for each in Upkeep.load(place.workdir).damage] == [volume]
    again = maintain(place, RetentionConfig(), None, verified=False)  # which does not look, so the finding stands
    assert [each.name for each in again.damage] == [volume]
    assert (again.verified, again.verified_at is not None) == (3, True)


def test_the_command_says_damage_and_exits_1(place: Installation) -> None:
    volume = damage_one(place.store)
    done = CliRunner().invoke(app, ["maintain", "--json"])
    assert (done.exit_code, json.loads(done.stdout)["verified"]) == (1, 3)
    assert volume in done.stderr


def test_little_disk_is_a_message_and_refuses_work_after_retention_was_applied(
    place: Installation, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(place.store)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 3e9}))
    maintenance.fn()
    assert [each[:2] for each in sent] == [("attention", "little disk is free")]
    old = Work(place.workdir).stage("split", 1, 100)
    with pytest.raises(NoRoomError, match=r"3\.0 GB are free; 5 GB stay free"):
        make_room(load_config("tiny"))
    assert not Path(old.directory).exists()
    with pytest.raises(NoRoomError, match="Nothing was started"):
        pipeline.fn("tiny")
    assert not (place.workdir / "runs").exists()


def test_work_begins_when_retention_has_made_room(place: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Path(Work(place.workdir).stage("split", 1, 100).directory)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 3e9 if old.exists() else 6e9}))
    make_room(load_config("tiny"))
    assert not old.exists()


def test_an_installation_with_nothing_in_it_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: Sent
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = maintenance.fn()
    assert (found["verified"], found["damage"]) == (None, [])


def test_old_runs_of_mlflow_go_for_good_and_the_champions_stay(tmp_path: Path, place: Installation) -> None:
    """On a real server: rows of the database and files of the artifacts."""
    server = Server(tmp_path / "mlflow")
    server.root.mkdir()
    server.start()
    try:
        client = MlflowClient(server.uri)
        experiment = client.create_experiment("prdit")

        others, demo = client.create_experiment("other-team"), client.create_experiment("prdit-demo")

        def tree(days: float, digest: str, experiment: str = experiment, ours: bool = True) -> tuple[str, str, str]:
            """A run of the pipeline with a stage that made a model."""
            tags = {"prdit.tracking_id": "1"} if ours else {}
            ended = int(now_ms() - days * DAY_MS)
            parent = client.create_run(experiment, ended - 1000, tags=tags).info.run_id
            tags = tags | {"mlflow.parentRunId": parent}
            child = client.create_run(experiment, ended - 1000, tags=tags).info.run_id
            (tmp_path / "weights").write_bytes(b"weights of " + digest.encode())
            client.log_artifact(child, str(tmp_path / "weights"))
            model = client.create_logged_model(
                experiment, name="prdit", source_run_id=child, tags={"prdit.digest": digest}
            )
            client.log_model_artifact(model.model_id, str(tmp_path / "weights"))
            for run in (child, parent):
                client.set_terminated(run, end_time=ended)
            return parent, child, model.model_id

        _, champion, young = tree(200, "sha256:a"), tree(200, "sha256:b"), tree(1, "sha256:c")
        foreign = [
            tree(200, "sha256:d", others, ours=False),  # another team's
            tree(200, "sha256:e", others),  # another installation of prdit
            tree(200, "sha256:f", ours=False),  # by hand, in our experiment
        ]
        tree(200, "sha256:g", demo)  # of another configuration with our working folder, as its newest run says
        recorded = tree(1, "sha256:h", demo)
        path = Work(place.workdir).record("20261101T000000.000000Z")
        path.write_text(path.read_text().replace('"mlflow_run_id": ""', f'"mlflow_run_id": "{recorded[0]}"'))
        stay = [champion, young, recorded, *foreign]
        running = client.create_run(experiment, int(now_ms() - 200 * DAY_MS)).info.run_id
        ref = Ref(kind="checkpoint", uri="/x", digest="sha256:b")
        known = Installation(
            place.store,
            place.workdir,
            tmp_path / "services",
            place.arrivals,
            place.errors,
            versions=[ModelVersion(1, ref, champion[1], ("champion",))],
            experiment="prdit",
        )
        (tmp_path / "services").mkdir()
        (tmp_path / "services" / "mlflow").symlink_to(server.root)  # as `prdit up` has it
        config = RetentionConfig(trash_days=0)
        found = maintain(known, config, server.uri, verified=False)
        assert [(each.what, each.count) for each in found.removed] == [("run of MLflow, into its trash", 4)]
        assert found.notes == ()
        with sqlite3.connect(server.root / "mlflow.db") as database:
            rows: Any = database.execute("select run_uuid from runs").fetchall()
            models: Any = database.execute("select model_id from logged_models").fetchall()
        assert {row[0] for row in rows} == {running, *(run for made in stay for run in made[:2])}
        assert {row[0] for row in models} == {made[2] for made in stay}
        files = [path.read_bytes() for path in (server.root / "artifacts").rglob("weights")]
        assert set(files) == {b"weights of sha256:" + letter for letter in (b"b", b"c", b"d", b"e", b"f", b"h")}
        assert len(files) == 12
        assert maintain(known, config, server.uri, verified=False).removed == ()
    finally:
        server.stop()


def test_prefect_takes_the_settings_of_its_own_retention() -> None:
    """In a process of its own: this one has read its settings."""
    code = (
        "import prefect.settings as s; server = s.get_current_settings().server; vacuum = server.services.db_vacuum; "
    )
    code += "print(vacuum.enabled_vacuum_types >= {'flow_runs', 'events'}, vacuum.retention_period, server.events.retention_period)"
    environment = os.environ | RetentionConfig(server_days=45, event_days=3.5).prefect_environment()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True 45 days, 0:00:00 3 days, 12:00:00"
