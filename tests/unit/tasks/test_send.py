"""Sending to nodes that take what they get, and to those that refuse, fail or vanish: each is one sentence."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pynetdicom import AE, evt

from storage.errors import DamagedArtifactError, InputError, MissingArtifactError, NodeError
from storage.files import read_json, write_json_atomic
from tasks.export.folder import export
from tasks.export.selection import select
from tasks.export.send import CT_IMAGE, VERIFICATION, Node, send
from tasks.export.sendable import of_folder, of_selection
from tests.exported import GENERATED, SCAN, SHAPE, sample_store, scan_store, thorax
from tests.ports import free_ports

NUM = SHAPE[0]
IMPLICIT = "1.2.840.10008.1.2"


def silent(done: int, total: int) -> None:
    """Progress that nobody looks at."""


class Received:
    """A node's objects by UID, and how often each came."""

    def __init__(self, answer: Callable[[int, Any], int] = lambda number, event: 0) -> None:
        self.images: dict[str, Any] = {}
        self.number, self.echoes = 0, 0
        self._answer = answer

    def store(self, event: Any) -> int:
        self.number += 1
        status = self._answer(self.number, event)
        if status in (0, 0xB000):
            data = event.dataset
            data.file_meta = event.file_meta
            self.images[str(data.SOPInstanceUID)] = data
        return status

    def echo(self, event: Any) -> int:
        self.echoes += 1
        return 0

    @property
    def hu(self) -> np.ndarray:
        """Values of all images, by position."""
        found = sorted(self.images.values(), key=lambda data: float(data.ImagePositionPatient[2]))
        return np.stack([data.pixel_array for data in found])


@contextmanager
def node(
    received: Received,
    contexts: dict[str, list[str] | None] | None = None,
    change: Callable[[AE], Any] = lambda e: None,
) -> Iterator[Node]:
    """A node that runs for a block; it takes CT images unless `contexts` are others."""
    entity = AE(ae_title="NODE")
    for uid, syntaxes in ({VERIFICATION: None, CT_IMAGE: None} if contexts is None else contexts).items():
        entity.add_supported_context(uid, syntaxes)
    change(entity)
    port = free_ports()
    handlers = [(evt.EVT_C_STORE, received.store), (evt.EVT_C_ECHO, received.echo)]
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        yield Node("NODE", "127.0.0.1", port, timeout_s=10.0)
    finally:
        server.shutdown()


@pytest.mark.parametrize("syntaxes", [None, [IMPLICIT]])
def test_a_node_gets_every_image_once_however_often_it_is_sent(tmp_path: Path, syntaxes: list[str] | None) -> None:
    chosen, received = select(scan_store(tmp_path / "store"), everything=True), Received()
    told: list[tuple[int, int]] = []
    with node(received, {VERIFICATION: None, CT_IMAGE: syntaxes}) as to:
        sent = send(of_selection(chosen), to, lambda *numbers: told.append(numbers))
        again = send(of_selection(chosen), to, silent)
    assert told == [(k + 1, NUM) for k in range(NUM)]
    assert (sent.volumes, sent.num_images, sent.warnings) == ([SCAN], NUM, {})
    assert again == sent
    assert (received.number, len(received.images), received.echoes) == (2 * NUM, NUM, 2)
    np.testing.assert_array_equal(received.hu, thorax().hu)


def test_a_folder_is_sent_as_it_was_exported(tmp_path: Path) -> None:
    chosen, received = select(sample_store(tmp_path / "samples.zarr"), everything=True), Received()
    export(chosen, "dicom", tmp_path / "out", silent)
    with node(received) as to:
        assert send(of_folder(tmp_path / "out"), to, silent).volumes == [GENERATED]
        assert send(of_selection(chosen), to, silent).num_images == NUM
    assert len(received.images) == NUM  # from the store as from the folder
    on_disk = {str(pydicom.dcmread(p).SOPInstanceUID) for p in (tmp_path / "out" / GENERATED).iterdir()}
    assert on_disk == received.images.keys()
    assert {str(data.SyntheticData) for data in received.images.values()} == {"YES"}


def test_a_folder_that_was_changed_is_not_sent(tmp_path: Path) -> None:
    chosen, received = select(scan_store(tmp_path / "store"), everything=True), Received()
    for name in ("lost", "changed", "added"):
        export(chosen, "dicom", tmp_path / name, silent)
    (tmp_path / "lost" / SCAN / "0003.dcm").unlink()
    with (tmp_path / "changed" / SCAN / "0003.dcm").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    (tmp_path / "added" / SCAN / "name-of-somebody.dcm").write_bytes(b"")
    with node(received) as to:
        for name in ("lost", "changed", "added"):
            with pytest.raises(DamagedArtifactError, match="missing, changed or added"):
                send(of_folder(tmp_path / name), to, silent)
    assert received.number == 0


def test_what_is_no_export_of_dicom_is_not_sent(tmp_path: Path) -> None:
    export(select(scan_store(tmp_path / "store"), everything=True), "nifti", tmp_path / "out", silent)
    with pytest.raises(InputError, match="an export as nifti; a DICOM node takes DICOM"):
        of_folder(tmp_path / "out")
    with pytest.raises(MissingArtifactError, match="No list of exported volumes"):
        of_folder(tmp_path / "store")
    listed = read_json(tmp_path / "out" / "export.json")
    listed["volumes"][0]["path"] = "../store"
    write_json_atomic(tmp_path / "out" / "export.json", listed)
    with pytest.raises(DamagedArtifactError, match=r"volumes\.0\.path"):
        of_folder(tmp_path / "out")


def refused(tmp_path: Path, to: Node) -> str:
    with pytest.raises(NodeError) as raised:
        send(of_selection(select(scan_store(tmp_path / "store"), everything=True)), to, silent)
    message = str(raised.value)
    assert message.startswith(f"NODE@127.0.0.1:{to.port} ")
    assert "\n" not in message
    return message


def test_nobody_listens(tmp_path: Path) -> None:
    assert "cannot be reached (Connection refused)" in refused(tmp_path, Node("NODE", "127.0.0.1", free_ports()))


def test_a_name_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=r"nowhere\.invalid:104 cannot be reached"):
        send([], Node("NODE", "nowhere.invalid", 104), silent)


def test_something_else_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        to = Node("NODE", "127.0.0.1", server.getsockname()[1], timeout_s=1.0)
        assert "it closed the connection, or gave no answer for 1 s" in refused(tmp_path, to)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: setattr(e, "require_calling_aet", ["OTHER"]), "it does not know our AE title PRDIT"),
        (lambda e: setattr(e, "require_called_aet", True) or setattr(e, "ae_title", "X"), "another AE title than NODE"),
        (lambda e: setattr(e, "maximum_associations", 0), "as many associations as it takes"),
    ],
)
def test_a_node_that_refuses_associations(tmp_path: Path, change: Callable[[AE], Any], words: str) -> None:
    received = Received()
    with node(received, change=change) as to:
        assert words in refused(tmp_path, to)
    assert received.number == 0


@pytest.mark.parametrize("taken", [{"1.2.840.10008.5.1.4.1.1.4": None}, {CT_IMAGE: ["1.2.840.10008.1.2.4.50"]}])
def test_a_node_that_takes_no_ct(tmp_path: Path, taken: dict[str, list[str] | None]) -> None:
    with node(Received(), {VERIFICATION: None, **taken}) as to:
        message = refused(tmp_path, to)
    assert "it does not take CT Image Storage in little endian (no presentation context)" in message


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            0xA700,
            "(status 0xA700, Refused: Out of Resources): it has 4 of 24 images, 0 volumes whole. It is out of resources",
        ),
        (0xC001, "(status 0xC001, Cannot Understand): it has 4 of 24 images, 0 volumes whole. Look at the node's log"),
        (
            0x0124,
            "(status 0x0124, Refused: Not Authorised): it has 4 of 24 images, 0 volumes whole. It does not allow us to store",
        ),
        (0x7777, "(status 0x7777): it has 4 of 24 images"),
    ],
)
def test_an_image_that_is_not_stored_ends_it(tmp_path: Path, status: int, words: str) -> None:
    received = Received(lambda number, event: status if number == 5 else 0)
    with node(received) as to:
        message = refused(tmp_path, to)
    assert words in message
    assert (received.number, len(received.images)) == (5, 4)


def test_a_connection_that_is_cut_in_the_middle(tmp_path: Path) -> None:
    def cut(number: int, event: Any) -> int:
        if number == 5:
            event.assoc.abort()
        return 0

    received = Received(cut)
    with node(received) as to:
        assert "cut the connection, or gave no answer for 10 s: it has 4 of 24 images" in refused(tmp_path, to)
    whole = Received()
    with node(whole) as to:  # once more, all of it
        assert send(of_selection(select(scan_store(tmp_path / "again"), everything=True)), to, silent).num_images == NUM
    assert received.images.keys() <= whole.images.keys()


def test_a_remark_of_the_node_is_passed_on(tmp_path: Path) -> None:
    received = Received(lambda number, event: 0xB000 if number in (2, 3) else 0)
    with node(received) as to:
        sent = send(of_selection(select(scan_store(tmp_path / "store"), everything=True)), to, silent)
    assert (sent.num_images, sum(sent.warnings.values())) == (NUM, 2)
    assert list(sent.warnings) == ["status 0xB000, Coercion of Data Elements"]


@pytest.mark.parametrize(
    "text", ["NODE", "NODE@host", "@host:104", "NODE@host:0", "NODE@host:65536", "NODE@:104", "A@B@host:104", ""]
)
def test_what_is_no_node(text: str) -> None:
    with pytest.raises(InputError, match=r"is no DICOM node; expected TITLE@HOST:PORT"):
        Node.parse(text)


def test_what_is_no_ae_title() -> None:
    assert Node.parse("ORTHANC@[::1]:4242", "ME") == Node("ORTHANC", "::1", 4242, "ME")
    for title, calling in (("A" * 17, "ME"), ("NODE", "A\\B"), ("NODE", " ")):
        with pytest.raises(InputError, match="is no AE title: 1 to 16 characters"):
            Node.parse(f"{title}@host:104", calling)
