"""Runs inside supervisord: what is left of a service's process group when the service dies goes with it.

`mlflow server` is two processes; a leftover of the two would hold the port that the restarted service needs. Flow runs are in
sessions of their own: they outlive their worker.
"""

import contextlib
import os
import signal
from typing import Any

from supervisor import events


def make(supervisord: Any) -> object:
    """The factory that `supervisord.conf` names; there are no calls to answer, so what it returns is empty."""
    for kind in (events.ProcessStateExitedEvent, events.ProcessStateBackoffEvent):
        events.subscribe(kind, _kill_group)
    return object()


def _kill_group(event: Any) -> None:
    if event.process.pid:  # none where the service could not be started at all
        with contextlib.suppress(ProcessLookupError):
            os.killpg(event.process.pid, signal.SIGKILL)
