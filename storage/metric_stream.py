"""Records a growing metrics file, and the pictures beside it, for the tracking server."""

import re
from pathlib import Path
from typing import Any

from storage.outbox import whole_lines
from storage.tracking import Tracker

_STEP = re.compile(r"step-(\d+)")


class MetricStream:
    """Follows the points that a training appends to a file, and the pictures it puts into a folder.

    A line of the file is never changed once it is there. The outbox is told which file is followed, so that the points a killed
    process had not read are sent too.

    Args:
        path: JSON-lines file; may not exist yet.
        tracker: where the points go, or None to only read.
        run: our id of their run.
        prefix: put before every metric's name.
        pictures: folder where files `step-<number>.png` appear, whole; may not exist yet.
    """

    def __init__(
        self, path: Path, tracker: Tracker | None, run: str, *, prefix: str = "", pictures: Path | None = None
    ) -> None:
        self.path = path
        self._tracker, self._run, self._prefix = tracker, run, prefix
        self._pictures = pictures
        self._shown: set[Path] = set()
        self._read = 0
        self._unrecorded: list[dict[str, Any]] = []
        if tracker:
            tracker.log_points(run, [], prefix=prefix, read=(path, 0))

    def poll(self) -> list[dict[str, Any]]:
        """Read and record what is new; return the new points. Waits for the local disk only."""
        new, self._read = whole_lines(self.path, self._read)
        self._unrecorded += new
        if self._tracker:
            read = (self.path, self._read)
            if self._unrecorded and self._tracker.log_points(
                self._run, self._unrecorded, prefix=self._prefix, read=read
            ):
                self._unrecorded = []
            self._show(self._tracker)
        return new

    def _show(self, tracker: Tracker) -> None:
        for path in sorted(self._pictures.glob("step-*.png")) if self._pictures else ():
            step = _STEP.match(path.name)
            if path in self._shown or not step:
                continue
            if tracker.log_image(self._run, path, key=self._prefix + "samples", step=int(step[1])):
                self._shown.add(path)
