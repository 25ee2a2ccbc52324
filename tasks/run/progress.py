"""Progress of long work: a bar on a terminal, elsewhere a log line per tenth of the work."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tasks.run.printable import markup

Advance = Callable[[int, int], None]

_QUIET_S = 20.0  # least time between two log lines, but for the first and the last
logger = logging.getLogger("prdit.progress")


@contextmanager
def show_progress(name: str, also: Advance | None = None) -> Iterator[Advance]:
    """Yield `advance(done, total)`; it draws a bar on a terminal's stderr, else logs; `also` is called with the same numbers."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
            task = bar.add_task(markup(name), total=None)

            def draw(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)
                if also:
                    also(done, total)

            yield draw
        return

    pace = Pace()
    last = {"tenth": -1, "time": 0.0}

    def log(done: int, total: int) -> None:
        if also:
            also(done, total)
        tenth = 10 * done // max(total, 1)
        now = time.monotonic()
        text = pace.text(done, total, now)
        if tenth > last["tenth"] and (now - last["time"] >= _QUIET_S or tenth == 10 or last["time"] == 0.0):
            last.update(tenth=tenth, time=now)
            logger.info("%s: %d of %d%s", name, done, total, text)

    yield log


class _Rate(ProgressColumn):
    """How much is done per minute, or per second where that is more than one."""

    def render(self, task: Task) -> Text:
        return Text(_rate(task.speed) if task.speed else "")


class Pace:
    """Rate since the first report and the time that is left at that rate; what had been done before it does not count."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def text(self, done: int, total: int, now: float) -> str:
        """`, 1.7/s, 0:00:24 left`, or nothing where it is not known or not needed.

        Args:
            done, total: as reported.
            now: of `time.monotonic`.
        """
        self._first = self._first or (done, now)
        before, began = self._first
        done, total, seconds = done - before, total - before, now - began
        if not 0 < done < total or seconds <= 0:
            return ""
        left = timedelta(seconds=round((total - done) * seconds / done))
        return f", {_rate(done / seconds)}, {left} left"


def _rate(per_s: float) -> str:
    return f"{per_s:.1f}/s" if per_s >= 1 else f"{60 * per_s:.1f}/min"
