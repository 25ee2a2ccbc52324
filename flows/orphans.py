"""A run of a deployment whose worker has died stops, saves, and is scheduled again: the next worker goes on from its checkpoint.

Without that it would go on where nobody can cancel it, until its next line of output finds that nobody reads: Prefect's console
ends the process then, in the middle of whatever it does.
"""

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_STDOUT, _STDERR = 1, 2
_EACH_MS = 1000
_lost = threading.Event()


def worker_lost() -> bool:
    """Whether the worker that started this process has died."""
    return _lost.is_set()


@contextmanager
def worker_watched() -> Iterator[None]:
    """In this block, the death of the worker is a SIGTERM to this process: what runs is saved, as when it is cancelled."""
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(ended,), name="worker-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(ended: threading.Event) -> None:
    """Wait for the other end of our output: the worker reads it, as a pipe, until it dies."""
    output = select.poll()
    output.register(_STDOUT, 0)  # errors are reported whatever is asked for: a pipe without a reader is one
    while not ended.is_set():
        if any(event & select.POLLERR for _, event in output.poll(_EACH_MS)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for descriptor in (_STDOUT, _STDERR):
                os.dup2(nowhere, descriptor)
            _lost.set()
            os.kill(os.getpid(), signal.SIGTERM)
            return
