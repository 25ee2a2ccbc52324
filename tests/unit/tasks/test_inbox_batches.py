"""Batches: folders of links that an ingest reads; each content in one of them, whatever is killed, vanishes or changes."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tasks.inbox.batches
from storage.errors import SourceError, UnwritableError
from storage.processes import machine
from storage.snapshots import load_snapshot, newest
from storage.volume_store import VolumeStore
from tasks.inbox.batches import opaque_path, remove_finished
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.factories import small_ingest
from tests.unit.storage.dicom_files import linear_hu, write_series
from tests.unit.storage.sources.archive_files import pack_folder
from tests.unit.storage.sources.nifti_files import centred, world_linear, write_image
from tests.unit.tasks.arrivals import Arrivals, arrivals, contents, copies

__all__ = ["arrivals"]  # a fixture


def test_a_batch_has_the_complete_series_and_only_these(arrivals: Arrivals) -> None:
    one, two = arrivals.series("Smith^John/ct", "1.2.3"), arrivals.series("PID-7", "1.2.4")
    arrivals.settle()
    arrivals.series("late", "1.2.5")
    batch = arrivals.take()
    assert batch is not None
    assert (batch.number, batch.state, batch.num_series, batch.released) == (1, "open", 2, False)
    assert contents(batch) == copies(one, two)
    assert {path.stat().st_nlink for path in batch.folder.rglob("*.dcm")} == {2}  # no bytes twice
    assert arrivals.take() == batch  # until somebody says what became of it
    arrivals.ledger.set_batch(batch.number, "listed", volumes=("v1", "v2"))
    assert arrivals.take() is None
    assert arrivals.ledger.batches("listed")[0].volumes == ("v1", "v2")


def test_names_of_a_batch_are_of_the_ledger_alone(arrivals: Arrivals, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    arrivals.series("Smith^John/PID 007/19500601", "1.2.3")
    write_image(arrivals.inbox / "Smith-1950.nii.gz", np.zeros((6, 7, 8), np.int16))
    arrivals.settle()
    batch = arrivals.take()
    assert batch is not None
    names = [path.relative_to(batch.folder).as_posix() for path in batch.folder.rglob("*") if path.is_file()]
    assert len(names) == 6
    assert all(re.fullmatch(r"([0-9a-f]{16}/)*[0-9a-f]{16}\.(dcm|nii\.gz)", name) for name in names)
    assert "Smith" not in caplog.text
    assert "1.2.3" not in caplog.text
    assert opaque_path("a/b.dcm", b"1") != opaque_path("a/b.dcm", b"2")


def test_at_most_so_many_series_in_a_batch(arrivals: Arrivals) -> None:
    for k in range(3):
        arrivals.series(f"s{k}", f"1.2.{k}")
    arrivals.settle()
    sizes = []
    while batch := tasks.inbox.batches.take_batch(arrivals.ledger, arrivals.inbox, max_series=2, pool=arrivals.pool):
        sizes.append(batch.num_series)
        arrivals.ledger.set_batch(batch.number, "listed")
    assert sizes == [2, 1]


def test_the_same_content_under_two_names_is_taken_once(arrivals: Arrivals) -> None:
    arrivals.series("a", "1.2.3")
    arrivals.series("b", "1.2.3")
    for name in ("one.nii", "two.nii"):
        write_image(arrivals.inbox / name, np.zeros((6, 7, 8), np.int16))
    arrivals.settle()
    batch = arrivals.take()
    assert batch is not None
    assert len(contents(batch)) == 5 + 1
    assert set(arrivals.states().values()) == {"taken"}


def test_a_file_that_is_replaced_later_leaves_the_batch_as_it_was(arrivals: Arrivals) -> None:
    folder = arrivals.series("a", "1.2.3")
    arrivals.settle()
    batch = arrivals.take()
    assert batch is not None
    taken = contents(batch)
    new = folder / "new"
    new.write_bytes(b"replaced")
    new.rename(folder / "000.dcm")
    shutil.rmtree(arrivals.inbox)
    assert contents(batch) == taken
    assert arrivals.take() == batch  # even where the inbox is gone


def vanish(folder: Path) -> None:
    (folder / "002.dcm").unlink()


def change(folder: Path) -> None:
    (folder / "002.dcm").write_bytes(b"other bytes")


def become_folder(folder: Path) -> None:
    (folder / "002.dcm").unlink()
    (folder / "002.dcm").mkdir()


def lead_out(folder: Path) -> None:
    (folder / "002.dcm").rename(folder.parents[1] / "elsewhere")
    (folder / "002.dcm").symlink_to(folder.parents[1] / "elsewhere")


@pytest.mark.parametrize("happening", [vanish, change, become_folder, lead_out])
def test_a_series_that_changes_before_it_is_linked_is_not_in_the_batch(
    arrivals: Arrivals, happening: Callable[[Path], None]
) -> None:
    changed, other = arrivals.series("a", "1.2.3"), arrivals.series("b", "1.2.4")
    arrivals.settle()
    new = arrivals.ledger.new_batch(10)
    assert new is not None
    assert new.num_series == 2
    happening(changed)  # as if the process had ended there, and another one goes on
    batch = arrivals.take()
    assert batch is not None
    assert (batch.number, batch.num_series) == (new.number, 1)
    assert contents(batch) == copies(other)
    arrivals.ledger.set_batch(batch.number, "listed")
    arrivals.settle()
    later = arrivals.take()
    assert later is not None
    assert len(contents(later)) == 4


def test_a_batch_of_which_nothing_is_left_is_no_batch(arrivals: Arrivals) -> None:
    arrivals.series("a", "1.2.3")
    arrivals.settle()
    arrivals.ledger.new_batch(10)
    shutil.rmtree(arrivals.inbox / "a")
    assert arrivals.take() is None
    assert arrivals.ledger.batches() == []
    arrivals.series("a", "1.2.3")
    arrivals.settle()
    batch = arrivals.take()
    assert batch is not None
    assert batch.number == 2  # a number is not given twice


@pytest.mark.parametrize("other", [False, True])
def test_the_copy_of_a_scan_that_vanished_before_it_was_linked_is_taken_later(arrivals: Arrivals, other: bool) -> None:
    for name in ("one.nii", "two.nii"):
        write_image(arrivals.inbox / name, np.zeros((6, 7, 8), np.int16))
    if other:
        arrivals.series("b", "1.2.4")
    arrivals.settle()
    new = arrivals.ledger.new_batch(10)
    assert new is not None
    [file] = [file for files in arrivals.ledger.files_of(new.number).values() for file in files if b"nii" in file.name]
    (arrivals.inbox / file.path).unlink()
    (copy,) = arrivals.inbox.glob("*.nii")
    first = arrivals.take()
    assert (first is not None) == other
    if first:
        arrivals.ledger.set_batch(first.number, "listed")
    arrivals.settle()
    later = arrivals.take()
    assert later is not None
    assert contents(later) == [copy.read_bytes()]


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", range(12))
def test_a_process_that_is_killed_while_it_takes_loses_nothing(
    arrivals: Arrivals, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """At every step that leaves a trace on disk; the next call ends with one whole batch."""
    folder = arrivals.series("a", "1.2.3", num_slices=4)
    (arrivals.inbox / "labels.csv").write_text("series_uid,age\n1.2.3,60\n")
    arrivals.settle()
    steps = [0]

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if steps[0] == after:
                raise Killed
            steps[0] += 1
            return real(*args, **kwargs)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(tasks.inbox.batches, "_link", dying(tasks.inbox.batches._link))
        patch.setattr(tasks.inbox.batches, "fsync_directory", dying(tasks.inbox.batches.fsync_directory))
        patch.setattr(tasks.inbox.batches, "write_bytes_atomic", dying(tasks.inbox.batches.write_bytes_atomic))
        patch.setattr(
            tasks.inbox.batches.shutil, "rmtree", lambda *args, **kwargs: None
        )  # nobody cleans up after a kill
        patch.setattr(arrivals.ledger, "new_batch", dying(arrivals.ledger.new_batch))
        try:
            arrivals.take()
        except Killed:
            pass
        else:
            assert after > 8
    batch = arrivals.take()
    assert batch is not None
    assert (batch.number, len(arrivals.ledger.batches())) == (1, 1)
    assert contents(batch) == copies(folder)
    assert (batch.folder / "labels.csv").exists()


def test_files_are_copied_where_they_cannot_be_linked(arrivals: Arrivals, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = arrivals.series("a", "1.2.3")
    arrivals.settle()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    batch = arrivals.take()
    assert batch is not None
    assert contents(batch) == copies(folder)
    assert {path.stat().st_nlink for path in batch.folder.rglob("*.dcm")} == {1}


def test_a_full_disk_leaves_the_batch_open_for_the_next_call(
    arrivals: Arrivals, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = arrivals.series("a", "1.2.3")
    arrivals.settle()

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tasks.inbox.batches, "_link", full)
        with pytest.raises(UnwritableError, match="no space is left"):
            arrivals.take()
    assert not list((arrivals.root / "arrivals" / "batches").iterdir())
    batch = arrivals.take()
    assert batch is not None
    assert contents(batch) == copies(folder)


def test_folders_of_finished_batches_are_removed(arrivals: Arrivals) -> None:
    for k in range(3):
        arrivals.series(f"s{k}", f"1.2.{k}")
        arrivals.settle()
        batch = arrivals.take()
        assert batch is not None
        arrivals.ledger.set_batch(batch.number, "held", reason="odd")
    arrivals.ledger.release(2)
    arrivals.ledger.set_batch(2, "listed")
    arrivals.ledger.reject(3)
    half = arrivals.ledger.folder / "pictures" / f".000001.png.{machine()}-999999999-1-00000000.tmp"
    half.parent.mkdir()
    half.write_bytes(b"of a process that was killed")
    assert remove_finished(arrivals.ledger) == 2
    assert not half.exists()
    assert [one.folder.exists() for one in arrivals.ledger.batches()] == [True, False, False]
    assert remove_finished(arrivals.ledger) == 0
    assert arrivals.settle().num_complete == 0  # what was taken stays known
    assert arrivals.ledger.database.rows("SELECT COUNT(*) FROM batch_files WHERE batch > 1") == [(0,)]


# ---- tables ------------------------------------------------------------------------------------------------------------


def test_tables_travel_with_a_batch_and_ingest_finds_their_scans(arrivals: Arrivals, tmp_path: Path) -> None:
    """By series, by folder, by file and by a file in an archive."""
    write_series(arrivals.inbox / "by uid", uid="1.2.3", patient_id="")
    write_series(arrivals.inbox / "Doe/CT 1/slices", lambda world: linear_hu(world) + 9, uid="1.2.4", patient_id="")
    (arrivals.inbox / "Roe").mkdir()
    affine = centred(np.diag([1.7, 1.3, 2.5]), (28, 26, 24))
    write_image(arrivals.inbox / "Roe" / "x.nii.gz", world_linear(affine, (28, 26, 24)).astype(np.int16) + 20, affine)
    write_series(tmp_path / "packed" / "in", lambda world: linear_hu(world) + 30, uid="1.2.6", patient_id="")
    pack_folder(tmp_path / "packed", arrivals.inbox / "packed.zip")
    (arrivals.inbox / "patients.csv").write_text(
        "path,patient_id\nby uid,P1\n./Doe/CT 1/,P2\nRoe/x.nii.gz,P3\npacked.zip/in,P4\nnobody/here,P5\n"
    )
    (arrivals.inbox / "labels.csv").write_text("series_uid,finding\n1.2.3,one\n1.2.4,two\n")
    (arrivals.inbox / "metadata.csv").write_text("Series UID,Number of Images\n1.2.3,24\n")
    arrivals.settle()
    batch = arrivals.take()
    assert batch is not None
    assert batch.num_series == 4
    names = sorted(path.name for path in batch.folder.rglob("*.csv"))
    assert names == ["labels.csv", "metadata.csv", "patients.csv"]
    assert "Doe" not in (batch.folder / "patients.csv").read_text()
    report = ingest(batch.folder, tmp_path / "store", small_ingest(spacing_mm=4.0, num_levels=1), runner=Local(1))
    listed = load_snapshot(newest(VolumeStore.open(tmp_path / "store"))).volumes.values()
    assert len(listed) == 4, report
    assert all(volume.patient_known for volume in listed)
    assert len({volume.patient_key for volume in listed}) == 4
    assert sorted(volume.labels.get("finding", "") for volume in listed) == ["", "", "one", "two"]


def test_a_header_with_its_voxels_in_another_file_stays_with_it(arrivals: Arrivals, tmp_path: Path) -> None:
    """Whichever of the two arrives first."""
    folder = arrivals.inbox / "Roe"
    folder.mkdir()
    values = world_linear(centred(np.diag([2.0, 2.0, 2.0]), (24, 24, 24)), (24, 24, 24)).astype("<i2")
    (folder / "scan.raw").write_bytes(values.tobytes())
    arrivals.settle()
    (folder / "scan.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
        "Offset = 0 0 0\nElementSpacing = 2 2 2\nDimSize = 24 24 24\nElementType = MET_SHORT\nElementDataFile = scan.raw\n"
    )
    arrivals.settle()
    batch = arrivals.take()
    assert batch is not None
    assert sorted(path.name for path in batch.folder.rglob("scan*")) == ["scan.mhd", "scan.raw"]
    assert not (batch.folder / "Roe").exists()
    report = ingest(batch.folder, tmp_path / "store", small_ingest(spacing_mm=4.0, num_levels=1), runner=Local(1))
    assert len(report.committed) == 1


def test_a_table_that_is_none_is_left_for_ingest_to_refuse(arrivals: Arrivals, tmp_path: Path) -> None:
    arrivals.series("a", "1.2.3")
    (arrivals.inbox / "patients.csv").write_bytes(b"path,patient_id\n\xff\xfe,1\n")
    arrivals.settle()
    batch = arrivals.take()
    assert batch is not None
    with pytest.raises(SourceError, match="not UTF-8"):
        ingest(batch.folder, tmp_path / "store", small_ingest(), runner=Local(1))


def test_an_open_batch_has_the_tables_that_the_inbox_has_now(arrivals: Arrivals) -> None:
    arrivals.series("a", "1.2.3")
    table = arrivals.inbox / "patients.csv"
    table.write_text("path,patient_id\na,P1,too many\n")
    arrivals.settle()
    batch = arrivals.take()
    assert batch is not None
    arrivals.ledger.set_batch(batch.number, "held", reason="a table")
    arrivals.ledger.release(batch.number)
    table.write_text("path,patient_id\na,P1\n")
    again = arrivals.take()
    assert again is not None
    assert (again.number, again.folder) == (batch.number, batch.folder)
    copied = (batch.folder / "patients.csv").read_text()
    assert copied == f"path,patient_id\n{next(batch.folder.rglob('*.dcm')).parent.name},P1\n"
    table.unlink()  # the inbox was cleared: whose the scans are stays known
    arrivals.take()
    assert (batch.folder / "patients.csv").read_text() == copied
