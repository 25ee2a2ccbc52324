"""PeakMemory against amounts that are known: bytes we allocate, pages two processes share."""

import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.memory import MIB, PeakMemory, pss_bytes, tree
from tests.processes import wait_for

HOLD = "import sys, time; x = bytearray(b'x') * ({mib} * 2**20); sys.stdout.write('ready\\n'); sys.stdout.flush(); time.sleep(600)"


def hold(mib: int) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLD.format(mib=mib)], text=True, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()


def in_a_small_process(function: Callable[[], None], repository: Path) -> None:
    """Run a function of this module in a new Python: libraries that this process shares with others count more when they end."""
    code = f"from tests.unit.flows import test_memory; test_memory.{function.__name__}()"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_peak_counts_children_and_survives_their_end(repository: Path) -> None:
    in_a_small_process(peak_of_children, repository)


def peak_of_children() -> None:
    memory = PeakMemory(interval_s=0.05)
    before = memory.sample()
    with memory:
        children = [hold(100), hold(60)]
        wait_for(lambda: memory.peak_bytes - before >= 155 * MIB)
        for child in children:
            end(child)
    grown = (memory.peak_bytes - before) / MIB
    assert 155 <= grown <= 200, grown  # 160 MiB held, and two small interpreters
    assert memory.sample() < memory.peak_bytes - 150 * MIB
    assert sum(memory.breakdown.values()) == memory.peak_bytes


def test_roots_outside_our_tree_are_counted(repository: Path) -> None:
    in_a_small_process(roots_outside, repository)


def roots_outside() -> None:
    # A session of its own under PID 1, as a service whose starter has gone.
    script = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {HOLD.format(mib=80)!r}]); print(p.pid)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script], text=True, stdout=subprocess.PIPE, start_new_session=True
    )
    assert starter.stdout is not None
    lines = {starter.stdout.readline().strip() for _ in range(2)}  # the held process says "ready", its starter the id
    pid = int((lines - {"ready"}).pop())
    starter.wait()
    try:
        assert pid not in tree([os.getpid()])
        memory = PeakMemory()
        without = memory.sample()
        memory.watch([pid])
        grown = (memory.sample() - without) / MIB
        assert 79 <= grown <= 100, grown
    finally:
        psutil.Process(pid).kill()


def test_shared_pages_count_once(repository: Path) -> None:
    in_a_small_process(shared_pages, repository)


def shared_pages() -> None:
    """Two processes map the same 64 MiB: their summed PSS grows by 64, their summed resident size by 128."""
    shared = mmap.mmap(-1, 64 * MIB)
    shared.write(b"x" * (64 * MIB))
    alone = pss_bytes(os.getpid())
    touched, touch = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - the child touches every page and waits
        _ = sum(shared[i] for i in range(0, 64 * MIB, mmap.PAGESIZE))
        os.write(touch, b"x")
        time.sleep(600)
        os._exit(0)
    try:
        assert os.read(touched, 1) == b"x"
        assert alone - pss_bytes(os.getpid()) > 30 * MIB  # half of the mapping is the child's now
        assert 32 * MIB <= pss_bytes(pid) <= psutil.Process(pid).memory_info().rss - 30 * MIB
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


class Waits(threading.Event):
    """Notes how long it is waited for, does not wait, and has happened after so many times."""

    def __init__(self, asked: list[float], enough: int) -> None:
        super().__init__()
        self.asked, self.enough = asked, enough

    def wait(self, timeout: float | None = None) -> bool:
        self.asked.append(float(timeout or 0.0))
        return len(self.asked) > self.enough


class SlowSampler(PeakMemory):
    """Each sample costs 20 ms of CPU."""

    def sample(self) -> int:
        self.num_samples += 1
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            continue
        return 0


def test_a_slow_sample_is_paid_for_by_a_longer_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 ms at 2 % of a core means a pause of a second, for any interval."""
    pauses: list[float] = []
    memory = SlowSampler(interval_s=0.01)
    monkeypatch.setattr(memory, "_ended", Waits(pauses, enough=3))
    with memory:
        memory._thread.join()
    assert pauses[0] == 0.01
    assert all(1.0 <= pause < 2.0 for pause in pauses[1:]), pauses


def test_ended_process_is_no_error() -> None:
    child = hold(1)
    end(child)
    with pytest.raises((OSError, psutil.Error)):
        pss_bytes(child.pid)
    assert PeakMemory([child.pid]).sample() > 0
