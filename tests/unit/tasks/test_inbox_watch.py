"""The watcher: it reports what waits until that is taken, and whatever fails now is tried again."""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import tasks.inbox.watch
from storage.errors import DamagedArtifactError, UnwritableError
from storage.inbox_database import NAME
from storage.inbox_ledger import Ledger
from tasks.inbox.batches import take_batch
from tasks.inbox.config import Timing, check_places
from tasks.inbox.watch import Pace, watch
from tasks.run.fanout import Pool
from tasks.run.runners import Local
from tests.processes import wait_for
from tests.unit.storage.dicom_files import write_series

TIMING = Timing(quiet_s=0.3, association_s=0.3, settle_s=0.1)
DEADLINE_S = 60.0


@pytest.fixture(autouse=True)
def _read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.inbox.watch, "reading_pool", lambda: Pool(Local(1)))


@contextmanager
def watching(root: Path, arrived: Callable[[int, int], bool], pace: Pace) -> Iterator[list[BaseException]]:
    """A watcher of `root/inbox` in a thread; what it raised."""
    stop, raised = threading.Event(), []

    def run() -> None:
        try:
            watch(Ledger(root / "arrivals"), root / "inbox", arrived, timing=TIMING, pace=pace, stop=stop)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield raised
    finally:
        stop.set()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def noting(said: list[tuple[int, int]]) -> Callable[[int, int], bool]:
    """What takes a report, and keeps it."""

    def arrived(num_series: int, num_batches: int) -> bool:
        said.append((num_series, num_batches))
        return True

    return arrived


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path


def test_an_event_wakes_it(root: Path) -> None:
    """It would look again only in a day: what it finds, it was woken for; and while something arrives it does not sleep long."""
    said: list[tuple[int, int]] = []
    with watching(root, noting(said), Pace(look_s=86400.0, soon_s=0.1)):
        time.sleep(
            0.5
        )  # an event before the first look would prove nothing; one lost here makes the test fail, not pass
        write_series(root / "inbox" / "a", shape=(3, 6, 6), uid="1.2.3")
        wait_for(lambda: said, DEADLINE_S)
    assert said == [(1, 0)]


def test_without_events_the_clock_is_enough(root: Path) -> None:
    said: list[tuple[int, int]] = []
    with watching(root, noting(said), Pace(look_s=0.2, soon_s=0.1, events=False)):
        write_series(root / "inbox" / "a", shape=(3, 6, 6), uid="1.2.3")
        wait_for(lambda: said, DEADLINE_S)
    assert said == [(1, 0)]


def test_a_batch_that_a_run_has_just_taken_is_not_reported_but_one_that_was_released_is(root: Path) -> None:
    """Each report starts a run, which would find nothing to do."""
    write_series(root / "inbox" / "a", shape=(3, 6, 6), uid="1.2.3")
    said: list[tuple[int, int]] = []
    with watching(root, noting(said), Pace(look_s=0.1, soon_s=0.1, again_s=3600.0, events=False)):
        wait_for(lambda: said, DEADLINE_S)
        ledger = Ledger(root / "arrivals")
        batch = take_batch(ledger, root / "inbox", timing=TIMING)
        assert batch is not None
        write_series(root / "inbox" / "b", shape=(3, 6, 6), uid="1.2.4")
        wait_for(lambda: len(said) == 2, DEADLINE_S)
        ledger.set_batch(batch.number, "held")
        second = take_batch(ledger, root / "inbox", timing=TIMING)
        assert second is not None
        time.sleep(1.0)  # several looks
        ledger.set_batch(second.number, "listed")
        wait_for(lambda: not second.folder.exists(), DEADLINE_S)
        ledger.release(batch.number)
        wait_for(lambda: len(said) == 3, DEADLINE_S)
    assert said == [(1, 0), (1, 1), (0, 1)]


def test_it_reports_again_until_everything_is_taken(root: Path) -> None:
    write_series(root / "inbox" / "a", shape=(3, 6, 6), uid="1.2.3")
    said: list[tuple[int, int]] = []
    with watching(root, noting(said), Pace(look_s=0.1, soon_s=0.1, again_s=0.5, events=False)):
        wait_for(lambda: len(said) >= 3, DEADLINE_S)
        ledger = Ledger(root / "arrivals")
        batch = take_batch(ledger, root / "inbox", timing=TIMING)
        assert batch is not None
        wait_for(lambda: said[-1] == (0, 1), DEADLINE_S)  # a flow that ended in the middle left the batch open
        ledger.set_batch(batch.number, "held")
        wait_for(lambda: not ledger.waiting()[1], DEADLINE_S)
        before = len(said) + 1  # one may be under way
        ledger.release(batch.number)
        wait_for(lambda: len(said) >= before, DEADLINE_S)
        ledger.set_batch(batch.number, "listed")
        wait_for(lambda: not batch.folder.exists(), DEADLINE_S)
    assert set(said) == {(1, 0), (0, 1)}


def test_a_report_that_fails_is_made_again(root: Path) -> None:
    write_series(root / "inbox" / "a", shape=(3, 6, 6), uid="1.2.3")
    tries: list[int] = []

    def failing(num_series: int, num_batches: int) -> bool:
        tries.append(num_series)
        if len(tries) % 2:
            raise ConnectionError("no server")
        return False

    with watching(root, failing, Pace(look_s=0.1, soon_s=0.1, again_s=86400.0, events=False)) as raised:
        wait_for(lambda: len(tries) >= 3, DEADLINE_S)
        assert raised == []


def test_it_outlasts_an_inbox_that_vanishes_and_a_full_disk(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prdit.inbox")
    said: list[tuple[int, int]] = []
    full = threading.Event()
    real = tasks.inbox.watch.look

    def look(*args: Any, **kwargs: Any) -> Any:
        if full.is_set():
            raise UnwritableError("ledger.sqlite cannot be written: no space is left.")
        return real(*args, **kwargs)

    monkeypatch.setattr(tasks.inbox.watch, "look", look)
    with watching(root, noting(said), Pace(look_s=0.1, soon_s=0.1)) as raised:
        (root / "inbox").rmdir()
        wait_for(lambda: "does not exist" in caplog.text, DEADLINE_S)
        (root / "inbox").mkdir()
        wait_for(lambda: "can be used again" in caplog.text, DEADLINE_S)
        full.set()
        wait_for(lambda: "no space is left" in caplog.text, DEADLINE_S)
        time.sleep(0.5)
        full.clear()
        write_series(root / "inbox" / "a", shape=(3, 6, 6), uid="1.2.3")
        wait_for(lambda: said, DEADLINE_S)
        assert raised == []
    assert caplog.text.count("no space is left") == 1  # said once, not at every try


def test_events_come_from_the_folder_that_is_there_now(root: Path) -> None:
    """An inbox on a disk that is mounted again is another folder."""
    said: list[tuple[int, int]] = []
    with watching(root, noting(said), Pace(look_s=2.0, soon_s=0.1)):
        (root / "inbox").rename(root / "old")
        (root / "inbox").mkdir()
        write_series(root / "inbox" / "a", shape=(3, 6, 6), uid="1.2.3")
        wait_for(lambda: said, DEADLINE_S)


def test_a_damaged_ledger_ends_it(root: Path) -> None:
    Ledger(root / "arrivals").close()
    (root / "arrivals" / NAME).write_bytes(b"no database" * 1000)
    with watching(root, noting([]), Pace(look_s=0.1)) as raised:
        wait_for(lambda: raised, DEADLINE_S)
    assert isinstance(raised[0], DamagedArtifactError)


def test_an_inbox_in_our_own_folders_is_refused(tmp_path: Path) -> None:
    store, arrivals = tmp_path / "store", tmp_path / "arrivals"
    link = tmp_path / "link"
    link.symlink_to(tmp_path, target_is_directory=True)
    for inbox in (store, store / "in", arrivals, arrivals / "batches", tmp_path, link / "store" / "x"):
        with pytest.raises(ValueError, match="lie in each other"):
            check_places(inbox, arrivals, store)
    with pytest.raises(ValueError, match=r"lie in each other.*inbox.arrivals: .* is inside store"):
        check_places(tmp_path / "in", store / "arrivals", store)
    check_places(tmp_path / "store-inbox", arrivals, store)


def test_nothing_is_left_running(root: Path) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with watching(root, noting([]), Pace(look_s=0.1)):
        wait_for(lambda: (root / "arrivals" / NAME).exists(), DEADLINE_S)
    wait_for(lambda: {thread.name for thread in threading.enumerate()} <= before, DEADLINE_S)
    shutil.rmtree(root / "inbox")
