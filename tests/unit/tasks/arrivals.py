"""An inbox for tests, with a clock of its own: files are read in this process, and time passes when a test says so."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.inbox_ledger import Batch, Ledger
from tasks.inbox.batches import take_batch
from tasks.inbox.config import Timing
from tasks.inbox.reconcile import Look, _Walk, look
from tasks.run.fanout import Pool
from tasks.run.runners import Local
from tests.unit.storage.dicom_files import write_series

TIMING = Timing(quiet_s=100.0, association_s=10.0, settle_s=2.0)


class Arrivals:
    """An inbox, its ledger, and a clock; what is new at a look has just arrived, whatever its file system says."""

    def __init__(self, root: Path, pool: Pool) -> None:
        self.root, self.inbox, self.pool = root, root / "inbox", pool
        self.inbox.mkdir(exist_ok=True)
        self.ledger = Ledger(root / "arrivals")
        self._ahead = 0.0

    def now(self) -> float:
        return time.time() + self._ahead

    def look(self, after: float = 0.0) -> Look:
        """What a look finds after some seconds."""
        self._ahead += after
        return look(self.ledger, self.inbox, TIMING, clock=self.now, pool=self.pool)

    def states(self) -> dict[str, str]:
        return {one.item: one.state for one in self.ledger.files.items()}

    def how(self) -> dict[str, str]:
        return {one.item: one.how for one in self.ledger.files.items("complete")}

    def settle(self) -> Look:
        """Look until everything that is there counts as whole."""
        self.look()
        self.look(after=3)
        return self.look(after=101)

    def take(self) -> Batch | None:
        """Take a batch without waiting for what arrives."""
        return take_batch(self.ledger, self.inbox, timing=TIMING, pool=self.pool)

    def series(self, name: str, uid: str, skip: tuple[int, ...] = (), num_slices: int = 5) -> Path:
        """A series of small slices in a folder of the inbox."""
        write_series(self.inbox / name, shape=(num_slices, 6, 6), uid=uid, skip=skip)
        return self.inbox / name


def contents(batch: Batch) -> list[bytes]:
    """Contents of the files of a batch, tables left out."""
    return sorted(path.read_bytes() for path in batch.folder.rglob("*") if path.is_file() and path.suffix != ".csv")


def copies(*folders: Path) -> list[bytes]:
    """Contents of the files of folders."""
    return sorted(path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def arrivals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arrivals]:
    monkeypatch.setattr(_Walk, "_first_seen", lambda walk, file: walk._clock())
    with Pool(Local(1)) as pool:
        made = Arrivals(tmp_path, pool)
        yield made
        made.ledger.close()
