"""What a look at an inbox finds: items, when they are complete, and that the same data again is nothing new."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.errors import SourceError
from storage.inbox_ledger import Ledger
from tasks.inbox.batches import take_batch
from tasks.inbox.config import Timing
from tasks.inbox.reconcile import look
from tasks.run.fanout import Lost, Pool
from tasks.run.runners import Local
from tests.unit.storage.dicom_files import write_series
from tests.unit.storage.sources.archive_files import pack_folder
from tests.unit.storage.sources.nifti_files import write_image
from tests.unit.tasks.arrivals import Arrivals, arrivals, contents

__all__ = ["arrivals"]  # a fixture


def test_a_series_is_complete_after_a_quiet_period_wherever_its_files_lie(arrivals: Arrivals) -> None:
    arrivals.series("a", "1.2.3", skip=(3, 4))
    arrivals.series("b/c", "1.2.3", skip=(0, 1, 2))
    first = arrivals.look()
    assert (first.num_files, first.num_read, first.num_unread) == (5, 0, 5)  # they may still be written
    assert arrivals.look(after=3).num_read == 5
    assert arrivals.states() == {"1.2.3": "arriving"}
    assert arrivals.look(after=96).num_complete == 0
    assert arrivals.look(after=2).num_complete == 1
    assert arrivals.how() == {"1.2.3": "quiet"}
    assert arrivals.look().num_read == 0


def test_a_change_starts_the_quiet_period_again(arrivals: Arrivals) -> None:
    arrivals.series("a", "1.2.3", skip=(4,))
    arrivals.look()
    arrivals.look(after=90)
    arrivals.series("a", "1.2.3", skip=(0, 1, 2, 3))
    arrivals.look()
    assert arrivals.look(after=15).num_complete == 0  # 105 s after the first slices
    assert arrivals.look(after=90).num_complete == 1


def test_a_file_that_grows_is_not_read(arrivals: Arrivals) -> None:
    folder = arrivals.series("a", "1.2.3")
    arrivals.look()
    last = folder / "004.dcm"
    whole = last.read_bytes()
    for size in (100, 200, 300):
        last.write_bytes(whole[:size])
        assert arrivals.look(after=3).num_unread == 1
    last.write_bytes(whole)
    assert arrivals.look(after=200).num_complete == 0  # it has just changed, and the series is not whole without it
    arrivals.look(after=3)
    assert arrivals.look(after=101).num_complete == 1
    assert arrivals.ledger.files.items()[0].images == 5


@pytest.mark.parametrize("name", ["x.part", ".hidden", "x.dcm.filepart", "x~", "d.tmp/003.dcm", ".rsync/003.dcm"])
def test_what_is_being_written_under_a_temporary_name_is_no_part_and_keeps_its_folder_waiting(
    arrivals: Arrivals, name: str
) -> None:
    folder = arrivals.series("a", "1.2.3")
    temporary = folder / name
    temporary.parent.mkdir(exist_ok=True)
    (folder / "003.dcm").rename(temporary)
    arrivals.look()
    arrivals.look(after=3)
    os.utime(temporary, (arrivals.now() + 90, arrivals.now() + 90))
    assert arrivals.look(after=101).num_complete == (0 if temporary.parent == folder else 1)
    assert arrivals.look(after=101).num_complete == 1
    assert arrivals.ledger.files.items()[0].images == 4


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("metadata.csv", "Series UID,Number of Images\n1.2.3,5\n"),
        ("download/manifest.csv", "SeriesInstanceUID;instance_count\n1.2.3;5\n"),
    ],
)
def test_a_list_says_when_a_series_is_complete(arrivals: Arrivals, name: str, table: str) -> None:
    place = arrivals.inbox / name
    place.parent.mkdir(exist_ok=True)
    place.write_text(table)
    arrivals.series("a", "1.2.3", skip=(4,))
    assert arrivals.settle().num_complete == 0
    assert arrivals.look(after=1e6).num_complete == 0  # one is missing, however long nothing happens
    arrivals.series("a", "1.2.3", skip=(0, 1, 2, 3))
    arrivals.look()
    assert arrivals.look(after=3).num_complete == 1  # and then at once
    assert arrivals.how() == {"1.2.3": "manifest"}


def test_a_list_that_is_corrected_counts_and_one_that_is_gone_does_not(arrivals: Arrivals) -> None:
    place = arrivals.inbox / "metadata.csv"
    place.write_text("Series UID,Number of Images\n1.2.3,9\n")
    arrivals.series("a", "1.2.3")
    assert arrivals.settle().num_complete == 0
    place.write_text("Series UID,Number of Images\n1.2.3,7\n")
    arrivals.look()
    arrivals.look(after=3)
    assert arrivals.ledger.files.items()[0].expected == 7
    place.unlink()
    assert arrivals.look(after=3).num_complete == 1


def test_the_end_of_an_association_shortens_the_quiet_period(arrivals: Arrivals) -> None:
    arrivals.series("received/ab", "1.2.3")
    arrivals.series("other", "1.4.5")
    arrivals.ledger.files.end_association([f"received/ab/{k:03d}.dcm" for k in range(4)])
    arrivals.look()
    arrivals.look(after=3)
    assert arrivals.look(after=8).num_complete == 0  # one file of it came in another association
    arrivals.ledger.files.end_association(["received/ab/004.dcm"])
    assert arrivals.look(after=1).num_complete == 1
    assert arrivals.how() == {"1.2.3": "association"}
    arrivals.take()
    assert arrivals.ledger.database.rows("SELECT COUNT(*) FROM ended") == [(0,)]  # it does not grow


def test_the_same_files_again_are_nothing_new(arrivals: Arrivals) -> None:
    folder = arrivals.series("a", "1.2.3")
    arrivals.settle()
    assert arrivals.take() is not None
    for copy in ("b", "c/d"):
        arrivals.series(copy, "1.2.3")
    for path in folder.iterdir():  # sent again under the same names
        path.write_bytes(path.read_bytes())
    assert arrivals.settle().num_complete == 0
    assert arrivals.states() == {"1.2.3": "taken"}
    for path in [*folder.iterdir(), *(arrivals.inbox / "b").iterdir()]:
        path.unlink()
    assert arrivals.settle().num_complete == 0
    for path in (arrivals.inbox / "c/d").iterdir():  # everything was cleaned up, and later it is sent once more
        path.unlink()
    assert arrivals.settle().num_files == 0
    arrivals.series("e", "1.2.3")
    assert arrivals.settle().num_complete == 0
    assert arrivals.states() == {"1.2.3": "taken"}


def test_new_files_of_a_series_that_was_taken_make_it_complete_again(arrivals: Arrivals) -> None:
    folder = arrivals.series("a", "1.2.3", skip=(4,))
    arrivals.settle()
    first = arrivals.take()
    assert first is not None
    arrivals.ledger.set_batch(first.number, "listed")
    arrivals.series("a", "1.2.3", skip=(0, 1, 2, 3))
    assert arrivals.settle().num_complete == 1
    second = arrivals.take()
    assert second is not None
    assert second.number > first.number
    assert (len(contents(first)), len(contents(second))) == (4, 5)
    assert contents(second) == sorted(path.read_bytes() for path in folder.iterdir())


def test_other_scan_files_are_items_of_their_own(arrivals: Arrivals, tmp_path: Path) -> None:
    write_image(arrivals.inbox / "scan.nii.gz", np.zeros((6, 7, 8), np.int16))
    write_series(tmp_path / "packed", shape=(3, 6, 6), uid="1.7.8")
    pack_folder(tmp_path / "packed", arrivals.inbox / "scan.zip")
    (arrivals.inbox / "notes.txt").write_text("no scan")
    (arrivals.inbox / "labels.csv").write_text("series_uid,age\n1.2.3,60\n")
    (arrivals.inbox / "damaged.nii").write_bytes(b"not an image")
    arrivals.settle()
    kinds = sorted(one.item.partition("-")[0] for one in arrivals.ledger.files.items("complete"))
    assert kinds == ["file", "file", "nifti"]  # the archive, the damaged one, which an ingest judges, and the image
    assert arrivals.ledger.files.reasons()["unknown_format"] == 2


def test_a_localizer_alone_is_ignored(arrivals: Arrivals) -> None:
    write_series(
        arrivals.inbox / "scout",
        shape=(1, 6, 6),
        uid="1.5.5",
        change=lambda k, data: setattr(data, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    )
    assert arrivals.settle().num_complete == 0
    assert arrivals.states() == {"1.5.5": "ignored"}


def test_an_inbox_that_is_gone_changes_nothing(arrivals: Arrivals) -> None:
    arrivals.series("a", "1.2.3")
    arrivals.settle()
    arrivals.inbox.rename(arrivals.root / "away")
    with pytest.raises(SourceError, match="does not exist"):
        arrivals.look()
    assert arrivals.states() == {"1.2.3": "complete"}
    (arrivals.root / "away").rename(arrivals.inbox)
    assert arrivals.look().num_read == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(arrivals: Arrivals) -> None:
    folder = arrivals.series("a", "1.2.3")
    arrivals.settle()
    folder.chmod(0)
    try:
        assert arrivals.look().unreadable == 1
        assert arrivals.ledger.files.items()[0].images == 5
    finally:
        folder.chmod(0o755)


def test_a_folder_that_fails_to_be_listed_keeps_what_is_recorded(
    arrivals: Arrivals, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrivals.series("a", "1.2.3")
    arrivals.series("b", "1.4.5")
    arrivals.settle()
    real = os.scandir

    def failing(folder: int) -> object:
        if Path(f"/proc/self/fd/{folder}").readlink().name == "a":
            raise OSError(5, "Input/output error")
        return real(folder)

    monkeypatch.setattr("storage.sources.files.os.scandir", failing)
    found = arrivals.look()
    assert found.unreadable == 1
    assert arrivals.states() == {"1.2.3": "complete", "1.4.5": "complete"}


def test_what_lay_untouched_before_the_first_look_need_not_wait(tmp_path: Path) -> None:
    """The time of the last change is the file system's (ctime), which `cp -p` does not set: only it shows that a copy is old."""
    write_series(tmp_path / "inbox", shape=(4, 6, 6), uid="1.2.3")
    for path in (tmp_path / "inbox").iterdir():
        os.utime(path, (0, 0))
    with Pool(Local(1)) as pool:
        ledger = Ledger(tmp_path / "arrivals")
        timing = Timing(quiet_s=3600.0, settle_s=0.0)
        assert look(ledger, tmp_path / "inbox", timing, pool=pool).num_arriving == 1
        later = Ledger(tmp_path / "later")
        found = look(later, tmp_path / "inbox", timing, clock=lambda: time.time() + 3700, pool=pool)
        assert (found.num_read, found.num_complete) == (4, 1)
        assert take_batch(ledger, tmp_path / "inbox", timing=timing, pool=pool) is None


def test_a_file_that_ends_its_reader_costs_that_file(arrivals: Arrivals, monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals.series("a", "1.2.3", num_slices=70)  # more than are read at once
    arrivals.look()
    real = arrivals.pool.map

    def dying(function: Any, items: list[Any], **kwargs: Any) -> Iterator[tuple[Any, Any]]:
        ((item, result),) = real(function, items, **kwargs)
        names = [file.path for file in item.files]
        if "a/005.dcm" in names:
            yield item, Lost("worker_died", "SIGKILL", done=result[: names.index("a/005.dcm")])
        else:
            yield item, result

    monkeypatch.setattr(arrivals.pool, "map", dying)
    assert arrivals.look(after=3).num_read == 70
    assert arrivals.ledger.files.items()[0].images == 69
    assert arrivals.ledger.files.reasons() == {"unreadable_file": 1}
    monkeypatch.undo()
    assert arrivals.look(after=3).num_read == 1  # it is tried again
    assert arrivals.ledger.files.items()[0].images == 70


def test_links_out_of_the_inbox_are_not_followed_and_counted(arrivals: Arrivals, tmp_path: Path) -> None:
    write_series(tmp_path / "elsewhere", shape=(3, 6, 6), uid="1.2.9")
    (arrivals.inbox / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    inside = arrivals.series("a", "1.2.3")
    (arrivals.inbox / "again").symlink_to(inside, target_is_directory=True)
    (arrivals.inbox / "nowhere").symlink_to("missing")
    found = arrivals.settle()
    assert (found.outside, found.num_complete) == (2, 1)
    assert arrivals.states() == {"1.2.3": "complete"}


def test_nothing_in_the_inbox_is_changed(arrivals: Arrivals) -> None:
    arrivals.series("a", "1.2.3")

    def state() -> dict[str, tuple[int, int, bytes]]:
        found = sorted(arrivals.inbox.rglob("*"))
        return {str(p): (p.stat().st_mtime_ns, p.stat().st_mode, p.read_bytes() if p.is_file() else b"") for p in found}

    before = state()
    arrivals.settle()
    batch = arrivals.take()
    assert batch is not None
    arrivals.ledger.set_batch(batch.number, "listed")
    assert state() == before


def test_names_that_are_no_text(arrivals: Arrivals) -> None:
    folder = arrivals.series("a", "1.2.3")
    odd = os.fsencode(folder) + b"/\xff\xfe'; DROP TABLE files; --\n"
    (folder / "000.dcm").rename(os.fsdecode(odd))
    arrivals.settle()
    batch = arrivals.take()
    assert batch is not None
    assert len(contents(batch)) == 5
