"""The ledger's file: its format, damage, and what a person may decide about a batch."""

import hashlib
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.errors import ConfigError, DamagedArtifactError, InputError, UnwritableError, VersionError
from storage.inbox_database import NAME
from storage.inbox_files import SeenFile
from storage.inbox_ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """With one batch of one series."""
    made = Ledger(tmp_path / "arrivals")
    add_series(made, "1.2.3")
    assert made.new_batch(10) is not None
    return made


def add_series(ledger: Ledger, uid: str) -> None:
    ledger.files.record(
        [
            SeenFile(b"a", name, 1, 2, 3.0, True, hashlib.sha256(name).hexdigest(), uid, "dicom")
            for name in (f"{uid}-{k}".encode() for k in range(3))
        ]
    )
    ledger.files.refresh(9.0)
    ledger.files.complete(uid, "quiet")


def test_only_its_owner_can_read_it(ledger: Ledger) -> None:
    assert stat.S_IMODE(ledger.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in ledger.folder.glob("ledger.sqlite*")} == {0o600}


def test_it_is_the_same_when_it_is_opened_again(ledger: Ledger) -> None:
    again = Ledger(ledger.folder)
    assert again.batches() == ledger.batches()
    assert again.database.secret == ledger.database.secret
    assert [one.state for one in again.files.items()] == ["taken"]


def truncated(path: Path) -> None:
    os.truncate(path, 5000)


def zeroed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:9000] = bytes(8900)
    path.write_bytes(data)


def other_bytes(path: Path) -> None:
    path.write_bytes(b"not a database, " * 100)


def other_database(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other (x)")


@pytest.mark.parametrize("damage", [truncated, zeroed, other_bytes, other_database])
def test_a_damaged_one_is_one_sentence(ledger: Ledger, damage: Callable[[Path], None]) -> None:
    ledger.close()
    for path in ledger.folder.glob("ledger.sqlite-*"):
        path.unlink()
    damage(ledger.folder / NAME)
    with pytest.raises(DamagedArtifactError, match=r"ledger.sqlite is .*Restore it from a backup") as caught:
        Ledger(ledger.folder).batches()
    assert "\n" not in str(caught.value)


def test_a_later_format_is_refused(ledger: Ledger) -> None:
    ledger.close()
    with sqlite3.connect(ledger.folder / NAME) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(VersionError, match="has format 2; this prdit reads format 1"):
        Ledger(ledger.folder)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableError):
        Ledger(tmp_path / "file" / "arrivals")


def test_states_of_a_batch(ledger: Ledger) -> None:
    held = ledger.set_batch(1, "held", reason="too bright", volumes=("v",))
    assert (held.state, held.reason, held.volumes, held.released) == ("held", "too bright", ("v",), False)
    released = ledger.release(1)
    assert (released.state, released.released, released.volumes) == ("open", True, ("v",))
    assert ledger.batches("open") == [released]
    assert ledger.set_batch(1, "listed").state == "listed"


def test_a_rejected_batch_says_why(ledger: Ledger) -> None:
    ledger.set_batch(1, "held", reason="too bright")
    assert ledger.reject(1).reason == "rejected by a person; it was held: too bright"
    assert ledger.batches("rejected")[0].number == 1


@pytest.mark.parametrize("state", ["open", "listed", "rejected"])
def test_only_a_held_batch_can_be_released_or_rejected(ledger: Ledger, state: str) -> None:
    ledger.set_batch(1, state)  # type: ignore[arg-type]
    before = ledger.batches()
    for decide in (ledger.release, ledger.reject):
        with pytest.raises(ConfigError, match=rf"Batch 1 is {state}, and only a held one can be re(leas|ject)ed"):
            decide(1)
    assert ledger.batches() == before


def test_an_unknown_batch(ledger: Ledger) -> None:
    for decide in (ledger.release, ledger.reject, lambda number: ledger.set_batch(number, "listed")):
        with pytest.raises(InputError, match="There is no batch 7"):
            decide(7)


def test_several_processes_take_from_one_ledger(tmp_path: Path) -> None:
    """Each complete series is in exactly one batch."""
    ledger = Ledger(tmp_path / "arrivals")
    for k in range(40):
        add_series(ledger, f"1.2.{k}")
    code = (
        "import sys; from pathlib import Path; from storage.inbox_ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "while ledger.new_batch(3): pass\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(ledger.folder)]) for _ in range(3)]
    assert [child.wait(timeout=120) for child in children] == [0, 0, 0]
    taken = [item for batch in ledger.batches() for item in ledger.files_of(batch.number)]
    assert sorted(taken) == sorted(f"1.2.{k}" for k in range(40))
    assert sum(batch.num_series for batch in ledger.batches()) == 40


def bytes_of(ledger: Ledger) -> bytes:
    return b"".join(path.read_bytes() for path in ledger.folder.glob("ledger.sqlite*"))


def names(uid: str) -> list[bytes]:
    return [f"{uid}-{k}".encode() for k in range(3)]


def test_scans_that_are_forgotten_leave_the_file_when_their_files_are_gone(ledger: Ledger) -> None:
    add_series(ledger, "1.2.826.77")
    add_series(ledger, "1.2.826.78")
    assert ledger.new_batch(10) is not None
    for number in (1, 2):
        ledger.set_batch(number, "listed")
    ledger.files.forget(b"a", names("1.2.826.78"))
    assert ledger.files.forget_items(["1.2.826.77", "1.2.826.78"]) == 1  # one still has its files
    assert b"1.2.826.78" not in bytes_of(ledger)
    assert len(ledger.files.paths_of(["1.2.826.77"])) == 3
    ledger.files.forget(b"a", names("1.2.826.77"))  # as the watcher does
    ledger.files.refresh(10.0)
    ledger.close()
    assert b"1.2.826.77" not in bytes_of(ledger)
    assert {one.item for one in Ledger(ledger.folder).files.items()} == {"1.2.3"}


def test_an_open_batch_keeps_its_scans(ledger: Ledger) -> None:
    ledger.files.forget(b"a", names("1.2.3"))
    assert ledger.files.forget_items(["1.2.3"]) == 0
    assert list(ledger.files_of(1)) == ["1.2.3"]
    ledger.set_batch(1, "held")
    assert ledger.files.forget_items([]) == 0  # asked for before
    assert ledger.files_of(1) == {}
    assert ledger.files.items() == []


def test_a_content_that_another_item_of_the_batch_has_stays_taken_when_one_is_dropped(ledger: Ledger) -> None:
    contents = {"4.5": ("x", "y"), "4.6": ("y", "z")}
    for uid, shas in contents.items():
        ledger.files.record(
            [SeenFile(b"b", f"{uid}-{sha}".encode(), 1, 2, 3.0, True, sha, uid, "dicom") for sha in shas]
        )
    ledger.files.refresh(9.0)
    for uid in contents:
        ledger.files.complete(uid, "quiet")
    batch = ledger.new_batch(10)
    assert batch is not None
    assert batch.num_series == 2
    assert ledger.drop(batch.number, ["4.5"])
    assert set(ledger.files_of(batch.number)) == {"4.6"}
    ledger.files.record([SeenFile(b"c", b"copy", 1, 2, 3.0, True, "y", "4.6", "dicom")])
    ledger.files.refresh(9.0)
    assert {one.item: one.state for one in ledger.files.items()} == {
        "1.2.3": "taken",
        "4.5": "arriving",
        "4.6": "taken",
    }
