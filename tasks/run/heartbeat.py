"""A sign of life of a service that answers no requests: the health checker restarts one that gives none for too long."""

import contextlib
import os
from pathlib import Path

VARIABLE = "PRDIT_HEARTBEAT"


def beat() -> None:
    """Give a sign of life; call it in the service's loop, at least every ten minutes. Nothing where no health checker watches."""
    if path := os.environ.get(VARIABLE):
        with contextlib.suppress(OSError):  # a full disk is reported elsewhere
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
