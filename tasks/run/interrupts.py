"""Ctrl-C is for the process that waits, not for the workers it has started."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Block SIGINT for the threads and processes that are started in the block, as those inherit it.

    Ctrl-C reaches every process of a terminal. This one ends the run and its workers; a worker that is interrupted itself would
    print a traceback and be started again. This process still gets the signal when the block ends.
    """
    _start_resource_tracker()  # starting it later would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_resource_tracker() -> None:
    """Start Python's process that removes the semaphores of killed workers, without its warning that it does so."""
    before = os.environ.get("PYTHONWARNINGS", "")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (before, "ignore:resource_tracker:UserWarning")))
    try:
        resource_tracker.ensure_running()
    finally:
        if before:
            os.environ["PYTHONWARNINGS"] = before
        else:
            del os.environ["PYTHONWARNINGS"]
