"""What a back-up holds and puts back, without the servers; with them: tests/integration/test_services_real.py."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows import backup as module
from flows.backup import backup, restore
from flows.databases import Database, DatabaseError
from storage.errors import ConfigError
from storage.files import sha256_file
from storage.processes import machine
from tasks.prune.remove import LINEAGE
from tasks.retrain import decisions, held_out, reference, rounds

STATE = Path(".prdit") / "services"
SITE = "configuration: conf/lung.yaml\npolicy: pol/lung.yaml\noverrides: {workdir: work}\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRDIT_DATABASE", raising=False)
    for name, text in (
        (".prdit/site.yaml", SITE),
        ("conf/lung.yaml", "base: tiny\n"),
        ("pol/lung.yaml", "max_days: 3\n"),
        *((f"work/{name}/00000001/record.json", name) for name in recorded()),
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    return tmp_path


def recorded() -> list[str]:
    """Folders of a working folder that are no stages and that retraining and retention write."""
    return [decisions.FOLDER, held_out.FOLDER, reference.FOLDER, rounds.FOLDER, "runs", LINEAGE]


def test_files_of_one_name_and_every_record_come_back(place: Path) -> None:
    half = (
        place / f".backup.{machine()}-999999999-1-00000000.tmp"
    )  # of a process that was killed: it has the secret, too
    half.mkdir()
    backup(place / "backup", STATE)
    assert not half.exists()
    for name in (".prdit", "conf", "pol", "work"):
        shutil.rmtree(name)
    restore(place / "backup", STATE)
    assert (Path("conf/lung.yaml").read_text(), Path("pol/lung.yaml").read_text()) == ("base: tiny\n", "max_days: 3\n")
    assert {name: Path(f"work/{name}/00000001/record.json").read_text() for name in recorded()} == {
        name: name for name in recorded()
    }


@pytest.mark.parametrize("inside", [".prdit/store/x", "work/x", ".prdit/inbox/a/b"])
def test_a_back_up_is_not_put_among_what_it_is_about(place: Path, inside: str) -> None:
    with pytest.raises(ConfigError, match="holds the secret of the patient keys"):
        backup(place / inside, STATE)
    assert not (place / inside).parent.exists() or not any((place / inside).parent.glob("*x*"))


def test_records_of_checkpoints_that_were_removed_later_stay(place: Path) -> None:
    backup(place / "backup", STATE)
    later = [Path("work") / name / "00000002" / "record.json" for name in (decisions.FOLDER, LINEAGE)]
    for path in later:
        path.parent.mkdir()
        path.write_text("later")
    _, aside = restore(place / "backup", STATE)
    assert [path.exists() for path in later] == [False, True]
    assert aside is not None
    assert (aside / later[0]).read_text() == "later"


def test_a_dump_that_cannot_be_loaded_leaves_every_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backup(place / "backup", STATE)
    made = json.loads((place / "backup" / "backup.json").read_text())
    for name in ("prefect", "mlflow"):
        dump = place / "backup" / "databases" / f"{name}.dump"
        dump.parent.mkdir(exist_ok=True)
        dump.write_text(name)
        made["files"][f"databases/{name}.dump"] = {"sha256": sha256_file(dump), "target": "", "group": "databases"}
    (place / "backup" / "backup.json").write_text(json.dumps(made | {"databases": "postgresql"}))
    monkeypatch.setenv("PRDIT_DATABASE", "postgresql://prdit:secret@127.0.0.1:1")
    monkeypatch.setattr(module, "_check_empty", lambda database: None)

    def run(database: Database, words: list[str]) -> Any:
        if database.name == "mlflow":
            raise DatabaseError("pg_restore failed")

    monkeypatch.setattr(module, "_postgres", run)
    Path("conf/lung.yaml").write_text("base: small\n")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with pytest.raises(DatabaseError, match=r"Nothing was changed but that prefect on 127\.0\.0\.1 has the back-up's"):
        restore(place / "backup", STATE)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
