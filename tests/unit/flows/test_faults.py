"""What the command line does with errors: one message, a file with the traceback, or an exit code alone."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from storage.errors import ConfigError, InputError, UnwritableError
from tests.processes import PATIENCE_S


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def broken(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the innermost work of `prdit demo-data` raise."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("storage.phantom.series.write_demo_data", fail)


def reports() -> list[Path]:
    return sorted(Path(".prdit/errors").glob("*.txt")) if Path(".prdit").is_dir() else []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("ten patients\nare too few"), 1),
        (UnwritableError("disk full"), 1),
        (ConfigError("no such key"), 2),
    ],
)
def test_a_users_error_is_one_message(monkeypatch: pytest.MonkeyPatch, error: Exception, code: int) -> None:
    broken(monkeypatch, error)
    found = call("demo-data", "out")
    assert (found.exit_code, found.stdout, found.stderr) == (code, "", f"error: {error}\n")
    found = call("demo-data", "out", "--json")
    assert (found.exit_code, found.stderr) == (code, f"error: {error}\n")
    assert json.loads(found.stdout) == {"error": str(error), "exit_code": code}
    assert call("demo-data", "--", "--json").stdout == ""
    assert reports() == []


@pytest.mark.parametrize(
    "error", [TypeError("1 + None"), ValueError("shapes differ"), RuntimeError("x"), OSError(71, "protocol")]
)
def test_a_fault_keeps_its_traceback_in_a_private_file(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    broken(monkeypatch, error)
    found = call("demo-data", "out", "--seed", "3")
    assert found.exit_code == 70
    [path] = reports()
    said = found.stderr.splitlines()
    assert said[0] == f"error: {type(error).__name__}: {error}"
    assert str(path) in said[1]
    assert "--debug" in said[1]
    assert "Traceback" not in found.stderr
    assert re.fullmatch(r"\d{8}T\d{6}\.\d{6}Z-demo-data\.txt", path.name)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert text.startswith("prdit demo-data out --seed 3\n")
    assert re.search(r"prdit \d+\.\d+\.\d+, torch \d", text)
    assert f"{type(error).__name__}: {error}" in text
    assert "in fail\n    raise error" in text


def test_a_fault_where_the_folder_cannot_be_written_goes_to_the_temporary_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    (tmp_path / ".prdit").write_text("a file, so that no folder can be made here")
    broken(monkeypatch, KeyError("gone"))
    found = call("demo-data", "out")
    [path] = temporary.iterdir()
    assert found.exit_code == 70
    assert str(path) in found.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "KeyError: 'gone'" in path.read_text()


@pytest.mark.parametrize(
    "words", [("--debug", "demo-data", "out"), ("demo-data", "out", "--debug"), ("demo-data", "--debug", "out")]
)
@pytest.mark.parametrize(("error", "code"), [(InputError("too few"), 1), (TypeError("1 + None"), 70)])
def test_debug_shows_both_kinds_whole(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], error: Exception, code: int
) -> None:
    broken(monkeypatch, error)
    found = call(*words)
    assert found.exit_code == code
    assert found.stderr.startswith("Traceback (most recent call last):")
    assert f"{error}" in found.stderr.splitlines()[-1 if code == 1 else -2]
    assert "in fail" in found.stderr
    again = call("demo-data", "out")
    assert "Traceback" not in again.stderr  # the option is not remembered


def test_after_two_dashes_debug_is_a_name() -> None:
    found = call("export-checkpoint", "--", "--debug", "x.pt")
    assert found.exit_code == 1
    assert found.stderr.startswith("error: --debug is not the directory of a committed artifact")


def test_used_up_memory_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, MemoryError())
    found = call("demo-data", "out")
    assert found.exit_code == 70
    assert found.stderr.startswith("error: the machine's memory is used up (MemoryError). Use smaller batches")


def test_an_interrupted_command_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, KeyboardInterrupt())
    found = call("demo-data", "out")
    assert (found.exit_code, found.stderr) == (130, "interrupted; what is finished is kept\n")


def test_control_c_in_a_real_process(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    # A test runner in the background of a shell ignores the signal, and so would what it starts.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from flows.cli import main; main()"
    command = [sys.executable, "-c", code, "demo-data", str(tmp_path / "out"), "--patients", "500"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (tmp_path / "out").is_dir():
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.05)
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=PATIENCE_S)
    finally:
        child.kill()
    assert child.returncode == 130
    assert said.splitlines()[-1] == "interrupted; what is finished is kept"
    assert "Traceback" not in said


def test_control_characters_of_errors_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, InputError("file \x1b]0;owned\x07 \x9b31m \u202ereversed\u2066 \udcff and Müller"))
    assert call("demo-data", "out").stderr == (
        "error: file \\x1b]0;owned\\x07 \\x9b31m \\u202ereversed\\u2066 \\udcff and Müller\n"
    )
    broken(monkeypatch, TypeError("\x1b[2J"))
    found = call("demo-data", "out")
    assert "\x1b" not in found.stderr
    assert "\x1b" not in reports()[0].read_text()


def test_help_names_the_exit_codes_and_debug() -> None:
    said = " ".join(call("--help").stdout.split())
    assert "--debug" in said
    assert "70 a fault of prdit" in said


def test_the_report_of_a_fault_names_no_folder_that_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "Doe John"
    folder.mkdir()
    broken(monkeypatch, TypeError(f"bad file {folder / 'a b' / 'c.dcm'}"))
    assert call("demo-data", str(folder)).exit_code == 70
    (report,) = reports()
    text = report.read_text()
    assert "Doe" not in text
    assert "TypeError: bad file" in text
    assert "test_faults.py" in text
