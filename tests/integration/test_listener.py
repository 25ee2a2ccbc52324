"""The DICOM listener with real senders: what is stored is whole, whoever dies in between, and who may not send stores nothing."""

import re
import shutil
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE

from storage.inbox_ledger import Ledger
from storage.sources import dicom_codecs
from tasks.inbox.batches import take_batch
from tasks.inbox.config import Timing
from tasks.inbox.listener import TRANSFER_SYNTAXES
from tasks.inbox.reconcile import look
from tasks.run.fanout import Pool
from tasks.run.runners import Local
from tests.dcmtk import DEADLINE_S, ListenerProcess, listening, skip_without_dcmtk
from tests.processes import wait_for
from tests.unit.storage.dicom_files import write_series

NUM_SLICES = 60
TIMING = Timing(quiet_s=3600.0, association_s=0.3, settle_s=0.0)


@pytest.fixture(scope="module", autouse=True)
def _dcmtk() -> None:
    skip_without_dcmtk()


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `1.2.3` and `1.2.4` with a series each, whose images are large enough to be interrupted."""
    folder = tmp_path_factory.mktemp("series")
    for uid in ("1.2.3", "1.2.4"):
        write_series(folder / uid, shape=(NUM_SLICES, 256, 256), uid=uid)
    return folder


@pytest.fixture(scope="module")
def _usual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ListenerProcess]:
    with listening(tmp_path_factory.mktemp("usual")) as started:
        yield started


@pytest.fixture(scope="module")
def _strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ListenerProcess]:
    settings = {"max_object_mb": 1, "max_associations": 2, "timeout_s": 2.0}
    with listening(tmp_path_factory.mktemp("strict"), **settings) as started:
        yield started


@pytest.fixture
def listener(_usual: ListenerProcess) -> ListenerProcess:
    """With the limits that it has by itself; its inbox is empty."""
    _usual.clear()
    return _usual


@pytest.fixture
def strict(_strict: ListenerProcess) -> ListenerProcess:
    """With narrow limits."""
    _strict.clear()
    return _strict


def data_sets(paths: list[Path]) -> dict[str, bytes]:
    """What follows the meta information of DICOM files, by SOPInstanceUID."""
    found = {}
    for path in paths:
        meta = pydicom.filereader.read_file_meta_info(path)
        data = path.read_bytes()
        assert data[128:132] == b"DICM"
        found[str(meta.MediaStorageSOPInstanceUID)] = data[128 + 4 + 12 + meta.FileMetaInformationGroupLength :]
    return found


def sent(series: Path, *uids: str) -> dict[str, bytes]:
    return data_sets([path for uid in uids for path in (series / uid).iterdir()])


def test_a_series_that_breaks_off_and_is_sent_again(listener: ListenerProcess, series: Path) -> None:
    """Whole files are kept, the series is not complete; when it was sent properly it is, once, in one batch."""
    sender = listener.sending(series / "1.2.3")
    wait_for(lambda: len(listener.stored()) >= 5, DEADLINE_S, every_s=0.01, log=listener.log)
    sender.kill()
    sender.wait()
    wait_for(lambda: "broke off" in listener.said(), DEADLINE_S, log=listener.log)
    wait_for(lambda: not listener.hidden(), DEADLINE_S, log=listener.log)
    first = data_sets(listener.stored())
    assert 5 <= len(first) < NUM_SLICES
    assert first.items() <= sent(series, "1.2.3").items()
    ledger = Ledger(listener.arrivals)
    with Pool(Local(1)) as pool:
        look(ledger, listener.inbox, TIMING, pool=pool)
        time.sleep(0.5)
        assert look(ledger, listener.inbox, TIMING, pool=pool).num_arriving == 1
        assert take_batch(ledger, listener.inbox, timing=TIMING, pool=pool) is None
        assert listener.send(series / "1.2.3").returncode == 0
        assert data_sets(listener.stored()) == sent(series, "1.2.3")
        wait_for(lambda: look(ledger, listener.inbox, TIMING, pool=pool).num_complete == 1, DEADLINE_S)
        batch = take_batch(ledger, listener.inbox, timing=TIMING, pool=pool)
    assert batch is not None
    assert data_sets(sorted(batch.folder.rglob("*.dcm"))) == sent(series, "1.2.3")


def test_two_senders_at_the_same_time(listener: ListenerProcess, series: Path) -> None:
    senders = [listener.sending(series / "1.2.3"), listener.sending(series / "1.2.4", aet="SECOND")]
    assert [sender.wait(DEADLINE_S) for sender in senders] == [0, 0]
    assert data_sets(listener.stored()) == sent(series, "1.2.3", "1.2.4")
    assert listener.said().count(f"{NUM_SLICES} objects received") == 2


def test_who_is_not_named_is_refused(listener: ListenerProcess, series: Path) -> None:
    for aet, aec, why in (
        ("STRANGER", "PRDIT", "Calling AE Title Not Recognized"),
        ("SCANNER", "OTHER", "Called AE Title Not Recognized"),
        ("scanner", "PRDIT", "Calling AE Title Not Recognized"),
    ):
        refused = listener.send(series / "1.2.3", aet=aet, aec=aec)
        assert refused.returncode != 0
        assert why in refused.stderr
    assert listener.stored() == []
    log = listener.said()
    assert "'STRANGER' was rejected: it may not send" in log
    assert "'SCANNER' was rejected: it called another AE title than PRDIT" in log


def test_only_its_owner_can_read_what_is_received(listener: ListenerProcess, tmp_path: Path) -> None:
    write_series(tmp_path / "ct", shape=(2, 8, 8), uid="1.2.5")
    assert listener.send(tmp_path / "ct").returncode == 0
    received = [listener.inbox, *(listener.inbox / "received").rglob("*"), listener.inbox / "received"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in received if path.is_dir()} == {0o700}
    assert [stat.S_IMODE(path.stat().st_mode) for path in received if path.is_file()] == [0o600] * 2


def test_an_echo_is_answered(listener: ListenerProcess) -> None:
    assert listener.echo() == 0


def test_names_are_not_made_of_what_is_sent(listener: ListenerProcess, tmp_path: Path) -> None:
    """A UID that would be a path names no place, and neither does anything else of the data set."""
    write_series(tmp_path / "data", shape=(1, 6, 6))
    data = pydicom.dcmread(next((tmp_path / "data").iterdir()))
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "../../../escaped"
    entity = AE(ae_title="SCANNER")
    entity.add_requested_context(data.SOPClassUID, data.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", listener.port, ae_title="PRDIT")
    assert association.send_c_store(data).Status == 0
    association.release()
    (stored,) = listener.stored()
    assert re.fullmatch(r"received/[0-9a-f]{2}/[0-9a-f]{32}\.dcm", stored.relative_to(listener.inbox).as_posix())
    assert pydicom.dcmread(stored).SOPInstanceUID == "../../../escaped"
    assert not list(listener.root.rglob("*escaped*"))
    assert "escaped" not in listener.said()


def test_the_same_object_again_changes_nothing_and_a_corrected_one_replaces_it(
    listener: ListenerProcess, tmp_path: Path
) -> None:
    write_series(tmp_path / "data", shape=(3, 6, 6))
    for _ in range(2):
        assert listener.send(tmp_path / "data").returncode == 0
        states = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in listener.stored()}
    first = {path: path.stat().st_ino for path in listener.stored()}
    assert listener.send(tmp_path / "data").returncode == 0
    assert states == {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in listener.stored()}
    write_series(tmp_path / "data", shape=(3, 6, 6), patient_id="CORRECTED")
    assert listener.send(tmp_path / "data").returncode == 0
    assert set(first) == set(listener.stored())
    assert all(pydicom.dcmread(path).PatientID == "CORRECTED" for path in listener.stored())


def test_a_listener_that_is_killed_leaves_whole_files_and_tidies_up(tmp_path: Path, series: Path) -> None:
    with listening(tmp_path) as listener:
        sender = listener.sending(series / "1.2.3")
        wait_for(lambda: len(listener.stored()) >= 5, DEADLINE_S, every_s=0.01, log=listener.log)
        listener.kill()
        assert sender.wait(DEADLINE_S) != 0
        assert data_sets(listener.stored()).items() <= sent(series, "1.2.3").items()
        listener.start()
        assert len(list(listener.inbox.glob(".incoming*"))) == 1  # that of the one before is removed
        assert listener.send(series / "1.2.3").returncode == 0
        assert data_sets(listener.stored()) == sent(series, "1.2.3")
        assert listener.stop() == 130
        assert list(listener.inbox.glob(".incoming*")) == []


def test_an_object_that_is_too_large_ends_its_association(strict: ListenerProcess, tmp_path: Path) -> None:
    write_series(tmp_path / "large", shape=(1, 1024, 1024), uid="1.2.5")
    write_series(tmp_path / "small", shape=(2, 64, 64), uid="1.2.6")
    assert strict.send(tmp_path / "large").returncode != 0
    wait_for(
        lambda: "an object of more than 1 MB (listener.max_object_mb)" in strict.said(), DEADLINE_S, log=strict.log
    )
    wait_for(lambda: not strict.hidden(), DEADLINE_S, log=strict.log)
    assert strict.stored() == []
    assert strict.send(tmp_path / "small").returncode == 0
    assert len(strict.stored()) == 2


def test_nothing_is_accepted_when_the_disk_is_nearly_full(tmp_path: Path) -> None:
    write_series(tmp_path / "data", shape=(2, 64, 64))
    with listening(tmp_path, min_free_gb=1e9) as listener:
        assert listener.send(tmp_path / "data").returncode == 0xA7  # of the status 0xA700: out of resources
        assert (listener.stored(), listener.hidden()) == ([], [])
        assert "listener.min_free_gb" in listener.said()


def test_no_more_associations_than_allowed(strict: ListenerProcess) -> None:
    entity = AE(ae_title="SCANNER")
    entity.add_requested_context("1.2.840.10008.1.1")

    def associate() -> Any:
        return entity.associate("127.0.0.1", strict.port, ae_title="PRDIT")

    wait_for(lambda: (first := associate()).is_established or first.abort(), DEADLINE_S, log=strict.log)
    held = [one for one in entity.active_associations if one.is_established]
    held += [associate()]
    assert strict.echo() != 0
    assert "there are 2 already (listener.max_associations)" in strict.said()
    for one in held:
        one.release()
    wait_for(lambda: strict.echo() == 0, DEADLINE_S, log=strict.log)


def test_who_says_nothing_is_not_waited_for(strict: ListenerProcess) -> None:
    """Neither before the association, nor within a message; and a length that nobody could mean is not believed."""
    for start in (b"", b"\x01\x00\x00\x00\x01\x00half", b"\x01\x00" + struct.pack(">L", 2**32 - 1) + b"x" * 1000):
        with socket.create_connection(("127.0.0.1", strict.port)) as silent:
            silent.settimeout(DEADLINE_S)
            silent.sendall(start)
            with suppress(ConnectionResetError):
                while silent.recv(1000):  # until it is closed by the listener
                    pass
    wait_for(lambda: strict.echo() == 0, DEADLINE_S, log=strict.log)


def test_only_ct_images_are_accepted(listener: ListenerProcess, tmp_path: Path) -> None:
    def as_mr(k: int, data: Dataset) -> None:
        data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"

    write_series(tmp_path / "data", shape=(2, 6, 6), change=as_mr)
    for path in (tmp_path / "data").iterdir():
        data = pydicom.dcmread(path)
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        data.save_as(path)
    assert "No presentation context for" in listener.send(tmp_path / "data").stderr
    assert listener.stored() == []


def test_it_takes_what_an_ingest_decodes() -> None:
    decoded = {
        *dicom_codecs._BIT_BY_BIT,
        *dicom_codecs._PLUGINS,
        *dicom_codecs._GDCM,
    }
    private = {"1.2.840.113619.5.2"}  # of files; nobody negotiates it
    assert set(TRANSFER_SYNTAXES) == decoded - private
    assert len(TRANSFER_SYNTAXES) == len(set(TRANSFER_SYNTAXES))


def test_compressed_images_are_stored_as_they_are(listener: ListenerProcess, real_ct: Path, tmp_path: Path) -> None:
    """Every transfer syntax that dcmtk's sender proposes without changing it."""
    files = sorted((real_ct / "robustness" / "transfer_syntaxes").glob("*.dcm"))
    expected = {}
    for k, path in enumerate(files):
        syntax = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
        if syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"):
            continue  # it sends these in another one
        copy = tmp_path / "data" / f"{k}.dcm"
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
        data = pydicom.dcmread(copy)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.{k}"
        data.save_as(copy)
        command = listener.call("dcmsend", "--decompress-never", what=copy)
        assert subprocess.run(command, check=False, capture_output=True, text=True).returncode == 0, syntax
        expected[data.SOPInstanceUID] = (syntax, data.PixelData)
    stored = {}
    for path in listener.stored():
        data = pydicom.dcmread(path)
        stored[data.SOPInstanceUID] = (data.file_meta.TransferSyntaxUID, data.PixelData)
    assert stored == expected
    assert len({syntax for syntax, _ in stored.values()}) >= 10
