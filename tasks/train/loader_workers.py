"""Processes of torch's DataLoader: how they begin, how they end, and how that is noticed."""

import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from tasks.run.launchers.rank import STOP_SIGNALS

_PR_SET_PDEATHSIG = 1  # prctl(2)


def begun(made: Any) -> Iterator[Any]:
    """The iterator of a DataLoader, without its signal handler.

    That one would raise wherever the training is just then, in the middle of saving too, when a worker has died; here, and where
    torch waits for a batch, this is noticed as well.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    found = iter(made)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)
    return found


def dead(workers: list[Any]) -> list[str]:
    """How workers ended that should be there."""
    codes = [worker.exitcode for worker in workers if not worker.is_alive()]
    return [signal.Signals(-code).name if code < 0 else f"exit code {code}" for code in codes]


def begin_worker(_: int) -> None:
    """A worker ends when the training asks it to, or with it; not by a signal to the whole job, after which the training saves.

    A worker that outlived a killed training would keep its locks and connections, which it inherited, until torch's watch sees it.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
