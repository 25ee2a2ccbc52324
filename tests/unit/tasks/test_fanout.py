"""Fanning out: streamed and bounded, a lost worker costs its item, our own errors come back whole, Ctrl-C is quiet."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
from distributed import LocalCluster

from storage.errors import UnusableSeriesError, UnwritableError
from tasks.run.child import Child
from tasks.run.fanout import Allowance, Lost, Pool
from tasks.run.runners import Address, Local
from tests.processes import PATIENCE_S, descendants, wait_for
from tests.unit.tasks.fanout_items import (
    FOR_EVER_S,
    LIMITS,
    asks,
    asks_again,
    costly,
    dies,
    dies_once,
    full_disk,
    process,
    slow,
    square_or_die,
    waits,
    yields_slowly,
    yields_then,
)


def test_a_killed_worker_costs_its_own_item_only() -> None:
    with Pool(Local(2)) as pool:
        results = dict(pool.map(square_or_die, range(8)))
    assert isinstance(results[3], Lost)
    assert results[3].reason == "worker_died"
    assert results[5] == Lost("failed", "RuntimeError")
    assert [results[k] for k in (0, 1, 2, 4, 6, 7)] == [0, 1, 4, 16, 36, 49]


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_ours_come_back_whole(workers: int) -> None:
    with Pool(Local(workers)) as pool:
        results = dict(pool.map(full_disk, range(4)))
    assert isinstance(results[2].error, UnwritableError)
    assert "no space is left" in str(results[2].error)
    assert results[2].reason == "failed"
    assert isinstance(results[3].error, UnusableSeriesError)
    assert (results[3].error.reason, results[3].error.file) == ("too_large", "a file")
    assert (results[0], results[1]) == (0, 1)


def test_items_are_taken_as_they_are_needed() -> None:
    taken, done, ahead = 0, 0, 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(200):
            taken += 1
            yield number

    with Pool(Local(2)) as pool:
        for item, result in pool.map(abs, items()):
            assert item == result
            done += 1
            ahead = max(ahead, taken - done)
    assert done == 200
    assert ahead <= 8


def test_one_pool_starts_once_and_only_when_needed() -> None:
    with Pool(Local(2)) as pool:
        few = dict(pool.map(process, range(5), few=5))
        assert len(set(few.values()) - {os.getpid()}) == 1  # one process beside this
        assert not descendants(None, "spawn_main")
        first = set(dict(pool.map(process, range(20))).values())
        second = set(dict(pool.map(process, range(20))).values())
        assert os.getpid() not in first
        assert first == second
        assert len(first) == 2
    assert not descendants(None, "spawn_main")


def test_a_pool_grows() -> None:
    with Pool(Local(2)) as pool:
        assert len(set(dict(pool.map(process, range(1), few=0)).values())) == 1
        assert len(set(dict(pool.map(process, range(20))).values())) == 2


def test_an_error_ends_the_workers_at_once() -> None:
    with pytest.raises(ZeroDivisionError), Pool(Local(2)) as pool:  # what they do takes longer than a test may
        _ = [1 / result for _, result in pool.map(slow, [0.0, *([FOR_EVER_S] * 5)])]
    assert not descendants(None, "spawn_main")


@pytest.mark.parametrize("wait_s", [0.2, 0.7, 1.5, None])
def test_ctrl_c_prints_nothing_and_leaves_nobody(wait_s: float | None, repository: Path) -> None:
    """SIGINT to the whole process group, as a terminal sends it: while the workers start, and while they work."""
    code = (
        "import sys\nfrom tasks.run.fanout import Pool\nfrom tasks.run.runners import Local\n"
        "from tests.unit.tasks.fanout_items import slow\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        with Pool(Local(2)) as pool:\n"
        "            print('ready', flush=True)\n"
        "            list(pool.map(slow, [600.0] * 9))\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(130)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    if wait_s is None:  # until both workers have a process beside them
        wait_for(lambda: len(descendants(child.pid, "tasks.run.child")) >= 2)
    else:
        time.sleep(wait_s)
    family = psutil.Process(child.pid).children(recursive=True)
    os.killpg(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=PATIENCE_S)
    assert errors == ""
    assert child.returncode == 130
    assert psutil.wait_procs(family, PATIENCE_S)[1] == []


# ---- limits and deaths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("few", [0, 5])
def test_an_item_that_costs_too_much_is_stopped(few: int) -> None:
    """In one process beside this, and in those of Dask."""
    with Pool(Local(2)) as pool:
        results = dict(pool.map(costly, range(5), few=few, allowance=lambda _: LIMITS))
    assert results == {
        0: 0,
        1: Lost("too_costly", "it needs more than 300 MB"),
        2: Lost("too_slow", "it took more than 1 s of processor time"),
        3: 3,
        4: 4,  # it waits, as on a busy machine
    }


def test_what_never_ends_is_stopped_and_what_is_large_may_take_longer() -> None:
    with Pool(Local(2)) as pool:
        hung = dict(pool.map(waits, range(2), few=2, allowance=lambda _: Allowance(300, 1.0, waiting_s=1.5)))
        asked = dict(pool.map(asks, [0, 4], few=2, allowance=lambda _: replace(LIMITS, more_s=4.0)))
        capped = dict(pool.map(asks_again, [0], allowance=lambda _: replace(LIMITS, more_s=1.0)))
    assert hung == {0: 0, 1: Lost("too_slow", "it did not end within 2 s")}
    assert asked == {0: Lost("too_slow", "it took more than 1 s of processor time"), 4: 4}
    assert capped == {0: Lost("too_slow", "it took more than 2 s of processor time")}


def test_results_of_one_item_may_share_its_time() -> None:
    with Pool(Local(2)) as pool:
        (_, each), (_, shared) = (
            next(pool.map(yields_slowly, [0], allowance=lambda _, how=how: replace(LIMITS, seconds=2.0, together=how)))
            for how in (False, True)
        )
    assert each == list(range(12))
    assert (shared.reason, shared.detail) == ("too_slow", "it took more than 2 s of processor time")
    assert 2 <= len(shared.done) <= 9


def in_one_process(_: None) -> tuple[dict[int, Any], int]:
    with Pool(Local(1)) as pool:
        found = dict(pool.map(costly, [0, 1], allowance=lambda _: LIMITS))
    return found, len(bytearray(600 << 20))


def test_in_this_process_memory_is_limited_too() -> None:
    # A new process: what other tests left in this one may be freed meanwhile, and the limit counts from what a process has.
    child = Child()
    found, afterwards = child.run(cloudpickle.dumps((in_one_process, None)), None)
    child.close()
    assert found == {0: 0, 1: Lost("too_costly", "it needs more than 300 MB")}
    assert afterwards == 600 << 20  # the limit is gone


def test_what_was_yielded_before_the_loss_is_kept() -> None:
    with Pool(Local(2)) as pool:
        results = dict(pool.map(yields_then, range(4), few=4, allowance=lambda _: LIMITS))
    assert results[0] == [10, 20, 30]
    assert (results[1].reason, results[1].detail, results[1].done) == ("worker_died", "signal SIGKILL", [10, 20])
    assert (results[2].reason, results[2].done) == ("too_slow", [10, 20])
    assert isinstance(results[3].error, UnwritableError)


@pytest.mark.parametrize("where", ["one process", "local workers", "a scheduler"])
def test_an_item_is_tried_twice_and_never_again(tmp_path: Path, where: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    items = [str(tmp_path / "a")]
    with ExitStack() as stack:
        runner: Any = Local(2)
        if where == "a scheduler":
            cluster = LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None)
            runner = Address(stack.enter_context(cluster).scheduler_address)
        few = 1 if where == "one process" else 0
        pool = stack.enter_context(Pool(runner))
        assert dict(pool.map(dies, items, few=few)) == {items[0]: Lost("worker_died", "signal SIGKILL")}
        assert len(list((tmp_path / "a").iterdir())) == 2
        assert list(pool.map(dies_once, [str(tmp_path / "b")], few=few)) == [(str(tmp_path / "b"), 7)]
