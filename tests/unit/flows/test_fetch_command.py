"""`prdit fetch idc`: the dry run, a whole fetch up to the ingest, a kill in the middle, and errors."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from tests.fake_idc import COLLECTION, DOI, LICENCE, FakeIdc, fake_idc, index_row, no_fault, write_index


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeIdc]:
    with fake_idc(tmp_path_factory.mktemp("idc")) as archive:
        yield archive


@pytest.fixture(autouse=True)
def _in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def arguments(archive: FakeIdc, *more: str) -> list[str]:
    where = ["--index", str(archive.index), "--endpoint", archive.endpoint]
    return ["fetch", "idc", "--collection", COLLECTION, *where, *more]


def call(*given: str) -> Result:
    return CliRunner().invoke(app, list(given))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.dcm")}


def test_a_limit_without_limit_is_a_wrong_option(archive: FakeIdc) -> None:
    refused = call(*arguments(archive, "--max-gb", "inf", "--dry-run"))
    assert refused.exit_code == 2
    assert "--max-gb" in refused.output


def test_an_endpoint_that_is_no_address_writes_nothing(archive: FakeIdc, tmp_path: Path) -> None:
    refused = call(*arguments(archive), "--endpoint", "minio.example", "--to", "there")
    assert refused.exit_code == 1
    assert "'minio.example' is no address of an S3 server" in refused.output
    assert list(tmp_path.iterdir()) == []


def test_dry_run_shows_the_plan_and_writes_nothing(archive: FakeIdc, tmp_path: Path) -> None:
    archive.asked.clear()
    shown = call(*arguments(archive, "--patients", "1", "--dry-run", "--json"))
    assert shown.exit_code == 0, shown.output
    value = json.loads(shown.stdout.splitlines()[-1])
    first = sorted(key.partition("/")[0] for key in archive.files)
    sizes = [sum(len(data) for key, data in archive.files.items() if key.startswith(prefix)) for prefix in set(first)]
    assert value["num_bytes"] in sizes
    assert (value["num_patients"], value["num_series"], value["num_bytes_there"]) == (1, 1, 0)
    assert value["licences"] == [{"licence": LICENCE, "doi": DOI, "num_series": 1, "forbids_commercial_use": True}]
    assert value["data"] == f".prdit/idc/{COLLECTION}/dicom"
    assert list(tmp_path.iterdir()) == []
    assert archive.asked == []
    text = call(*arguments(archive, "--patients", "1", "--dry-run")).stdout
    assert f"licence {LICENCE}: 1 series, https://doi.org/{DOI}; it forbids commercial use" in text
    assert text.endswith("dry run: nothing was downloaded\n")
    assert "PHANTOM" not in text + shown.stdout  # a PatientID


def test_what_was_fetched_can_be_ingested_and_added_to(archive: FakeIdc, tmp_path: Path) -> None:
    one = call(*arguments(archive, "--patients", "1", "--to", "scans"))
    assert one.exit_code == 0, one.output
    assert one.stdout.endswith("next: prdit ingest scans/dicom --store .prdit/store\n")
    assert "each has the archive's size and MD5" in one.stdout
    before = names(tmp_path / "scans")
    both = call(*arguments(archive, "--to", "scans", "--json"))
    assert both.exit_code == 0, both.output
    value = json.loads(both.stdout.splitlines()[-1])
    assert value["downloaded"]["num_there"] == len(before)
    assert value["downloaded"]["num_downloaded"] == len(archive.files) - len(before)
    assert len(names(tmp_path / "scans")) == len(archive.files)
    assert call(*arguments(archive, "--patients", "1", "--to", "scans")).exit_code == 1  # lacks what is there

    settings = [f"ingest.{setting}" for setting in ("min_slices=8", "min_length_mm=0", "min_width_mm=0")]
    given = [part for setting in settings for part in ("--set", setting)]
    done = call("ingest", "scans/dicom", "--config", "tiny", *given, "--store", "store", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["counts"] == {
        "committed": 2,
        "unchanged": 0,
        "skipped": 0,
        "quarantined": 0,
    }


def test_after_a_kill_the_same_command_goes_on(archive: FakeIdc, tmp_path: Path) -> None:
    """Killed with half of the images there and others on their way; whole ones are not asked for again."""
    half, held = len(archive.files) // 2, threading.Event()

    def hold(path: str, status: int, body: bytes) -> tuple[int, bytes]:
        if "list-type" not in path and len(archive.asked) > half:
            held.wait(120)
        return status, body

    archive.asked.clear()
    archive.fault = hold
    command = [sys.executable, "-m", "flows.cli", *arguments(archive, "--to", "scans")]
    started = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path, env=os.environ
    )
    try:
        limit = time.monotonic() + 100
        while len(archive.asked) <= half:
            assert started.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < limit
            time.sleep(0.02)
        time.sleep(0.2)  # those that were answered are written
    finally:
        started.send_signal(signal.SIGKILL)
        started.wait()
        held.set()
    there = names(tmp_path / "scans")
    assert list(tmp_path.rglob(".*.tmp")), "images on their way when it was killed"
    assert 0 < len(there) < len(archive.files)

    archive.fault = no_fault
    archive.asked.clear()
    again = call(*arguments(archive, "--to", "scans", "--json"))
    assert again.exit_code == 0, again.output
    assert {path.rpartition("/")[2] for path in archive.asked}.isdisjoint(there)
    fetched = {path.name: path.read_bytes() for path in (tmp_path / "scans" / "dicom").rglob("*") if path.is_file()}
    assert fetched == {key.rpartition("/")[2]: data for key, data in archive.files.items()}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--collection", "lidc"], "error: IDC has no collection 'lidc'"),
        (["--where", "PatientID = 'nobody'"], "error: No series of phantom_chest match"),
        (["--max-gb", "0.001", "--min-slices", "1"], "error: The first patient's series are"),
    ],
)
def test_errors_are_one_sentence(tmp_path: Path, more: list[str], words: str) -> None:
    index = write_index(tmp_path / "index.parquet", [index_row("P", "1.2.3")])
    shown = call("fetch", "idc", "--collection", COLLECTION, "--index", str(index), *more)
    assert shown.exit_code == 1
    assert shown.stderr.startswith(words)
    assert len(shown.stderr.splitlines()) == 1
    assert not (tmp_path / ".prdit" / "idc").exists()
