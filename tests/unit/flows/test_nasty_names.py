"""File names and UIDs with control characters, through the real command: none reaches the terminal, the log or the JSON raw."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.storage.dicom_files import write_series

ROOT = Path(__file__).parents[3]
TITLE = "a\x1b]0;owned\x07\nERROR: forged\r.dcm"
BIDI = "b\u202egnp.dcm"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A good series, damaged files with nasty names, one with a nasty series UID."""
    folder = tmp_path / "scans \x1b[31m"
    write_series(folder / "good")
    content = next((folder / "good").iterdir()).read_bytes()
    for name in (TITLE, BIDI):
        (folder / name).write_bytes(content[: len(content) // 3])
    with open(os.fsencode(folder) + b"/\xff\xfe.dcm", "wb") as stream:  # noqa: PTH123  # a name that is not UTF-8
        stream.write(content[:300])
    return folder


def ingest(source: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from flows.cli import main; main()", "ingest", str(source), "--store", "store"]
    return subprocess.run(
        [
            *command,
            "--set",
            "runner.num_workers=1",
            "--set",
            "ingest.min_slices=4",
            "--set",
            "ingest.min_length_mm=0",
            "--set",
            "ingest.min_width_mm=0",
            *arguments,
        ],
        capture_output=True,
        text=True,
        cwd=source.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        check=False,
    )


def test_ingest_shows_names_escaped(source: Path) -> None:
    found = ingest(source)
    assert found.returncode == 0, found.stderr
    for text in (found.stdout, found.stderr):
        assert RAW.search(text) is None, text
    assert "a\\x1b]0;owned\\x07\\nERROR: forged\\r.dcm" in found.stdout
    assert "b\\u202egnp.dcm" in found.stdout
    assert "\\udcff\\udcfe.dcm" in found.stdout
    assert not [line for line in found.stdout.splitlines() if line.startswith("ERROR")]


def test_json_is_ascii_and_keeps_the_names(source: Path) -> None:
    found = ingest(source, "--json")
    assert found.returncode == 0, found.stderr
    assert found.stdout.isascii()
    assert RAW.search(found.stdout + found.stderr) is None
    report = json.loads(found.stdout.splitlines()[-1])
    assert TITLE in {entry["path"] for entry in [*report["skipped"], *report["quarantined"]]}


def test_a_source_that_does_not_exist_is_named_escaped(source: Path) -> None:
    found = ingest(source.parent / "none\x1b]0;x\x07")
    assert found.returncode == 1
    assert "none\\x1b]0;x\\x07" in found.stderr
    assert RAW.search(found.stdout + found.stderr) is None


def test_a_wrong_option_is_shown_escaped(source: Path) -> None:
    found = ingest(source, "more\x1b]0;x\x07")
    assert found.returncode == 2
    assert RAW.search(found.stdout + found.stderr) is None, found.stderr
