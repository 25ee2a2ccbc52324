"""Items for workers that cost too much, die, hang or yield; a module of its own, since each process of a test imports it."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from storage.errors import UnusableSeriesError, UnwritableError
from tasks.run.child import Allowance, need_more

FOR_EVER_S = 3600.0  # longer than a test may take: what is not ended fails it by pytest's own limit
LIMITS = Allowance(memory_mb=300, seconds=1.0)


def square_or_die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 5:
        raise RuntimeError("no squares today")
    return number * number


def process(number: int) -> int:
    return os.getpid()


def full_disk(number: int) -> int:
    if number == 2:
        raise UnwritableError("/store/x cannot be written: no space is left.")
    if number == 3:
        raise UnusableSeriesError("too_large", "too large", "a file")
    return number


def slow(seconds: float) -> float:
    slow.lock = multiprocessing.get_context(
        "spawn"
    ).Lock()  # compressors of arrays hold one too: a killed worker leaves it
    time.sleep(seconds)
    return seconds


def spin(seconds: float) -> None:
    """Use the processor for so long."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def waits(number: int) -> int:
    if number == 1:
        time.sleep(FOR_EVER_S)
    return number


def asks(number: int) -> int:
    need_more(float(number))
    spin(2 * LIMITS.seconds)
    return number


def asks_again(number: int) -> int:
    for _ in range(100):
        need_more(1000.0)
    spin(FOR_EVER_S)
    return number


def yields_slowly(number: int) -> Iterator[int]:
    for k in range(12):
        spin(0.3)  # shorter than it is between two looks, which a result must not put off
        yield k


def costly(number: int) -> int:
    if number == 1:
        return len(bytearray(600 << 20))
    if number == 2:
        spin(FOR_EVER_S)
    if number == 4:
        time.sleep(3 * LIMITS.seconds)
    return number


def yields_then(number: int) -> Iterator[int]:
    yield 10
    yield 20
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 2:
        spin(FOR_EVER_S)
    if number == 3:
        raise UnwritableError("/store/x cannot be written: no space is left.")
    yield 30


def dies(folder: str) -> int:
    """Kills its process each time, and counts."""
    (Path(folder) / str(time.monotonic_ns())).touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def dies_once(folder: str) -> int:
    if not list(Path(folder).iterdir()):
        dies(folder)
    return 7
