"""A process whose output nobody reads any more gets SIGTERM once, and can still write; another goes on undisturbed."""

import os
import subprocess
import sys
from pathlib import Path

from tests.parity.location import REPOSITORY

PROGRAM = """
import signal, sys, time
from flows.orphans import worker_lost, worker_watched

class Stopped(BaseException): pass

def stop(*_):
    raise Stopped

signal.signal(signal.SIGTERM, stop)
with open(sys.argv[1], "w", buffering=1) as notes:
    try:
        with worker_watched():
            notes.write("begun\\n")
            while not sys.argv[2:]:
                time.sleep(0.05)
    except Stopped:
        print("nobody reads this", flush=True)
        notes.write(f"saved, lost: {worker_lost()}\\n")
    else:
        notes.write(f"ended, lost: {worker_lost()}\\n")
"""


def begin(notes: Path, output: int, *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(notes), *arguments], cwd=REPOSITORY, stdout=output, stderr=output
    )


def test_the_death_of_the_reader_is_a_sigterm(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    process = begin(tmp_path / "notes", writing)
    os.close(writing)
    while not (tmp_path / "notes").exists() or "begun" not in (tmp_path / "notes").read_text():
        assert process.poll() is None
    os.close(reading)
    assert process.wait(60) == 0
    assert (tmp_path / "notes").read_text() == "begun\nsaved, lost: True\n"


def test_output_into_a_file_is_none_to_watch(tmp_path: Path) -> None:
    with (tmp_path / "output").open("wb") as output:
        process = begin(tmp_path / "notes", output.fileno(), "end at once")
        assert process.wait(60) == 0
    assert (tmp_path / "notes").read_text() == "begun\nended, lost: False\n"
