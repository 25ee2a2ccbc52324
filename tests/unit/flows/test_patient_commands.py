"""`prdit lineage` and `prdit forget` as a person calls them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import installation, patient_commands
from flows.cli import app
from flows.services import Services
from storage.documents.tombstone import Tombstone
from storage.tombstones import tombstone_path
from storage.volume_store import VolumeStore
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.factories import small_ingest
from tests.ports import free_ports
from tests.unit.storage.dicom_files import write_series

NAME = "ZQFORGET78"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_series(tmp_path / "source" / "a", uid="1.2.3.1", patient_id=NAME, shape=(16, 20, 20))
    write_series(tmp_path / "source" / "b", uid="1.2.3.2", patient_id="P", shape=(17, 20, 20))
    ingest(tmp_path / "source", tmp_path / "store", small_ingest(num_levels=2), runner=Local(1))
    return tmp_path / "store"


def called(*arguments: str, text: str | None = None) -> tuple[int, dict, str]:
    result = CliRunner().invoke(app, [*arguments, "--workdir", "work", "--json"], input=text)
    return result.exit_code, json.loads(result.stdout.splitlines()[-1]), result.output


def test_a_patient_is_shown_then_forgotten(store: Path) -> None:
    code, shown, output = called("forget", "-", "--store", str(store), text=NAME + "\n")
    assert code == 0
    assert shown["done"] is None
    assert len(VolumeStore.open(store).volume_ids()) == 2
    (volume,) = shown["volumes"]
    code, lines, _ = called("lineage", volume, "--store", str(store))
    assert (code, lines["patients"]) == (0, {"all": [shown["patient_key"]]})
    code, done, more = called("forget", "--volume", volume, "--yes", "--store", str(store))
    assert code == 0
    assert done["done"]["deleted_volumes"] == 1
    assert volume not in VolumeStore.open(store).volume_ids()
    assert NAME not in output + more
    result = CliRunner().invoke(app, ["ls", str(store)])
    assert "1 of its volumes forgotten since" in result.stdout
    result = CliRunner().invoke(app, ["ls", str(store), "--snapshot", "1"])
    assert f"{volume}  of a patient who was forgotten" in result.stdout
    code, again, _ = called("forget", NAME, "--yes", "--store", str(store))
    assert (code, again["forgotten_before"] != "") == (0, True)
    code, lines, _ = called("lineage", volume, "--store", str(store))
    assert (code, lines["forgotten"]) == (0, [volume])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["forget", "NOBODY"], "Nobody knows this patient"),
        (["forget", "--patient-key", "0123456789abcdef"], "Nobody knows this patient"),
        (["forget", "--patient-key", "../x"], "A patient key is 32 hex digits"),
        (["forget", "--volume", "0" * 32], "No snapshot"),
        (["forget"], "Name one patient"),
        (["forget", NAME, "--volume", "1"], "Name one patient"),
        (["lineage", "nothing"], "is nothing that is known here"),
        (["lineage", "models:/prdit@champion"], "There is no registered model"),
    ],
)
def test_what_is_not_known_changes_nothing(store: Path, arguments: list[str], sentence: str) -> None:
    before = sorted(path for path in store.parent.rglob("*") if path.is_file())
    code, value, output = called(*arguments, "--store", str(store))
    assert code == 2
    assert sentence in value["error"]
    assert "NOBODY" not in output
    assert sorted(path for path in store.parent.rglob("*") if path.is_file()) == before


def test_a_server_that_is_down_is_not_passed_over(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is configured for this folder but does not run knows of the patient, and names the champion."""
    database = store.parent / ".prdit" / "services" / "mlflow" / "mlflow.db"
    database.parent.mkdir(parents=True)
    database.touch()
    before = sorted(path for path in store.parent.rglob("*") if path.is_file())
    code, value, _ = called("forget", NAME, "--yes", "--store", str(store))
    assert code == 2
    assert "does not run" in value["error"]
    assert "--without-mlflow" in value["error"]
    assert sorted(path for path in store.parent.rglob("*") if path.is_file()) == before
    up = Services(state_dir=store, prefect_ui_url="", mlflow_url=f"http://127.0.0.1:{free_ports()}")
    with monkeypatch.context() as patch:
        patch.setattr(installation, "started", lambda state: up)
        code, value, _ = called("forget", NAME, "--yes", "--store", str(store))
    assert code == 1
    assert f"MLflow at {up.mlflow_url} does not answer" in value["error"]  # that of `prdit up` is asked
    code, value, _ = called("forget", NAME, "--yes", "--without-mlflow", "--store", str(store))
    assert (code, value["without_mlflow"], value["done"]["deleted_volumes"]) == (0, True, 1)
    assert "THE MLFLOW SERVER WAS NOT ASKED" in patient_commands.forget_text(value)
    grave = Tombstone.read(tombstone_path(store, value["patient_key"]))
    assert (grave.finished, grave.scans) == ("", ("1.2.3.1",))  # not done, and what is left to do can be found
    database.unlink()
    code, value, _ = called("forget", NAME, "--yes", "--store", str(store))
    assert code == 0
    assert Tombstone.read(tombstone_path(store, value["patient_key"])).finished


def test_every_place_where_mlflow_was_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr("tasks.patients.tracked.Tracked", lambda uri: uri)
    folders = [tmp_path / name for name in "abc"]
    for folder in (folders[0], folders[2]):
        folder.mkdir()
        (folder / "mlflow.db").touch()
    files = (f"sqlite:///{folders[0]}/mlflow.db", f"sqlite:///{folders[2]}/mlflow.db")
    assert patient_commands._tracked(folders) == ("http://127.0.0.1:1", *files)
    assert patient_commands._tracked(folders, server=False) == files


def test_commands_mean_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Store, working folder and key file are those of .prdit/site.yaml, not those of a configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_series(tmp_path / "source" / "a", uid="1.2.3.1", patient_id=NAME, shape=(16, 20, 20))
    settings = small_ingest(num_levels=2, patient_key_file=str(tmp_path / "secret"))
    ingest(tmp_path / "source", tmp_path / "mine" / "store", settings, runner=Local(1))
    (tmp_path / ".prdit").mkdir()
    (tmp_path / ".prdit" / "site.yaml").write_text(
        "store: mine/store\noverrides: {workdir: mine/work, ingest: {patient_key_file: secret}}\n"
    )

    def value(*arguments: str) -> dict:
        result = CliRunner().invoke(app, [*arguments, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout.splitlines()[-1])

    shown = value("forget", NAME)
    assert (shown["store"], shown["num_scans"]) == ("mine/store", 1)
    assert value("lineage", shown["patient_key"])["volumes"] == {"all": shown["volumes"]}
    assert value("models", "ls")["mlflow"].endswith("/mine/work/mlflow.db")
    assert value("models", "ls", "--config", "small")["mlflow"].endswith("/.prdit/work/mlflow.db")
