"""The process beside another: when that is killed, nothing is printed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path

import cloudpickle
import pytest

from tasks.run.child import Child
from tests.processes import PATIENCE_S

# The thread that ends the process may be later than what is sent: here it never comes.
CODE = (
    "import sys; from tasks.run import child; child._end_with = lambda descriptor: None; child.serve(int(sys.argv[1]))"
)


def waits(number: int) -> int:
    sys.stdin.read()
    return number


def waits_and_yields(number: int) -> Iterator[int]:
    sys.stdin.read()
    yield number


@pytest.mark.parametrize("function", [waits, waits_and_yields])
def test_nobody_waits_for_the_result(function: object, repository: Path) -> None:
    ours, theirs = Pipe()
    command = [sys.executable, "-c", CODE, str(theirs.fileno())]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, pass_fds=[theirs.fileno()], stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=repository
    )
    theirs.close()
    ours.send_bytes(cloudpickle.dumps(None))
    ours.send_bytes(cloudpickle.dumps((function, 1)))
    assert ours.recv_bytes() == b"started"
    ours.close()
    assert process.communicate("", timeout=PATIENCE_S) == ("", "")
    assert process.returncode == 0


def test_what_dask_sets_for_its_own_memory_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    own = Child()
    try:
        assert own.run(cloudpickle.dumps((os.getenv, "MALLOC_TRIM_THRESHOLD_")), None) is None
        assert own.run(cloudpickle.dumps((os.getenv, "OMP_NUM_THREADS")), None) == "1"
    finally:
        own.close()


def test_work_that_may_use_threads_has_what_this_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "1")  # as in a worker of Dask
    own = Child(one_thread=False)
    try:
        assert own.run(cloudpickle.dumps((os.getenv, "MKL_NUM_THREADS")), None) is None
    finally:
        own.close()


def test_a_process_that_nobody_gives_work_ends(repository: Path) -> None:
    """The one who gave it some may have been killed; what it has in memory is needed by others."""
    ours, theirs = Pipe()
    code = "import sys; from tasks.run import child; child._IDLE_S = 0.2; child.serve(int(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=repository)
    theirs.close()
    assert process.wait(PATIENCE_S) == 0
    ours.close()
