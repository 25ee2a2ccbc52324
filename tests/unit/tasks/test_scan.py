"""Scanning a source: each file read once, unchanged ones never again, nothing that names a patient kept, everything in order."""

import gzip
import json
import multiprocessing
import os
import signal
import sqlite3
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

import tasks.ingest.archive_scan
from storage.errors import SourceError, UnwritableError
from storage.patient_key import patient_key
from storage.snapshots import load_snapshot, newest
from storage.sources.formats import read_source_file
from storage.volume_store import VolumeStore
from tasks.ingest.report import LISTED_FILES
from tasks.ingest.run import ingest, last_report
from tasks.ingest.scan import Scan, file_cache, scan_source
from tasks.run.fanout import Pool
from tasks.run.runners import Local
from tests.factories import small_ingest
from tests.processes import PATIENCE_S
from tests.unit.storage.dicom_files import write_series
from tests.unit.storage.sources.archive_files import pack_folder
from tests.unit.storage.sources.nifti_files import centred, world_linear, write_image

KEY = b"k" * 32
CONFIG = small_ingest(spacing_mm=4.0, num_levels=1)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened, in order."""
    names: list[str] = []

    def noted(source: Path, name: str) -> Any:
        names.append(PurePosixPath(name).name)
        return read_source_file(source, name)

    monkeypatch.setattr("tasks.ingest.scan.read_source_file", noted)
    return names


def scanned(
    source: Path, store: Path, key: bytes = KEY, workers: int = 1
) -> tuple[str, list[Scan], list[str], list[str]]:
    """(digest, scans, what is excluded as `reason path or scan`, notes)."""
    with Pool(Local(workers)) as pool, scan_source(source, store, key, pool) as scan:
        excluded = [f"{one.reason} {one.path or one.scan_id}" for one in scan.exclusions()]
        found = list(scan.scans())
        assert scan.num_scans == len(found)
        return scan.digest, found, excluded, scan.notes()


def test_scans_know_of_unreadable_files_beside_theirs(tmp_path: Path) -> None:
    source = tmp_path / "src"
    write_series(source / "a", uid="1.2.1", shape=(4, 4, 4))
    write_series(source / "b", uid="1.2.2", shape=(4, 4, 4))
    write_image(source / "a" / "one.nii.gz", np.zeros((3, 3, 3), np.int16))
    whole = (source / "a" / "003.dcm").read_bytes()
    for name, size in {"003.dcm": 0, "IM7": 50, "1.2.9": 300, "x.dcm": 450}.items():
        (source / "a" / name).write_bytes(whole[:size])
    (source / "a" / "DONE").touch()
    (source / "a" / ".part1").touch()
    (source / "a" / "zeros.dcm").write_bytes(bytes(len(whole)))
    _, scans, excluded, _ = scanned(source, tmp_path / "store")
    assert [(one.format, one.num_unreadable) for one in scans] == [("dicom", 5), ("dicom", 0), ("nifti", 0)]
    assert sorted(excluded) == [
        "unknown_format a/.part1", "unknown_format a/DONE", "unreadable_file a/003.dcm", "unreadable_file a/1.2.9",
        "unreadable_file a/IM7", "unreadable_file a/x.dcm", "unreadable_file a/zeros.dcm",
    ]  # fmt: skip


def test_scans_files_and_exclusions(tmp_path: Path) -> None:
    source = tmp_path / "src"
    write_series(source / "b", uid="1.2.2", shape=(3, 4, 4), patient_id="P")
    write_series(source / "a", uid="1.2.1", shape=(2, 4, 4), patient_id="")
    localizer = lambda k, d: k == 1 and setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"])  # noqa: E731
    write_series(source / "c", uid="1.2.3", shape=(2, 4, 4), change=localizer)
    write_series(source / "mr", uid="1.2.4", shape=(2, 4, 4), change=lambda _, d: setattr(d, "Modality", "MR"))
    write_image(source / "n" / "doe.nii.gz", np.zeros((3, 3, 3), np.int16))
    (source / "notes.txt").write_text("words of some length, no image")
    digest, scans, excluded, notes = scanned(source, tmp_path / "store")
    assert digest.startswith("sha256:")
    assert [one.scan_id for one in scans[:3]] == ["1.2.1", "1.2.2", "1.2.3"]
    assert [one.files for one in scans[:3]] == [
        ("a/000.dcm", "a/001.dcm"),
        ("b/000.dcm", "b/001.dcm", "b/002.dcm"),
        ("c/000.dcm",),
    ]
    assert scans[3].files == ("n/doe.nii.gz",)
    assert [one.format for one in scans] == ["dicom", "dicom", "dicom", "nifti"]
    assert (scans[0].patient_key, scans[0].patient_known) == (patient_key(KEY, "", "1.2.1")[0], False)
    assert (scans[1].patient_key, scans[1].patient_known) == (patient_key(KEY, "P", "")[0], True)
    assert excluded == ["unknown_format notes.txt", "localizer c/001.dcm", "not_ct mr/000.dcm"]
    assert notes == []


def test_each_file_is_read_once_and_unchanged_ones_never_again(tmp_path: Path, read: list[str]) -> None:
    source, store = tmp_path / "src", tmp_path / "store"
    write_series(source, shape=(5, 4, 4))
    first = scanned(source, store)
    assert sorted(read) == [f"{k:03d}.dcm" for k in range(5)]
    read.clear()
    assert scanned(source, store) == first
    assert read == []
    (source / "002.dcm").write_bytes((source / "002.dcm").read_bytes() + b"\0")
    os.utime(source / "003.dcm", ns=(5, 5))
    second = scanned(source, store)
    assert sorted(read) == ["002.dcm", "003.dcm"]
    assert second[0] != first[0]
    assert second[1][0].digest != first[1][0].digest


def test_digest_is_of_names_and_contents_alone(tmp_path: Path) -> None:
    write_series(tmp_path / "one" / "s", shape=(2, 4, 4))
    write_series(tmp_path / "elsewhere" / "two" / "s", shape=(2, 4, 4))
    one, two = (
        scanned(tmp_path / "one", tmp_path / "s1")[0],
        scanned(tmp_path / "elsewhere" / "two", tmp_path / "s2")[0],
    )
    assert one == two
    (tmp_path / "one" / "s" / "001.dcm").rename(tmp_path / "one" / "s" / "002.dcm")
    assert scanned(tmp_path / "one", tmp_path / "s1")[0] != one
    os.mkfifo(tmp_path / "elsewhere" / "two" / "pipe")
    assert scanned(tmp_path / "elsewhere" / "two", tmp_path / "s2")[0] != two
    (tmp_path / "elsewhere" / "two" / "pipe").unlink()
    (tmp_path / "elsewhere" / "two" / "patients.csv").write_text("path,patient_id\ns,P\n")
    digest, _, excluded, _ = scanned(tmp_path / "elsewhere" / "two", tmp_path / "s2")
    assert digest != two
    assert excluded == []


def test_workers_find_what_one_process_finds(tmp_path: Path) -> None:
    source = tmp_path / "src"
    for k in range(8):
        write_series(source / str(k), uid=f"1.2.{k}", shape=(60, 2, 2), patient_id=f"P{k % 3}")
    (source / "x").write_text("no image")
    many = scanned(source, tmp_path / "many", workers=2)
    assert many == scanned(source, tmp_path / "one")
    assert sum(len(one.files) for one in many[1]) == 480
    assert len({one.patient_key for one in many[1]}) == 3


def kill_at_poison(source: Path, name: str) -> Any:
    if name == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    return read_source_file(source, name)


class PoisonedPool(Pool):
    """Its workers die of files called poison."""

    def map(self, function: Any, items: Any, **_: Any) -> Any:
        return super().map(poisoned, items, few=0)


def poisoned(batch: Any) -> Any:
    import tasks.ingest.scan

    tasks.ingest.scan.read_source_file = kill_at_poison  # in the worker
    return tasks.ingest.scan.read_batch(batch)


def test_a_file_that_kills_its_reader_costs_no_other(tmp_path: Path) -> None:
    source = tmp_path / "src"
    write_series(source, shape=(20, 2, 2))
    (source / "poison").write_text("x" * 200)
    with PoisonedPool(Local(2)) as pool, scan_source(source, tmp_path / "store", KEY, pool) as scan:
        (one,) = scan.scans()
        (excluded,) = scan.exclusions()
    assert len(one.files) == 20
    assert (excluded.reason, excluded.path) == ("unreadable_file", "poison")
    assert "its reader died" in excluded.message


def test_cache_holds_no_name_and_no_patient(tmp_path: Path) -> None:
    write_series(tmp_path / "Doe^John", shape=(2, 4, 4))
    scanned(tmp_path / "Doe^John", tmp_path / "store")
    write_image(tmp_path / "Doe^John" / "roe.nii", np.zeros((3, 3, 3), np.int16))
    scanned(tmp_path, tmp_path / "store")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["Doe^John", "store.files.sqlite"]
    cache = file_cache(tmp_path / "store").read_bytes()
    for secret in (b"Doe", b"roe", b"000.dcm", b"SECRET-ID-77", b"19500601"):
        assert secret not in cache
    assert patient_key(KEY, "SECRET-ID-77", "")[0].encode() in cache


def test_another_secret_makes_other_patient_keys(tmp_path: Path, read: list[str]) -> None:
    write_series(tmp_path / "src", shape=(2, 4, 4))
    one = scanned(tmp_path / "src", tmp_path / "store")[1][0]
    read.clear()
    other = scanned(tmp_path / "src", tmp_path / "store", b"another" * 5)[1][0]
    assert len(read) == 2
    assert other.patient_key == patient_key(b"another" * 5, "SECRET-ID-77", "")[0] != one.patient_key


@pytest.mark.parametrize("damage", ["truncated", "garbage", "values", "empty"])
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, damage: str, read: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    source, store = tmp_path / "src", tmp_path / "store"
    for k in range(4):
        write_series(source / str(k), uid=f"1.2.{k}", shape=(60, 2, 2))
    first = scanned(source, store)
    cache = file_cache(store)
    data = cache.read_bytes()
    patient = patient_key(KEY, "SECRET-ID-77", "")[0].encode()
    values = data.replace(patient, patient[::-1])  # a row of the right form that says something else
    assert values != data
    cut = data[: len(data) // 2]
    cache.write_bytes({"truncated": cut, "garbage": b"no database " * 99, "values": values, "empty": b""}[damage])
    read.clear()
    assert scanned(source, store) == first
    if damage in ("truncated", "garbage"):
        assert "is damaged" in caplog.text
    assert len(read) == 240
    read.clear()
    assert scanned(source, store) == first
    assert read == []


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, read: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_series(tmp_path / "src", shape=(2, 4, 4))
    file_cache(tmp_path / "store").mkdir()
    first = scanned(tmp_path / "src", tmp_path / "store")
    assert len(first[1][0].files) == 2
    assert "cannot be used" in caplog.text
    assert scanned(tmp_path / "src", tmp_path / "store") == first
    assert len(read) == 4


def test_a_file_without_access_or_utf8_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "src"
    write_series(source, shape=(2, 4, 4))
    odd = os.fsdecode(b"caf\xe9.dcm")
    (source / "001.dcm").rename(source / odd)
    (source / "denied").write_text("x" * 200)

    real = os.open

    def denied(path: Any, *arguments: Any, **named: Any) -> int:
        if str(path).endswith("denied"):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **named)

    monkeypatch.setattr("storage.sources.opening.os.open", denied)
    _, scans, excluded, _ = scanned(source, tmp_path / "store")
    assert scans[0].files == ("000.dcm", odd)
    assert excluded == ["unreadable_file denied"]


def scan_at_once(source: Path, store: Path, start: Any, queue: Any) -> None:
    start.wait()
    try:
        queue.put(scanned(source, store)[0])
    except Exception as error:  # noqa: BLE001 - the test shows it
        queue.put(repr(error))


def test_scans_at_once_share_the_cache(tmp_path: Path, read: list[str]) -> None:
    source = tmp_path / "src"
    write_series(source, shape=(100, 2, 2))
    digest = scanned(source, tmp_path / "alone")[0]
    context = multiprocessing.get_context("fork")
    for round_ in range(5):
        start, queue = context.Barrier(3), context.Queue()
        arguments = (source, tmp_path / f"store{round_}", start, queue)
        scanners = [context.Process(target=scan_at_once, args=arguments) for _ in range(3)]
        for scanner in scanners:
            scanner.start()
        assert [queue.get(timeout=PATIENCE_S) for _ in scanners] == [digest] * 3
        for scanner in scanners:
            scanner.join()
        read.clear()
        assert scanned(source, tmp_path / f"store{round_}")[0] == digest
        assert read == []


def test_empty_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    with pytest.raises(SourceError, match="is empty"):
        scanned(tmp_path / "src", tmp_path / "store")


def test_tables_reach_the_scans(tmp_path: Path) -> None:
    source = tmp_path / "src"
    write_series(source / "a", uid="1.2.1", shape=(2, 4, 4), patient_id="Doe")
    write_series(source / "b", uid="1.2.2", shape=(2, 4, 4), patient_id="")
    write_image(source / "n" / "x.nii", np.zeros((3, 3, 3), np.int16))
    (source / "patients.csv").write_text("path,patient_id\na,Roe\nb,Doe\nn/x.nii,Moe\nnowhere,Moe\n")
    (source / "labels.csv").write_text("patient_id,stage\nDoe,II\nMoe,I\nPoe,IV\n")
    _, scans, excluded, notes = scanned(source, tmp_path / "store")
    assert [one.labels for one in scans] == [{"stage": "II"}, {"stage": "II"}, {"stage": "I"}]
    assert [one.patient_key for one in scans] == [patient_key(KEY, name, "")[0] for name in ("Doe", "Doe", "Moe")]
    assert all(one.patient_known for one in scans)
    assert excluded == []
    assert len(notes) == 3
    assert "1 scan with another PatientID" in notes[0]
    assert "line 2 (scan 1.2.1)" in notes[0]
    assert "1 row without a scan, the first in line 5" in notes[1]
    assert "labels.csv: 1 row without a scan, the first in line 4" in notes[2]
    assert not any(name in "".join(notes) for name in ("Doe", "Roe", "Moe", "Poe"))


def write_ids(source: Path, *named: tuple[str, str, str]) -> None:
    """Series with (PatientID, study, IssuerOfPatientID), called 1.2.1, 1.2.2, …"""
    for number, (patient_id, study, issuer) in enumerate(named, 1):

        def change(k: int, data: Dataset, study: str = study, issuer: str = issuer) -> None:
            data.StudyInstanceUID, data.IssuerOfPatientID = study, issuer

        folder = source / str(number)
        write_series(folder, uid=f"1.2.{number}", shape=(1, 4, 4), patient_id=patient_id, change=change)


def test_patient_ids_that_may_not_tell_patients_apart_are_noted(tmp_path: Path) -> None:
    source = tmp_path / "src"
    write_ids(
        source,
        *(("Anonymous", "1.3.1", ""), ("ANONYMOUS", "1.3.2", ""), ("0", "1.3.3", ""), ("7", "1.3.4", "H1")),
        *(("7", "1.3.5", "H2"), ("abc1", "1.3.6", ""), ("ABC 1", "1.3.7", ""), ("8", "1.3", "H1")),
    )
    notes = scanned(source, tmp_path / "store")[3]
    assert len(notes) == 3
    assert notes[0].startswith("2 scans of several studies with a PatientID that is no id")
    assert "the first is 1.2.1: " in notes[0]
    assert "1 PatientID of several issuers (IssuerOfPatientID), as in scans 1.2.4 and 1.2.5," in notes[1]
    assert (
        "1 PatientID written in several ways, which differ in case or blanks alone, as in scans 1.2.6 and 1.2.7"
        in notes[2]
    )
    (source / "patients.csv").write_text("series_uid,patient_id\n1.2.1,Doe\n1.2.2,Roe\n")
    _, scans, _, notes = scanned(source, tmp_path / "store")
    assert [one.patient_key for one in scans[:2]] == [patient_key(KEY, name, "")[0] for name in ("Doe", "Roe")]
    assert len(notes) == 2


def test_ordinary_patient_ids_are_not_noted(tmp_path: Path) -> None:
    several = (("A1", "1.3.1", "H1"), ("A1", "1.3.2", "H1"), ("A1", "1.3.3", ""), ("A2", "1.3.4", "H2"))
    write_ids(tmp_path / "src", *several, ("0", "1.3.5", ""), ("0", "1.3.5", ""))
    assert scanned(tmp_path / "src", tmp_path / "store")[3] == []


def test_a_folder_of_single_compressed_files_says_what_to_unpack(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "001.dcm.gz").write_bytes(gzip.compress(b"a slice"))
    with pytest.raises(SourceError, match=r"Unpack them: .*only zip and tar are read, not single files in gzip"):
        ingest(tmp_path / "src", tmp_path / "store", CONFIG, runner=Local(1))


def test_lists_give_the_number_of_images(tmp_path: Path) -> None:
    source = tmp_path / "src"
    write_series(source / "a", uid="1.2.1", shape=(3, 4, 4))
    write_series(source / "b", uid="1.2.2", shape=(2, 4, 4))
    (source / "metadata.csv").write_text("Series UID,Modality,Number of Images\n1.2.1,CT,5\n1.2.7,CT,9\n")
    _, scans, excluded, notes = scanned(source, tmp_path / "store")
    assert [one.num_expected for one in scans] == [5, None]
    assert excluded == []
    (note,) = notes
    assert note.startswith("metadata.csv: 1 of 2 series that it lists are not CT of this source, the first 1.2.7.")


def test_images_of_a_study_are_counted_but_those_of_other_kinds(tmp_path: Path) -> None:
    source = tmp_path / "src"
    for uid, study, num, modality, words in (
        ("1.2.1", "1.3.1", 3, "CT", "AXIAL"), ("1.2.2", "1.3.1", 2, "CT", "AXIAL"), ("1.2.3", "1.3.1", 1, "CT", "LOCALIZER"),
        ("1.2.4", "1.3.1", 9, "MR", "AXIAL"), ("1.2.5", "1.3.2", 4, "CT", "AXIAL"), ("1.2.6", "", 2, "CT", "AXIAL"),
        ("1.2.7", "", 2, "CT", "AXIAL"),
    ):  # fmt: skip

        def change(k: int, data: Dataset, study: str = study, modality: str = modality, words: str = words) -> None:
            data.StudyInstanceUID, data.Modality, data.ImageType = study, modality, ["ORIGINAL", "PRIMARY", words]

        write_series(source / uid, uid=uid, shape=(num, 4, 4), change=change)
    _, scans, _, _ = scanned(source, tmp_path / "store")
    assert {one.scan_id: one.num_beside for one in scans} == {
        "1.2.1": 3,
        "1.2.2": 4,
        "1.2.5": 0,
        "1.2.6": 0,
        "1.2.7": 0,
    }


def test_archives_are_read_once_and_gone_files_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "src"
    write_series(tmp_path / "a", uid="1.2.1", shape=(3, 4, 4))
    write_series(source / "b", uid="1.2.2", shape=(2, 4, 4))
    for name in ("x.zip", "y.tgz"):
        pack_folder(tmp_path / "a", source / name)
    opened = []
    real = tasks.ingest.archive_scan.read_members

    def noted(*arguments: Any) -> Any:
        opened.append(arguments[1])
        return real(*arguments)

    monkeypatch.setattr("tasks.ingest.archive_scan.read_members", noted)
    first = scanned(source, tmp_path / "store")
    assert [one.files for one in first[1]] == [
        tuple(f"{name}/00{k}.dcm" for name in ("x.zip", "y.tgz") for k in range(3)),
        ("b/000.dcm", "b/001.dcm"),
    ]
    assert sorted(opened) == ["x.zip", "y.tgz"]
    opened.clear()
    assert scanned(source, tmp_path / "store") == first
    assert opened == []
    assert first[2] == []
    pack_folder(source / "b", source / "x.zip")
    (source / "y.tgz").unlink()
    second = scanned(source, tmp_path / "store")
    assert opened == ["x.zip"]
    assert [one.files for one in second[1]] == [("b/000.dcm", "b/001.dcm", "x.zip/000.dcm", "x.zip/001.dcm")]
    with sqlite3.connect(file_cache(tmp_path / "store")) as connection:
        assert connection.execute("SELECT COUNT(*) FROM files").fetchone() == (5,)  # two, two in x.zip, and x.zip
    assert len(list((tmp_path / "store.ingests").glob("*.archives/*"))) == 1


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
def test_an_archive_gives_the_volume_of_its_folder(tmp_path: Path, name: str) -> None:
    write_series(tmp_path / "a" / "s", shape=(9, 8, 8))
    (tmp_path / "src").mkdir()
    pack_folder(tmp_path / "a", tmp_path / "src" / name)
    packed = ingest(tmp_path / "src", tmp_path / "s1", CONFIG, runner=Local(1))
    plain = ingest(tmp_path / "a", tmp_path / "s2", CONFIG, runner=Local(1))
    assert [entry.volume_id for entry in packed.committed] == [entry.volume_id for entry in plain.committed] != []
    with pytest.raises(SourceError, match=r"1 archive\. ingest\.archives is off: set it to true"):
        ingest(tmp_path / "src", tmp_path / "s3", CONFIG.model_copy(update={"archives": False}), runner=Local(1))


def cut(data: bytes) -> bytes:
    return data[: len(data) * 8 // 10]


def wrong_sum(data: bytes) -> bytes:
    return data[:-6] + bytes([data[-6] ^ 1]) + data[-5:]


@pytest.mark.parametrize(
    ("name", "damage", "detail"),
    [
        ("x.zip", cut, "its directory is missing or damaged"),
        ("x.tar", cut, "it ends early, after 16 files in it"),
        ("x.tgz", lambda data: data[:-4], "it ends early, after 17 files in it"),
        ("x.tar.bz2", cut, "it is not what its name says"),
        ("x.tgz", wrong_sum, "its check sum is wrong, after 17 files in it"),
        ("x.zip", lambda data: b"<html>not found</html>", "it is not what its name says"),
        ("x.tar.gz", lambda data: b"", "it is empty"),
    ],
)
def test_no_scan_of_an_archive_that_is_not_whole_goes_in(tmp_path: Path, name: str, damage: Any, detail: str) -> None:
    """Enough slices for a volume are there, and the copy of another scan beside the archive is read."""
    write_series(tmp_path / "a" / "s", shape=(16, 8, 8))
    write_series(tmp_path / "a" / "t", shape=(1, 8, 8), uid="1.2.9")
    write_series(tmp_path / "src" / "good", shape=(9, 8, 8), uid="1.2.8")
    path = pack_folder(tmp_path / "a", tmp_path / "src" / name)
    path.write_bytes(damage(path.read_bytes()))
    report = ingest(tmp_path / "src", tmp_path / "store", CONFIG, runner=Local(1))
    assert [one.series_uid for one in report.committed] == ["1.2.8"]
    assert not report.skipped
    assert {one.reason for one in report.quarantined} == {"unreadable_file"}
    messages = {one.series_uid or one.path: str(one.message) for one in report.quarantined}
    assert f"{name} cannot be read ({detail}" in messages.pop(name)
    for scan, message in messages.items():
        assert message.startswith(f"Scan {scan} cannot be read (its archive is not whole: {detail}")
    assert ("1.2.3.4.5" in messages) == ("after" in detail)
    pack_folder(tmp_path / "a", path)
    os.utime(path, ns=(1, 1))
    again = ingest(tmp_path / "src", tmp_path / "store", CONFIG, runner=Local(1))
    assert [(one.series_uid, one.num_slices) for one in again.committed] == [("1.2.3.4.5", 16)]


def test_a_scan_beside_a_damaged_archive_of_it_is_read(tmp_path: Path) -> None:
    write_series(tmp_path / "src" / "s", shape=(9, 8, 8))
    path = pack_folder(tmp_path / "src" / "s", tmp_path / "src" / "x.tgz")
    path.write_bytes(cut(path.read_bytes()))
    report = ingest(tmp_path / "src", tmp_path / "store", CONFIG, runner=Local(1))
    assert [one.num_slices for one in report.committed] == [9]
    assert {one.reason for one in report.quarantined} == {"unreadable_file"}


def test_a_damaged_member_is_noted_on_the_scan_beside_it(tmp_path: Path) -> None:
    write_series(tmp_path / "s", shape=(9, 8, 8))
    (tmp_path / "src").mkdir()
    path = pack_folder(tmp_path / "s", tmp_path / "src" / "x.zip")
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\1\2") + 8] |= 1  # the last slice is said to be encrypted
    path.write_bytes(data)
    report = ingest(tmp_path / "src", tmp_path / "store", CONFIG, runner=Local(1))
    assert [one.num_slices for one in report.committed] == [8]
    assert [one.reason for one in report.quarantined] == ["archive_member"]
    assert any("1 file beside those of the scan cannot be read" in note for note in report.notes)


# ---- ingest --------------------------------------------------------------------------------------------------------------


def test_many_exclusions_are_counted_and_kept_beside_the_store(tmp_path: Path) -> None:
    source = tmp_path / "src"
    write_series(source / "good", shape=(8, 8, 8))
    for k in range(LISTED_FILES + 5):
        (source / f"doe{k:04d}.txt").write_text("no image")
    report = ingest(source, tmp_path / "store", CONFIG, runner=Local(1))
    assert len(report.skipped) == LISTED_FILES
    assert report.num_excluded == {"unknown_format": LISTED_FILES + 5}
    (lines,) = (tmp_path / "store.ingests").glob("*.jsonl")
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [row["path"] for row in rows] == [f"doe{k:04d}.txt" for k in range(LISTED_FILES + 5)]
    assert {row["verdict"] for row in rows} == {"skipped"}
    (note,) = report.notes
    assert f"5 of {LISTED_FILES + 5} exclusions" in note
    assert lines.name in note
    assert last_report(source, tmp_path / "store", CONFIG, unchanged=True).num_excluded == report.num_excluded
    assert not any(b"doe" in path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())


def test_nifti_becomes_a_volume_beside_dicom(tmp_path: Path) -> None:
    source = tmp_path / "src"
    write_series(source / "d", shape=(20, 26, 28))
    steps = np.array([[0.0, 0.0, -2.0], [1.3, 0.0, 0.0], [0.0, 1.5, 0.0]])
    affine = centred(steps, (24, 22, 20))
    affine[2, 3] += 40
    stored = world_linear(affine, (24, 22, 20)).astype(np.float32)
    write_image(source / "doe.nii.gz", stored, affine, change=lambda h: h.__setitem__("xyzt_units", 0))
    write_image(source / "mask.nii.gz", (stored > -480).astype(np.uint8), affine)
    config = small_ingest()
    report = ingest(source, tmp_path / "store", config, runner=Local(1))
    assert len(report.committed) == 2
    volume = next(entry for entry in report.committed if str(entry.series_uid).startswith("nifti-"))
    assert [entry.reason for entry in report.skipped] == ["not_hu"]
    assert [note for note in report.notes if "millimetres" in note] == []
    store = VolumeStore.open(tmp_path / "store")
    level = store.read_level(volume.volume_id)
    z, y, x = (np.asarray(level.hu.shape) // 2).tolist()
    expected = world_linear(np.diag([-1.0, -1.0, 1.0, 1.0]), (1, 1, 1))[0, 0, 0] + np.dot(
        level.world_mm(np.array([z, y, x], dtype=float)), (3, -2, 1)
    )
    assert level.hu[z, y, x] == pytest.approx(expected, abs=1)
    record = store.commit_record(volume.volume_id)
    assert record.scan.format == "nifti"
    assert not load_snapshot(newest(store)).volumes[volume.volume_id].patient_known
    again = ingest(source, tmp_path / "store", config, runner=Local(1))
    assert {e.volume_id for e in again.unchanged} == {e.volume_id for e in report.committed}
    assert again.notes == report.notes
    everything = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert b"doe" not in everything


def test_nan_becomes_air_where_the_configuration_says_so(tmp_path: Path) -> None:
    affine = centred(np.diag([1.5, 1.3, 2.0]), (24, 22, 20))
    stored = world_linear(affine, (24, 22, 20)).astype(np.float32)
    stored[:3] = np.nan
    write_image(tmp_path / "src" / "a.nii", stored, affine)
    refused = ingest(tmp_path / "src", tmp_path / "s1", CONFIG, runner=Local(1))
    assert [entry.reason for entry in refused.quarantined] == ["not_finite"]
    report = ingest(tmp_path / "src", tmp_path / "s2", CONFIG.model_copy(update={"nan": "air"}), runner=Local(1))
    assert len(report.committed) == 1
    assert any("1320 of 10560 voxels are not finite" in note for note in report.notes)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_ends_the_ingest(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No scan is quarantined for it: what is missing is space, and the next run goes on from there."""
    for k in range(3):
        write_series(tmp_path / "src" / str(k), uid=f"1.2.{k}", shape=(8 + k, 8, 8))
    monkeypatch.setattr("tasks.ingest.scans.ingest_series", on_a_full_disk)
    with pytest.raises(UnwritableError, match="no space is left"):
        ingest(tmp_path / "src", tmp_path / "store", CONFIG, runner=Local(workers))
    assert not list((tmp_path / "store.ingests").glob("*")) if (tmp_path / "store.ingests").exists() else True
    monkeypatch.undo()
    report = ingest(tmp_path / "src", tmp_path / "store", CONFIG, runner=Local(1))
    assert len(report.committed) + len(report.unchanged) == 3


def on_a_full_disk(job: Any) -> Any:
    import storage.volume_store
    import tasks.ingest.series

    def write(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    real = storage.volume_store.write_group
    storage.volume_store.write_group = write
    try:
        return tasks.ingest.series.ingest_series(job)
    finally:
        storage.volume_store.write_group = real


def test_the_run_keeps_its_paths_to_itself(tmp_path: Path) -> None:
    write_series(tmp_path / "src", shape=(2, 4, 4))
    scanned(tmp_path / "src", tmp_path / "store")
    with sqlite3.connect(file_cache(tmp_path / "store")) as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert tables == {"owner", "files"}
        assert connection.execute("SELECT COUNT(*) FROM files").fetchone() == (2,)
