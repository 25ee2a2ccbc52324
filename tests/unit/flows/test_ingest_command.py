"""`prdit ingest` and `prdit qc` as a person calls them: exit codes, what is said, what is left behind."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from pydicom.dataset import Dataset
from typer.testing import CliRunner

from flows.cli import app
from flows.verdict_text import SHOWN_PER_REASON, verdict_text
from storage.documents.patient_key_id import PatientKeyId
from storage.documents.verdicts import Entry, IngestReport
from tests.unit.storage.dicom_files import write_series

SETTINGS = [
    f"--set=ingest.{name}={value}"
    for name, value in {
        "min_slices": 8,
        "min_length_mm": 0,
        "min_width_mm": 0,
        "spacing_mm": 4,
        "num_levels": 2,
    }.items()
] + ["--set=runner.num_workers=1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and no servers."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "here"


def ingest(source: Path | str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["ingest", str(source), "--store", "store", *SETTINGS, *arguments])


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def nothing(source: Path) -> None:
    source.mkdir()


def text(source: Path) -> None:
    source.mkdir()
    (source / "a.txt").write_text("no image")


def archive(source: Path) -> None:
    source.mkdir()
    with zipfile.ZipFile(source / "a.zip", "w") as stream:
        stream.writestr("a.txt", "no image")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda source: None, "does not exist. Give a folder with CT"),
        (lambda source: source.write_text("x"), "is not a folder. Give a folder with CT"),
        (nothing, "is empty. Give a folder with CT"),
        (text, "1 unknown_format. Give a folder (or zip or tar archives) with CT"),
        (archive, "No CT in"),
    ],
)
def test_a_source_without_ct_is_refused_and_makes_no_store(here: Path, tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "src")
    said = ingest(tmp_path / "src")
    assert said.exit_code == 1
    assert message in " ".join(said.stderr.split())
    assert said.stdout == ""
    value = json.loads(ingest(tmp_path / "src", "--json").stdout)
    assert (value.keys(), value["exit_code"]) == ({"error", "exit_code"}, 1)
    assert message in value["error"]
    assert left(here) <= {"store.patient-key", "store.files.sqlite", "store.ingests"}


def test_another_grid_is_refused_and_nothing_changes(here: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "src")
    assert ingest(tmp_path / "src").exit_code == 0
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    said = ingest(tmp_path / "src", "--set=ingest.spacing_mm=2")
    assert said.exit_code == 1
    assert "another grid than asked for: spacing_mm 2.0 (store: 4.0)" in " ".join(said.stderr.split())
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_bad_neighbours_change_neither_the_good_scan_nor_the_exit_code(tmp_path: Path) -> None:
    write_series(tmp_path / "src" / "good", uid="1.2.3.1")
    alone = json.loads(ingest(tmp_path / "src", "--json").stdout.splitlines()[-1])
    shutil.rmtree("store")
    write_series(tmp_path / "src" / "gap", uid="1.2.3.2", skip=(9,))
    (tmp_path / "src" / "cut.dcm").write_bytes((tmp_path / "src" / "good" / "000.dcm").read_bytes()[:400])
    said = ingest(tmp_path / "src", "--json")
    assert said.exit_code == 0
    value = json.loads(said.stdout)  # logs are on stderr
    assert [entry["volume_id"] for entry in value["committed"]] == [entry["volume_id"] for entry in alone["committed"]]
    assert value["counts"]["committed"] == 1
    assert value["num_excluded"]["missing_slices"] == 1
    (gap,) = (entry for entry in value["quarantined"] if entry["reason"] == "missing_slices")
    assert gap["behind"] == ["ImagePositionPatient"]
    assert "thumbnail" not in gap
    assert Path(value["qc"]).is_file()


def test_nothing_usable_shows_the_reasons_and_takes_no_snapshot(here: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "src" / "short", shape=(5, 8, 8))
    for again in range(2):
        said = ingest(tmp_path / "src")
        assert said.exit_code == 1, again
        assert "too_few_slices" in said.stdout
        assert "[ingest.min_slices = 8] (first file: short/000.dcm)" in said.stdout
        assert "No usable CT" in said.stderr
        assert not (here / "store" / "history").exists()
    value = json.loads(ingest(tmp_path / "src", "--json").stdout)
    assert (value["snapshot"], value["exit_code"]) == ("", 1)
    assert value["error"].startswith("No usable CT")
    write_series(tmp_path / "src" / "good", uid="1.2.3.1")
    assert ingest(tmp_path / "src").exit_code == 0


def test_the_page_is_written_again(here: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "src")
    assert "page with pictures: " in ingest(tmp_path / "src").stdout
    page = here / "store.ingests" / "qc.html"
    page.unlink()
    said = CliRunner().invoke(app, ["qc", "store"])
    assert said.exit_code == 0
    assert Path(said.stdout.strip()) == page
    assert "1.2.3.4.5" in page.read_text()
    assert CliRunner().invoke(app, ["qc", "nowhere"]).exit_code == 1


def test_a_thousand_items_stay_readable() -> None:
    entries = [Entry(series_uid=f"1.2.{k}", reason="too_short", message=f"Scan 1.2.{k} is 8 mm.") for k in range(1000)]
    report = IngestReport(
        quarantined=entries, num_excluded={"too_short": 1000}, snapshot="", store="/s", notes=["a note"] * 1000
    )
    lines = verdict_text(report, Path("/s.ingests/qc.html")).splitlines()
    assert len(lines) < 30
    assert "    1000  quarantined  too_short" in lines
    assert sum("is 8 mm" in line for line in lines) == SHOWN_PER_REASON
    assert any("995 more" in line for line in lines)
    assert "/s.ingests/qc.html" in lines[-1]


def test_verify_and_ingest_give_the_same_advice_for_a_damaged_record_of_the_key(here: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "src")
    assert ingest(tmp_path / "src").exit_code == 0
    record = here / "store" / PatientKeyId.NAME
    record.write_text("{")
    found = CliRunner().invoke(app, ["verify", "store", "--json"])
    (finding,) = json.loads(found.stdout)["findings"]
    assert (finding["kind"], found.exit_code) == ("patient key", 1)
    assert "--repair\n" not in found.stderr
    write_series(tmp_path / "src" / "more", uid="1.2.3.9", shape=(9, 26, 28))  # else there is nothing to do
    for arguments in ((), ("--repair",)):
        said = ingest(tmp_path / "src", *arguments)
        assert said.exit_code == 1
        assert (
            finding["message"].partition("remove this record")[1:]
            == said.stderr.strip().partition("remove this record")[1:]
        )
    record.unlink()
    assert ingest(tmp_path / "src").exit_code == 0


def test_remedies_name_the_store(here: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "src")
    assert ingest(tmp_path / "src").exit_code == 0
    for path in (here / "store" / "commits").iterdir():
        path.write_text("{}")
    said = CliRunner().invoke(app, ["verify", "store"])
    assert "prdit ingest SOURCE --store store --repair" in said.stdout
    assert "STORE" not in said.stdout + said.stderr
    assert "is no commit record of a volume" in said.stdout


def test_a_store_in_its_source_is_refused(here: Path) -> None:
    write_series(here / "src")
    before = left(here / "src")
    said = ingest(here / "src", "--store", str(here / "src" / "store"))
    assert said.exit_code == 1
    assert "lies in the source" in " ".join(said.stderr.split())
    assert left(here / "src") == before


def verdicts(source: Path) -> dict[str, Any]:
    said = ingest(source, "--json")
    assert said.exit_code == 0, said.stderr
    return dict(json.loads(said.stdout))


def test_a_source_that_was_moved_is_unchanged(tmp_path: Path) -> None:
    write_series(tmp_path / "src")
    first = verdicts(tmp_path / "src")
    (tmp_path / "src").rename(tmp_path / "moved")
    for place in ("moved", "moved", "src"):
        if place == "src":
            (tmp_path / "moved").rename(tmp_path / "src")
        again = verdicts(tmp_path / place)
        assert again["counts"] == {"committed": 0, "unchanged": 1, "skipped": 0, "quarantined": 0}
        assert again["unchanged"][0]["volume_id"] == first["committed"][0]["volume_id"]
        assert again["snapshot"] == first["snapshot"]


def test_verdicts_are_of_the_files_that_are_there_now(tmp_path: Path) -> None:
    write_series(tmp_path / "src", shape=(20, 16, 16))
    whole = verdicts(tmp_path / "src")["committed"][0]["volume_id"]
    away = [path.rename(tmp_path / path.name) for path in sorted((tmp_path / "src").glob("*.dcm"))[-5:]]
    shorter = json.loads(ingest(tmp_path / "src", "--json").stdout)
    assert shorter["num_excluded"] == {"shorter_copy": 1}
    assert shorter["counts"]["unchanged"] == 0
    for path in away:
        path.rename(tmp_path / "src" / path.name)
    back = verdicts(tmp_path / "src")
    assert back["num_excluded"] == {}
    assert [entry["volume_id"] for entry in back["unchanged"]] == [whole]


def test_what_is_to_be_tried_again_is_tried_again(here: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "src" / "a", uid="1.2.3.1")
    write_series(tmp_path / "src" / "b", uid="1.2.3.2", shape=(20, 26, 28))
    verdicts(tmp_path / "src")
    (record,) = (here / "store.ingests").glob("source-*.json")
    value = json.loads(record.read_text())
    lost = value["committed"].pop()
    lost |= {"volume_id": None, "reason": "worker_died", "message": "it died"}
    value["quarantined"].append({name: lost[name] for name in ("series_uid", "num_slices", "reason", "message")})
    value["num_excluded"] = {"worker_died": 1}
    record.write_text(json.dumps(value))
    assert verdicts(tmp_path / "src")["counts"] == {"committed": 0, "unchanged": 2, "skipped": 0, "quarantined": 0}


def test_images_that_a_volume_was_made_without_are_skipped(tmp_path: Path) -> None:
    def turned(k: int, data: Dataset) -> None:
        if k in (0, 23):
            data.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
            data.ImagePositionPatient = [0, 0, 300 + k]  # not where a next slice would be

    write_series(tmp_path / "src" / "good", uid="1.2.3.1", change=turned)
    write_series(tmp_path / "src" / "half", uid="1.2.3.2", change=lambda k, data: turned(0 if k < 8 else 1, data))
    for _ in range(2):
        value = verdicts(tmp_path / "src")
        assert value["num_excluded"] == {"inconsistent_orientation": 3}
        assert value["num_odd_images"] == {"inconsistent_orientation": 2}
        assert (value["counts"]["skipped"], value["counts"]["quarantined"]) == (2, 1)
        assert all(one["message"].endswith("nothing to do.") for one in value["skipped"])
        assert [one["series_uid"] for one in value["quarantined"]] == ["1.2.3.2"]
    said = ingest(tmp_path / "src").stdout
    assert "       2  skipped      inconsistent_orientation" in said
    assert "       1  quarantined  inconsistent_orientation" in said
