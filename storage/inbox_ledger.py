"""The ledger of an inbox: every series and file that was ever seen there, and the batches in which they were ingested.

A SQLite file outside the inbox, which is only read. Events of the file system only wake the watcher: what is true is what a look at
the inbox finds, held against this ledger. Every change is one transaction, so a killed process leaves the state before or after it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from storage.errors import ConfigError
from storage.inbox_database import LedgerDatabase, packed, unpacked
from storage.inbox_files import InboxFiles, Item, RecordedFile

BatchState = Literal["open", "held", "listed", "rejected"]
BATCHES, PICTURES = "batches", "pictures"  # folders beside the ledger's file; pictures are of held batches, by number
_COLUMNS = "number, state, created, reason, volumes, released, series"


@dataclass(frozen=True)
class Batch:
    """Complete series that are ingested together.

    Attributes:
        number: of the batch; later ones have higher numbers.
        state: `open`: taken, not ingested yet; `held`: the drift gate holds it for a person; `listed`: ingested; `rejected`: a
            person decided that it is not to be listed.
        folder: links to its files, what ingest reads; removed some time after the batch is listed or rejected.
        num_series: in it.
        created: UTC time.
        reason: why it is held or rejected; empty otherwise.
        volumes: ids of the volumes that its ingest made, as far as known.
        released: whether a person released it: it is ingested without the drift gate.
    """

    number: int
    state: BatchState
    folder: Path
    num_series: int
    created: str
    reason: str = ""
    volumes: tuple[str, ...] = ()
    released: bool = False


class Ledger:
    """The ledger of one inbox.

    Args:
        folder: `<arrivals>`: holds `ledger.sqlite`, `batches/` and `pictures/`; made when missing.
    Attributes:
        files: what was seen in the inbox.
    Raises: StorageError: it is damaged, or of another format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.database = LedgerDatabase(self.folder)
        self.files = InboxFiles(self.database)

    def close(self) -> None:
        """Close its file; a ledger that is not used any more closes it, too."""
        self.database.close()

    # ---- batches -------------------------------------------------------------------------------------------------

    def batch_folder(self, number: int) -> Path:
        """The folder of a batch."""
        return self.folder / BATCHES / f"{number:06d}"

    def batches(self, state: BatchState | None = None) -> list[Batch]:
        """The batches, oldest first; of one state, or all."""
        return self._batches("? IS NULL OR state = ?", (state, state))

    def _batches(self, which: str, values: Sequence[object] = ()) -> list[Batch]:
        rows = self.database.rows(f"SELECT {_COLUMNS} FROM batches WHERE {which} ORDER BY number", values)
        return [
            Batch(number, now, self.batch_folder(number), series, created, reason, unpacked(volumes), bool(released))
            for number, now, created, reason, volumes, released, series in rows
        ]

    def batch(self, number: int) -> Batch:
        """One batch. Raises: ConfigError: there is no such batch."""
        found = self._batches("number = ?", (number,))
        if not found:
            raise ConfigError(f"There is no batch {number}. `prdit inbox` lists the batches.")
        return found[0]

    def set_batch(self, number: int, state: BatchState, *, reason: str = "", volumes: tuple[str, ...] = ()) -> Batch:
        """Record what became of a batch. Raises: ConfigError: there is no such batch."""
        with self.database.changing():
            known = self.batch(number)
            self.database.run(
                "UPDATE batches SET state = ?, reason = ?, volumes = ? WHERE number = ?",
                (state, reason, packed(volumes or known.volumes), number),
            )
        return self.batch(number)

    def release(self, number: int) -> Batch:
        """Let the next retraining ingest a held batch without the drift gate. Raises: ConfigError: it is unknown or not held."""
        with self.database.changing():
            self._check_held(number, "released")
            self.database.run("UPDATE batches SET state = 'open', released = 1 WHERE number = ?", (number,))
        return self.batch(number)

    def reject(self, number: int, reason: str = "") -> Batch:
        """Decide that a held batch is never listed. Raises: ConfigError: it is unknown or not held."""
        with self.database.changing():
            known = self._check_held(number, "rejected")
            text = reason or f"rejected by a person; it was held: {known.reason}"
            self.database.run("UPDATE batches SET state = 'rejected', reason = ? WHERE number = ?", (text, number))
        return self.batch(number)

    def _check_held(self, number: int, what: str) -> Batch:
        known = self.batch(number)
        if known.state != "held":
            raise ConfigError(
                f"Batch {number} is {known.state}, and only a held one can be {what}. Nothing was changed; `prdit inbox` lists the "
                "batches."
            )
        return known

    # ---- taking a batch ------------------------------------------------------------------------------------------

    def new_batch(self, max_series: int) -> Batch | None:
        """Record a batch of complete items, each with the files it has now; None where nothing is complete.

        Of files with the same content one is taken. An item whose content another one of the batch has is taken with it.
        """
        with self.database.changing():
            items = self.files.items("complete", limit=max_series)
            if not items:
                return None
            created = datetime.now(UTC).isoformat(timespec="seconds")
            number = self.database.run(
                "INSERT INTO batches (state, created, reason, volumes, released, series) "
                "VALUES ('open', ?, '', '[]', 0, 0)",
                (created,),
            )
            for one in items:
                self._take(number, one.item)
            self._count_series(number)
        return self.batch(number)

    def _take(self, number: int, item: str) -> None:
        fresh: dict[str, RecordedFile] = {}
        for file in self.files.of_item(item):
            fresh.setdefault(file.sha256, file)
        taken = {row[0] for row in self.database.rows("SELECT sha256 FROM contents WHERE batch = ?", (number,))}
        if not fresh.keys() <= taken:
            rows = [(number, item, f.folder, f.name, f.size, f.mtime_ns, f.sha256) for f in fresh.values()]
            self.database.many("INSERT INTO batch_files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            self.database.many("INSERT OR IGNORE INTO contents VALUES (?, ?)", [(sha, number) for sha in fresh])
        self.database.run("UPDATE items SET state = 'taken', batch = ?, how = '' WHERE item = ?", (number, item))
        self.database.run(
            "DELETE FROM ended WHERE EXISTS (SELECT 1 FROM files f WHERE f.item = ? AND (f.folder, f.name) = "
            "(ended.folder, ended.name))",
            (item,),
        )

    def _count_series(self, number: int) -> None:
        self.database.run(
            "UPDATE batches SET series = (SELECT COUNT(DISTINCT item) FROM batch_files WHERE batch = ?) WHERE number = ?",
            (number, number),
        )

    def files_of(self, number: int) -> dict[str, list[RecordedFile]]:
        """The files of a batch by item."""
        found: dict[str, list[RecordedFile]] = {}
        query = (
            "SELECT item, folder, name, size, mtime_ns, sha256 FROM batch_files WHERE batch = ? ORDER BY folder, name"
        )
        for item, *values in self.database.rows(query, (number,)):
            found.setdefault(item, []).append(RecordedFile(*values))
        return found

    def drop(self, number: int, items: Iterable[str]) -> bool:
        """Take items out of a batch again, whose files are not there any more as they were taken: the next look decides on them.

        Returns: whether anything is left in the batch; an empty one is removed.
        """
        with self.database.changing():
            for item in items:
                self.database.run("DELETE FROM batch_files WHERE batch = ? AND item = ?", (number, item))
                self.database.run(
                    "UPDATE items SET state = 'arriving', batch = NULL, dirty = 1 WHERE item = ?", (item,)
                )
            self.database.run(  # what another item of the batch has, too, stays taken
                "DELETE FROM contents WHERE batch = ? AND sha256 NOT IN (SELECT sha256 FROM batch_files WHERE batch = ?)",
                (number, number),
            )
            self.database.run(  # those taken for the content that a dropped one had: it may be theirs to bring now
                "UPDATE items SET dirty = 1 WHERE batch = ? AND item NOT IN (SELECT item FROM batch_files WHERE batch = ?)",
                (number, number),
            )
            self._count_series(number)
            left = bool(self.database.rows("SELECT 1 FROM batch_files WHERE batch = ? LIMIT 1", (number,)))
            if not left:
                self.database.run("DELETE FROM batches WHERE number = ?", (number,))
        return left

    def finished(self) -> list[Batch]:
        """Batches that are listed or rejected and whose files are still recorded."""
        return self._batches("state IN ('listed', 'rejected') AND number IN (SELECT batch FROM batch_files)")

    def forget_files_of(self, number: int) -> None:
        """Forget which files a finished batch had; their contents stay known."""
        self.database.run("DELETE FROM batch_files WHERE batch = ?", (number,))

    # ---- figures -------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many items have which state."""
        return dict(self.database.rows("SELECT state, COUNT(*) FROM items GROUP BY state ORDER BY state"))

    def batch_counts(self) -> dict[str, int]:
        """How many batches have which state."""
        return dict(self.database.rows("SELECT state, COUNT(*) FROM batches GROUP BY state ORDER BY state"))

    def waiting(self) -> tuple[int, int]:
        """(complete items that no batch has, open batches): what a retraining would find."""
        return self.counts().get("complete", 0), len(self.batches("open"))


__all__ = ["Batch", "BatchState", "Item", "Ledger", "RecordedFile"]
