"""Processes as tests look for them, and waiting for what they do: a process that ends meanwhile is no error."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

PATIENCE_S = 180.0  # not how long it takes but how long it may take on a machine that others use


def descendants(parent: int | None = None, *words: str) -> list[psutil.Process]:
    """Living processes below one (by default this one), at any depth; with `words`, those with all of them in their command."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(parent).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it ended since it was listed, or is a zombie
                command = " ".join(process.cmdline())
                if process.is_running() and all(word in command for word in words):
                    found.append(process)
    return found


def kill(processes: Iterable[psutil.Process]) -> None:
    """Send SIGKILL to those that live."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def has_open(pid: int, name: str) -> bool:
    """Whether a process has a file of this name open, as one that waits for the lock of that name has."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if descriptor.readlink().name == name:
                return True
    return False


def wait_for(
    condition: Callable[[], Any], seconds: float = PATIENCE_S, *, every_s: float = 0.05, log: Path | None = None
) -> Any:
    """The first true value of a condition, asked again and again. Raises: AssertionError: too late; it ends with the log."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            end = f"; {log} ends with:\n{log.read_text()[-2000:]}" if log else ""
            raise AssertionError(f"condition did not come true within {seconds:g} s{end}")
        time.sleep(every_s)
    return value
