"""`prdit lineage` and `prdit forget` as a person calls them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from storage.volume_store import VolumeStore
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.factories import small_ingest
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
