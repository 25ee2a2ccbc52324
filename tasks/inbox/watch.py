"""The watcher: looks at the inbox when something happens in it, and every minute, and says when complete scans wait."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from watchfiles import watch as watch_files

from storage.errors import DamagedArtifactError, StorageError, VersionError
from storage.inbox_ledger import Ledger
from tasks.inbox.batches import remove_finished
from tasks.inbox.config import Timing
from tasks.inbox.reconcile import Look, look, reading_pool
from tasks.run.heartbeat import beat

_DEBOUNCE_MS = 2000
_POLL_MS = 1000
Arrived = Callable[[int, int], bool]
_NOTHING_SAID = (-1, -1)
logger = logging.getLogger("prdit.inbox")


@dataclass(frozen=True)
class Pace:
    """How often the watcher works.

    Attributes:
        look_s: a look is made at least so often.
        soon_s: the same, while something is arriving.
        again_s: complete scans that wait are reported again after so long.
        events: whether events of the file system wake it.
    """

    look_s: float = 60.0
    soon_s: float = 5.0
    again_s: float = 300.0
    events: bool = True


def watch(
    ledger: Ledger,
    inbox: Path,
    arrived: Arrived,
    *,
    timing: Timing | None = None,
    pace: Pace | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Watch an inbox until it is told to stop. What cannot be read or written now is logged, and tried again.

    Args:
        ledger: of this inbox.
        inbox: folder; it is only read.
        arrived: called with the numbers of complete series that wait and of open batches, when there are any: when there is
            more to do, and again every few minutes, for what it tells may get lost. Where it returns False, or raises, it is
            called again after a minute.
        timing: when things count as whole.
        pace: how often it works.
        stop: ends it.
    Raises: StorageError: the ledger is damaged, or of another format.
    """
    pace, stop = pace or Pace(), stop or threading.Event()
    wake = _Wake(inbox, stop, events=pace.events)
    said: tuple[tuple[int, int], float] = ((0, 0), 0.0)
    trouble, outside = "", 0
    with ExitStack() as stack:
        pool = stack.enter_context(reading_pool())
        while not stop.is_set():
            beat()
            wake.renew()
            found: Look | None = None
            try:
                found = look(ledger, inbox, timing, pool=pool)
                remove_finished(ledger)
                if found.outside > outside:
                    logger.warning(
                        "%d links and special files of the inbox are not followed: copy scans into it", found.outside
                    )
                outside = found.outside
                said = _say(ledger.waiting(), said, arrived, pace)
            except (DamagedArtifactError, VersionError):
                raise
            except (StorageError, OSError) as error:
                if str(error) != trouble:  # once, not every minute
                    logger.warning("%s The watcher tries again every %.0f s.", error, pace.look_s)
                trouble = str(error)
            else:
                if trouble:
                    logger.info("the inbox and its ledger can be used again")
                trouble = ""
            if found is None or found.settled:  # the process that reads has nothing to do for long
                stack.close()
                pool = stack.enter_context(reading_pool())
            wake.wait(pace.look_s if found is None or found.settled else pace.soon_s)


def _say(
    waiting: tuple[int, int], said: tuple[tuple[int, int], float], arrived: Arrived, pace: Pace
) -> tuple[tuple[int, int], float]:
    """Report what waits, where that is due; what was said and when."""
    before, when = said
    now = time.monotonic()
    if not any(waiting):
        return waiting, when
    wait_s = pace.again_s
    if before == _NOTHING_SAID:
        wait_s = pace.look_s
    elif waiting != before and _is_news(waiting, before):
        wait_s = 0.0
    if now - when < wait_s:
        return (before if before == _NOTHING_SAID else waiting), when
    try:
        done = arrived(*waiting)
    except Exception as error:  # noqa: BLE001 - whatever a server does, the watcher goes on
        logger.warning("arrived scans could not be reported (%s)", type(error).__name__)
        done = False
    if done:
        logger.info("%d complete series and %d open batches wait; said so", *waiting)
    return (waiting if done else _NOTHING_SAID), now


def _is_news(waiting: tuple[int, int], before: tuple[int, int]) -> bool:
    """Whether there is more to do than before: not where a run has just taken the series that waited as a batch."""
    return waiting[0] > 0 or (before[0] == 0 and waiting[1] > before[1])


class _Wake:
    """Waiting for an event in the inbox, in a thread of its own; without events it is only a clock."""

    def __init__(self, inbox: Path, stop: threading.Event, *, events: bool) -> None:
        self._inbox, self._stop, self._events = inbox, stop, events
        self._happened = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._place: tuple[int, int] | None = None
        self._said = False

    def renew(self) -> None:
        """Start the thread; again where it ended, or where the inbox is another folder than it was."""
        if not self._events:
            return
        place = None
        with suppress(OSError):
            state = self._inbox.stat()
            place = (state.st_dev, state.st_ino)
        if self._thread and self._thread.is_alive() and place == self._place:
            return
        self._ended.set()
        self._place = place
        if place is not None:
            self._ended = threading.Event()
            self._thread = threading.Thread(target=self._listen, args=(self._ended,), name="inbox-events", daemon=True)
            self._thread.start()

    def _listen(self, ended: threading.Event) -> None:
        try:
            for _ in watch_files(
                self._inbox,
                watch_filter=None,
                debounce=_DEBOUNCE_MS,
                rust_timeout=_POLL_MS,
                stop_event=ended,
                raise_interrupt=False,
                ignore_permission_denied=True,
            ):
                self._happened.set()
        except (OSError, RuntimeError) as error:  # no more inotify watches, say
            if not self._said:
                logger.warning("no events of the inbox (%s): it is looked at by the clock alone", type(error).__name__)
            self._said = True

    def wait(self, seconds: float) -> None:
        """Return after a time, earlier after an event or when the watcher is stopped."""
        until = time.monotonic() + seconds
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            if self._happened.wait(min(left, 0.5)):
                break
        self._happened.clear()
        if self._stop.is_set():
            self._ended.set()
