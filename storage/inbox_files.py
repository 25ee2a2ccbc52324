"""What was seen in an inbox: its files, and the items that they make: series, and files that are a scan of their own."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from storage.inbox_database import LedgerDatabase
from storage.verdicts import REASONS

ItemState = Literal["arriving", "complete", "taken", "ignored"]
_READ_AT_ONCE = 2000
_FORGOTTEN = "forgotten"
_FILE = "folder, name, size, mtime_ns, changed, read, sha256, item, format, reason"
_SKIPPED = tuple(sorted(code for code, reason in REASONS.items() if reason.verdict == "skipped" and code != "archive"))


@dataclass(frozen=True)
class RecordedFile:
    """A file of a batch: where it lay in the inbox, and what it was then.

    Attributes:
        folder, name: of its path relative to the inbox, as the system spells them.
        size: bytes.
        mtime_ns: time of its last change.
        sha256: of its content.
    """

    folder: bytes
    name: bytes
    size: int
    mtime_ns: int
    sha256: str

    @property
    def path(self) -> str:
        """Its relative path."""
        return joined(self.folder, self.name)


@dataclass(frozen=True)
class SeenFile:
    """A file of the inbox as it is recorded; `changed` is Unix time, and `item` "" where it is part of none."""

    folder: bytes
    name: bytes
    size: int
    mtime_ns: int
    changed: float
    read: bool = False
    sha256: str = ""
    item: str = ""
    format: str = ""
    reason: str = ""

    @property
    def path(self) -> str:
        """Its relative path."""
        return joined(self.folder, self.name)


@dataclass(frozen=True)
class Item:
    """What is taken as a whole: a series, wherever its files lie, or a file that is a scan of its own (an archive, say).

    Attributes:
        item: SeriesInstanceUID, or an opaque id.
        state: `arriving`: not known to be complete; `complete`: no batch has it yet; `taken`; `ignored`: no CT.
        format: of its files; "" for an archive.
        images: files with different content.
        expected: how many a list in the inbox says it has; None where none does.
        changed: Unix time of the last change that was seen.
        how: what it is complete by: `manifest`, `association` or `quiet`; `forgotten` of one that goes with its files.
        batch: that took it last.
    """

    item: str
    state: ItemState
    format: str
    images: int
    expected: int | None
    changed: float
    how: str
    batch: int | None


class InboxFiles:
    """Files and items of an inbox in its ledger."""

    def __init__(self, database: LedgerDatabase) -> None:
        self._database = database

    # ---- files ---------------------------------------------------------------------------------------------------

    def in_folder(self, folder: bytes) -> dict[bytes, tuple[int, int]]:
        """Sizes and times of last change of the recorded files of a folder, by name."""
        rows = self._database.rows("SELECT name, size, mtime_ns FROM files WHERE folder = ?", (folder,))
        return {name: (size, mtime_ns) for name, size, mtime_ns in rows}

    def folders(self) -> list[bytes]:
        """The folders that have recorded files."""
        return [row[0] for row in self._database.rows("SELECT DISTINCT folder FROM files")]

    def record(self, files: Sequence[SeenFile]) -> None:
        """Record files as they are now. The items that they were part of, and those that they are part of, are looked at again."""
        with self._database.changing():
            self._mark_items(files)
            self._database.many(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (f.folder, f.name, f.size, f.mtime_ns, f.changed, f.read, f.sha256, f.item, f.format, f.reason)
                    for f in files
                ],
            )
            self._mark_items(files)

    def forget(self, folder: bytes, names: Iterable[bytes]) -> None:
        """Forget files that are gone."""
        names = list(names)
        with self._database.changing():
            self._mark_items([SeenFile(folder, name, 0, 0, 0.0) for name in names])
            self._database.many(
                "UPDATE items SET dirty = 1 WHERE item IN (SELECT item FROM counts WHERE folder = ? AND name = ?)",
                [(folder, name) for name in names],
            )
            for table in ("files", "counts", "ended"):
                self._database.many(
                    f"DELETE FROM {table} WHERE folder = ? AND name = ?", [(folder, name) for name in names]
                )

    def forget_folder(self, folder: bytes) -> None:
        """Forget the files of a folder that is gone."""
        self.forget(folder, list(self.in_folder(folder)))

    def forget_items(self, items: Iterable[str]) -> int:
        """Delete what is recorded of items whose files are gone, for good; those that still have files go when their files go.

        An open batch keeps its items: the next look at it takes them out.

        Args:
            items: besides those that were to be forgotten before.
        Returns: how many still have files.
        """
        with self._database.changing():
            self._database.many(
                "UPDATE items SET how = ? WHERE item = ? AND state != 'complete'", [(_FORGOTTEN, one) for one in items]
            )
            wanted = self.forgotten_items()
            with_files = [one for one in wanted if self.of_item(one)]
            for item in wanted - set(with_files):
                self._delete_item(item)
        self._database.shred()
        return len(with_files)

    def forgotten_items(self) -> set[str]:
        """Items that go with their files."""
        return {row[0] for row in self._database.rows("SELECT item FROM items WHERE how = ?", (_FORGOTTEN,))}

    def _delete_item(self, item: str) -> None:
        is_open = (
            "SELECT 1 FROM batch_files f JOIN batches b ON b.number = f.batch WHERE b.state = 'open' AND f.item = ?"
        )
        if self._database.rows(is_open, (item,)):
            return
        for table in ("items", "counts", "batch_files"):
            self._database.run(f"DELETE FROM {table} WHERE item = ?", (item,))

    def _mark_items(self, files: Iterable[SeenFile]) -> None:
        self._database.many(
            "INSERT INTO items SELECT item, 'arriving', '', 0, NULL, 0, '', NULL, 1 FROM files WHERE folder = ? AND name = ? "
            "AND item != '' ON CONFLICT (item) DO UPDATE SET dirty = 1",
            [(f.folder, f.name) for f in files],
        )

    def paths_of(self, items: Iterable[str]) -> list[str]:
        """Relative paths of the files of some items."""
        query = "SELECT folder, name FROM files WHERE item = ?"
        return [joined(*row) for item in sorted(items) for row in self._database.rows(query, (item,))]

    def unread(self, settled: float) -> list[SeenFile]:
        """Files that have not been read and did not change since a time; a bounded number."""
        query = f"SELECT {_FILE} FROM files WHERE read = 0 AND changed <= ? ORDER BY folder, name LIMIT {_READ_AT_ONCE}"
        return [SeenFile(*row) for row in self._database.rows(query, (settled,))]

    def num_unread(self) -> int:
        """How many files have not been read."""
        return int(self._database.rows("SELECT COUNT(*) FROM files WHERE read = 0")[0][0])

    def read_again(self, folder: bytes, stem: bytes) -> None:
        """Have the files of a folder read once more that were no scan and whose names begin with a stem."""
        self._database.run(
            "UPDATE files SET read = 0 WHERE folder = ? AND item = '' AND reason = 'unknown_format' AND substr(name, 1, ?) = ?",
            (folder, len(stem), stem),
        )

    def try_again_unreadable(self) -> None:
        """Have the files read once more that could not be opened: permissions may have changed."""
        self._database.run("UPDATE files SET read = 0 WHERE reason = 'unreadable_file' AND sha256 = ''")

    def reasons(self) -> dict[str, int]:
        """How many files have which reason not to be part of a scan."""
        return dict(self._database.rows("SELECT reason, COUNT(*) FROM files WHERE reason != '' GROUP BY reason"))

    # ---- what is known of completeness ---------------------------------------------------------------------------

    def set_counts(self, folder: bytes, name: bytes, counts: dict[str, int]) -> None:
        """Record how many images a list in the inbox says that series have."""
        with self._database.changing():
            old = self._database.rows("SELECT item FROM counts WHERE folder = ? AND name = ?", (folder, name))
            self._database.run("DELETE FROM counts WHERE folder = ? AND name = ?", (folder, name))
            self._database.many(
                "INSERT INTO counts VALUES (?, ?, ?, ?)",
                [(folder, name, uid, number) for uid, number in counts.items()],
            )
            touched = {row[0] for row in old} | counts.keys()
            self._database.many("UPDATE items SET dirty = 1 WHERE item = ?", [(uid,) for uid in touched])

    def lists_of(self, items: Iterable[str]) -> list[str]:
        """Relative paths of the lists that name one of these series."""
        found: set[tuple[bytes, bytes]] = set()
        for item in items:
            found |= {
                tuple(row) for row in self._database.rows("SELECT folder, name FROM counts WHERE item = ?", (item,))
            }
        return [joined(*one) for one in sorted(found)]

    def end_association(self, paths: Iterable[str]) -> None:
        """Record files that the listener received in an association which the sender ended properly."""
        self._database.many("INSERT OR IGNORE INTO ended VALUES (?, ?)", [split(path) for path in paths])

    def association_ended(self, item: str) -> bool:
        """Whether all files of an item came in associations that the sender ended properly."""
        query = (
            "SELECT COUNT(*) > 0 AND COUNT(*) = COUNT(e.name) FROM files f LEFT JOIN ended e USING (folder, name) "
            "WHERE f.item = ?"
        )
        return bool(self._database.rows(query, (item,))[0][0])

    def is_touched(self, item: str, active: Iterable[bytes]) -> bool:
        """Whether a folder with files of an item has files that are not read yet, or is one of `active`."""
        query = "SELECT EXISTS (SELECT 1 FROM files u WHERE u.read = 0 AND u.folder IN (SELECT folder FROM files WHERE item = ?))"
        if self._database.rows(query, (item,))[0][0]:
            return True
        mine = {row[0] for row in self._database.rows("SELECT DISTINCT folder FROM files WHERE item = ?", (item,))}
        return not mine.isdisjoint(active)

    # ---- items ---------------------------------------------------------------------------------------------------

    def refresh(self, now: float) -> int:
        """Bring the items up to date whose files or counts changed; returns how many.

        One whose contents were all taken is taken; another that has a file which could be part of a volume is arriving.
        """
        with self._database.changing():
            dirty = [row[0] for row in self._database.rows("SELECT item FROM items WHERE dirty = 1")]
            for item in dirty:
                self._refresh(item, now)
        return len(dirty)

    def _refresh(self, item: str, now: float) -> None:
        marks = ", ".join("?" * len(_SKIPPED))
        ((images, fresh, usable, changed, kind),) = self._database.rows(
            "SELECT COUNT(DISTINCT f.sha256), COUNT(*) FILTER (WHERE c.sha256 IS NULL), "
            f"COUNT(*) FILTER (WHERE reason NOT IN ({marks})), MAX(f.changed), MAX(f.format) "
            "FROM files f LEFT JOIN contents c USING (sha256) WHERE f.item = ?",
            (*_SKIPPED, item),
        )
        if images == 0:  # its files are gone, or belong to another item now
            self._database.run("UPDATE items SET dirty = 0, images = 0, state = 'taken' WHERE item = ?", (item,))
            self._database.run("DELETE FROM items WHERE item = ? AND batch IS NULL", (item,))
            if self._database.rows("SELECT 1 FROM items WHERE item = ? AND how = ?", (item, _FORGOTTEN)):
                self._delete_item(item)
            return
        numbers = [row[0] for row in self._database.rows("SELECT DISTINCT images FROM counts WHERE item = ?", (item,))]
        expected = numbers[0] if len(numbers) == 1 else None  # lists that disagree say nothing
        state = "ignored" if not usable else "arriving" if fresh else "taken"
        self._database.run(
            "UPDATE items SET dirty = 0, how = CASE how WHEN ? THEN how ELSE '' END, images = ?, expected = ?, "
            "format = ?, state = ?, changed = ? WHERE item = ?",
            (_FORGOTTEN, images, expected, kind, state, min(changed, now), item),
        )

    def complete(self, item: str, how: str) -> None:
        """Record that an item is complete, and by what."""
        self._database.run("UPDATE items SET state = 'complete', how = ? WHERE item = ?", (how, item))

    def items(self, state: ItemState | None = None, *, limit: int = -1) -> list[Item]:
        """The items by time of their last change; of one state, or all."""
        columns = "item, state, format, images, expected, changed, how, batch"
        query = f"SELECT {columns} FROM items WHERE ? IS NULL OR state = ? ORDER BY changed, item LIMIT ?"
        return [Item(*row) for row in self._database.rows(query, (state, state, limit))]

    def of_item(self, item: str) -> list[RecordedFile]:
        """The files of an item, in the order of their paths."""
        query = "SELECT folder, name, size, mtime_ns, sha256 FROM files WHERE item = ? ORDER BY folder, name"
        return [RecordedFile(*row) for row in self._database.rows(query, (item,))]


def split(path: str) -> tuple[bytes, bytes]:
    """Folder and name of a relative path."""
    folder, _, name = path.rpartition("/")
    return os.fsencode(folder), os.fsencode(name)


def joined(folder: bytes, name: bytes) -> str:
    """The relative path of a folder and a name."""
    return os.fsdecode(folder + b"/" + name if folder else name)
