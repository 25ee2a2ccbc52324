"""The SQLite file of an inbox's ledger: its tables, its format, and what is said when it cannot be used."""

import json
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storage.errors import DamagedArtifactError, LockedError, UnwritableError, VersionError
from storage.files import naming_path

FORMAT = 1
NAME = "ledger.sqlite"
_APPLICATION = 0x70724449  # "prDI": no other program's file is taken for a ledger
_TIMEOUT_S = 60.0  # watcher, listener, flow and commands write in turn
_TABLES = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
    folder BLOB NOT NULL, name BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, changed REAL NOT NULL,
    read INTEGER NOT NULL, sha256 TEXT NOT NULL, item TEXT NOT NULL, format TEXT NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (folder, name)
) WITHOUT ROWID;
CREATE INDEX files_by_item ON files (item);
CREATE INDEX files_unread ON files (folder, name) WHERE read = 0;
CREATE INDEX files_by_reason ON files (reason) WHERE reason != '';
CREATE TABLE counts (
    folder BLOB NOT NULL, name BLOB NOT NULL, item TEXT NOT NULL, images INTEGER NOT NULL,
    PRIMARY KEY (item, folder, name)
) WITHOUT ROWID;
CREATE INDEX counts_by_file ON counts (folder, name);
CREATE TABLE ended (folder BLOB NOT NULL, name BLOB NOT NULL, PRIMARY KEY (folder, name)) WITHOUT ROWID;
CREATE TABLE items (
    item TEXT PRIMARY KEY, state TEXT NOT NULL, format TEXT NOT NULL, images INTEGER NOT NULL, expected INTEGER,
    changed REAL NOT NULL, how TEXT NOT NULL, batch INTEGER, dirty INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX items_by_state ON items (state);
CREATE INDEX items_dirty ON items (item) WHERE dirty = 1;
CREATE TABLE contents (sha256 TEXT PRIMARY KEY, batch INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX contents_by_batch ON contents (batch);
CREATE TABLE batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, state TEXT NOT NULL, created TEXT NOT NULL, reason TEXT NOT NULL,
    volumes TEXT NOT NULL, released INTEGER NOT NULL, series INTEGER NOT NULL
);
CREATE TABLE batch_files (
    batch INTEGER NOT NULL, item TEXT NOT NULL, folder BLOB NOT NULL, name BLOB NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (batch, folder, name)
) WITHOUT ROWID;
"""
_REMEDY = (
    "Restore it from a backup; or, with the services stopped, move the folder away: every scan that is still in the inbox is "
    "then taken once more, which changes no snapshot."
)


class LedgerDatabase:
    """One connection to the ledger of an inbox.

    Args:
        folder: of the ledger; made, for its owner alone, when missing.
    Raises:
        DamagedArtifactError: the file is damaged or no ledger.
        VersionError: it was written by a newer prdit.
        UnwritableError, as every method: the disk is full, or access is denied.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / NAME
        with naming_path(self.path):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # it names files
        with self._clear():
            # A flow's retries may come from another thread than the one that opened it; they take turns.
            self._connection = sqlite3.connect(
                self.path, timeout=_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        run = self._connection.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")  # what a batch has been given must outlast a power failure
        run("PRAGMA temp_store = FILE")
        run("PRAGMA secure_delete = ON")  # rows of a patient who is forgotten must not stay in free pages
        with self.changing():
            (application,), (version,) = (
                run(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
            )
            if (application, version) == (0, 0) and not run("SELECT 1 FROM sqlite_master").fetchone():
                for statement in _TABLES.split(";"):
                    run(statement)
                run("INSERT INTO settings VALUES ('secret', ?)", (secrets.token_hex(32),))
                run(f"PRAGMA application_id = {_APPLICATION}")
                run(f"PRAGMA user_version = {FORMAT}")
                return
        if application != _APPLICATION:
            raise DamagedArtifactError(f"{self.path} is not a ledger of prdit. {_REMEDY}")
        if version != FORMAT:
            raise VersionError(
                f"{self.path} has format {version}; this prdit reads format {FORMAT}. Use the prdit that wrote it, or a newer one."
            )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @property
    def secret(self) -> bytes:
        """The secret of opaque names, made with the ledger."""
        return bytes.fromhex(self.rows("SELECT value FROM settings WHERE name = 'secret'")[0][0])

    @contextmanager
    def changing(self) -> Iterator[None]:
        """One change: all statements of the block or none of them; other writers wait."""
        with self._clear():
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        """Every row of a query."""
        with self._clear():
            return self._connection.execute(query, values).fetchall()

    def run(self, statement: str, values: Sequence[object] = ()) -> int:
        """Run one statement; returns the number of its new row."""
        with self._clear():
            return self._connection.execute(statement, values).lastrowid or 0

    def many(self, statement: str, values: Iterable[Sequence[object]]) -> None:
        """Run one statement for each of many values, in one change."""
        with self.changing():
            self._connection.executemany(statement, values)

    def shred(self) -> None:
        """Leave nothing of deleted rows in the file and in what SQLite keeps beside it."""
        self.run("VACUUM")
        self.run("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _clear(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise DamagedArtifactError(f"{self.path} is damaged ({error}). {_REMEDY}") from error
            if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                raise UnwritableError(
                    f"{self.path} cannot be written ({error}). Free space, or change the permissions of its folder."
                ) from error
            if code == sqlite3.SQLITE_BUSY:
                raise LockedError(
                    f"Another process has held {self.path} for {_TIMEOUT_S:.0f} s. Wait for it, or end it."
                ) from error
            raise


def packed(values: Iterable[str]) -> str:
    """A list of texts as one value."""
    return json.dumps(list(values))


def unpacked(text: str) -> tuple[str, ...]:
    """The list of texts that `packed` made one value of."""
    return tuple(json.loads(text))
