"""Kill -9 a call between any two of its lines."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def killed_at(number: int, files: str | tuple[str, ...], call: Callable[[], Any]) -> int:
    """Make a call in a forked process, which is killed before the line of this number that it runs, counted from 1.

    Args:
        number: of the line.
        files: beginnings of the paths of the source files whose lines count.
        call: what to do.
    Returns: the process's exit code: -9, or 0 where the call had ended before.
    """
    child = os.fork()
    if child == 0:
        trace_and_kill(number, files)
        call()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def trace_and_kill(number: int, files: str | tuple[str, ...]) -> None:
    """Kill this process before the line of a number that it runs from now on, see `killed_at`."""
    count = 0

    def trace(frame: FrameType, event: str, value: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(files):
            return None
        count += event == "line"
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
