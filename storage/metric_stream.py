"""Sends a growing metrics file to the tracking server; while the server does not answer, the file keeps the points."""

import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # mlflow is imported by whoever makes a tracker, not by a run without one
    from storage.tracking import Tracker

logger = logging.getLogger("prdit.tracking")


class MetricStream:
    """Sends the points of a growing metrics file to a run; points count as sent only when MLflow has them.

    Args:
        path: JSON-lines file that a training appends to; may not exist yet.
        tracker: where the points go, or None to only read.
        run_id: their run.
        prefix: put before every metric's name.
    """

    _INTERVAL_S = 5.0  # each request costs the server CPU time that the training on the same machine needs
    _BACKOFF_S = 30.0

    def __init__(self, path: Path, tracker: "Tracker | None", run_id: str, *, prefix: str = "") -> None:
        self.path = path
        self._prefix = prefix
        self._tracker = tracker
        self._run_id = run_id
        self._read = 0
        self._file = -1  # inode: a resumed training replaces the file by one cut back to its checkpoint
        self._unsent: list[dict[str, Any]] = []
        self._not_before = 0.0

    def poll(self, *, final: bool = False) -> list[dict[str, Any]]:
        """Read what is new, send what is unsent (not more often than the back-off allows, unless final); return the new points."""
        new = self._new_points()
        self._unsent += new
        if self._tracker and self._unsent and (final or time.monotonic() >= self._not_before):
            if self._tracker.log_points(self._run_id, self._unsent, prefix=self._prefix):
                self._unsent = []
                self._not_before = time.monotonic() + self._INTERVAL_S
            else:
                self._not_before = time.monotonic() + self._BACKOFF_S
        if final and self._tracker and self._unsent and self._run_id:
            logger.warning("%d metric points did not reach MLflow; they are in %s", len(self._unsent), self.path)
        return new

    def _new_points(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        with self.path.open("rb") as stream:
            state = os.fstat(stream.fileno())
            # the size alone does not show a replacement: the new file may already be longer than the old one was
            if state.st_ino != self._file or state.st_size < self._read:
                self._file, self._read = state.st_ino, 0
            stream.seek(self._read)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
