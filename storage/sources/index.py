"""What is known of the files of a source, in SQLite: memory does not grow with their number.

The cache beside the store remembers every file by a hash of its path, with its size, time of last change, SHA-256 and header
facts, so that an unchanged file is not opened again. It holds no path and no patient id. The paths of a run are in a temporary
table, which is gone when the run ends.
"""

import hashlib
import json
import logging
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Self

from storage.errors import UnwritableError
from storage.files import canonical_json, sha256_json
from storage.patient_key import patient_key
from storage.privacy import PATH, opaque_id
from storage.sources.archives import READ_KINDS
from storage.sources.attributes import is_uid
from storage.sources.files import FoundFile, FoundOther
from storage.sources.formats import FACTS_VERSION
from storage.sources.manifests import is_manifest
from storage.sources.source import FileFacts, as_utf8
from storage.sources.tables import TABLES
from storage.verdicts import sentence

_FLUSH_ROWS = 2000
_TIMEOUT_S = 60.0  # another ingest into the same store may be writing
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_SHORT_READ}
_FACTS = ("sha256", "format", "scan", "reason", "detail", "patient")
_COLUMNS = ", ".join(f"{name} TEXT NOT NULL" for name in _FACTS)
# `crc` is of the whole row: SQLite notices a damaged page only where it breaks the structure.
_MAIN = (
    "CREATE TABLE owner (key_id TEXT NOT NULL)",
    "CREATE TABLE files (key BLOB PRIMARY KEY, root BLOB, size INTEGER, mtime_ns INTEGER, facts BLOB, crc INTEGER) WITHOUT ROWID",
    "CREATE INDEX by_root ON files (root)",
)
_RUN = f"""
CREATE TEMP TABLE listed (name TEXT PRIMARY KEY, path BLOB NOT NULL, size INTEGER, mtime_ns INTEGER, {_COLUMNS}) WITHOUT ROWID;
CREATE TEMP TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TEMP TABLE others (name TEXT PRIMARY KEY, reason TEXT NOT NULL, detail TEXT NOT NULL) WITHOUT ROWID;
"""
logger = logging.getLogger("prdit.sources")


@dataclass(frozen=True)
class ReadFile:
    """What reading one file gave: `storage.sources.source.FileFacts`, with a patient key in place of the patient's id.

    Attributes:
        sha256: of its content, "" where it cannot be read.
        patient: patient key, "" where there is no id.
    """

    sha256: str
    format: str = ""
    scan: str = ""
    reason: str = ""
    detail: str = ""
    patient: str = ""

    @classmethod
    def of(cls, sha256: str, facts: FileFacts, key: bytes) -> Self:
        """What was read of a file, its patient's id replaced by a patient key made with the secret `key`.

        So is the id of its scan unless it is a UID: it could be a name, or a hash of one that can be guessed.
        A header that could not be read for lack of memory claims more than it has.
        """
        patient = patient_key(key, facts.patient_id, "")[0] if facts.patient_id else ""
        if facts.detail.endswith("MemoryError"):
            return cls(sha256, reason="too_costly", detail="its header needs more memory than its size allows")
        scan = facts.scan if not facts.scan or is_uid(facts.scan) else opaque_id(key, facts.format, facts.scan)
        return cls(sha256, facts.format, scan, facts.reason, facts.detail, patient)

    @property
    def row(self) -> tuple[str, ...]:
        """Its values in the order of the columns."""
        return (self.sha256, self.format, as_utf8(self.scan), self.reason, as_utf8(self.detail), self.patient)


@dataclass(frozen=True)
class ScanFiles:
    """The usable files of one scan: relative paths, sorted; hash of their contents; patient key or ""; bytes."""

    scan_id: str
    format: str
    files: tuple[str, ...]
    digest: str
    patient: str
    size: int


@dataclass(frozen=True)
class Excluded:
    """One exclusion: a scan (by id) or a file (by path, perhaps of a scan), with reason code and sentence."""

    reason: str
    message: str
    scan_id: str | None = None
    path: str | None = None
    num_files: int | None = None


class FileIndex:
    """The files of one source in one run, and the cache of what is known of files.

    Args:
        cache: path of the cache; one that is damaged, or of another key, is made again.
        source: folder of the source.
        key_id: which secret the patient keys were made with.

    Raises: UnwritableError: the disk is full.
    """

    def __init__(self, cache: Path, source: Path, key_id: str) -> None:
        self._cache = cache
        self._root = os.fsencode(source.resolve())
        self._fresh: list[tuple[object, ...]] = []
        self._not_excluded = set(TABLES)
        with self._refusals():
            self._connection = _open_cache(cache, key_id)
            self._connection.executescript(_RUN)

    def close(self) -> None:
        """Forget the run's paths."""
        self._connection.close()

    # ---- filling -------------------------------------------------------------------------------------------------

    def list_known(self, found: Sequence[FoundFile]) -> list[FoundFile]:
        """List the files that have not changed since they were read; returns the others, which must be read."""
        keys = {self._key(file.path): file for file in found}
        marks = ", ".join("?" * len(keys))
        query = f"SELECT key, size, mtime_ns, facts, crc FROM main.files WHERE key IN ({marks})"
        known = []
        for key, size, mtime_ns, facts, crc in self._connection.execute(query, list(keys)).fetchall():
            file = keys[key]
            if (size, mtime_ns) == (file.size, file.mtime_ns) and crc == _checksum(key, file, facts):
                known.append((file, json.loads(facts)))
                del keys[key]
        self._list(known)
        return list(keys.values())

    def add(self, read: Iterable[tuple[FoundFile, ReadFile]]) -> None:
        """List files that were read, and remember those that could be."""
        read = list(read)
        self._list((file, one.row) for file, one in read)
        self._fresh += [self._cached(file, one) for file, one in read if one.sha256]
        if len(self._fresh) >= _FLUSH_ROWS:
            self._flush()

    def archives(self) -> list[tuple[FoundFile, str]]:
        """The listed files that are archives which can be read, with their kind; each is then replaced by what is in it."""
        marks = ", ".join("?" * len(READ_KINDS))
        columns = "path, size, mtime_ns, detail"
        query = f"SELECT {columns} FROM temp.listed WHERE reason = 'archive' AND detail IN ({marks}) ORDER BY name"
        rows = self._connection.execute(query, READ_KINDS).fetchall()
        return [(FoundFile(os.fsdecode(path), size, mtime_ns), kind) for path, size, mtime_ns, kind in rows]

    def manifests(self) -> list[str]:
        """Relative paths of the listed files that say what the source should hold; they are not excluded from then on."""
        query = (
            "SELECT name, path, reason FROM temp.listed WHERE reason IN ('unknown_format', 'dicomdir') ORDER BY name"
        )
        found = [(name, os.fsdecode(path), reason) for name, path, reason in self._connection.execute(query)]
        found = [one for one in found if is_manifest(one[1], one[2])]
        self._not_excluded |= {name for name, _, reason in found if reason != "dicomdir"}
        return [path for _, path, _ in found]

    def drop(self, archive: FoundFile) -> None:
        """Take an archive off the list, when what is in it is listed."""
        self._write("DELETE FROM temp.listed WHERE name = ?", [(as_utf8(archive.path),)])

    def add_other(self, other: FoundOther) -> None:
        """List what is no file."""
        row = (as_utf8(other.path), other.reason, other.detail)
        self._write("INSERT OR REPLACE INTO temp.others VALUES (?, ?, ?)", [row])

    def finish(self) -> None:
        """To be called when everything is listed: what is known of files that are gone is forgotten."""
        self._flush()
        gone = "DELETE FROM main.files WHERE root = ? AND key NOT IN (SELECT key FROM temp.seen)"
        self._write(gone, [(self._key(""),)], begin="BEGIN IMMEDIATE")
        with self._refusals():
            self._connection.execute("CREATE INDEX temp.by_scan ON listed (scan, name)")

    def _cached(self, file: FoundFile, one: ReadFile) -> tuple[object, ...]:
        key, facts = self._key(file.path), canonical_json(one.row).encode()
        return key, self._key(""), file.size, file.mtime_ns, facts, _checksum(key, file, facts)

    def _key(self, path: str) -> bytes:
        return hashlib.sha256(self._root + b"\0" + os.fsencode(path)).digest()[:16]

    def _list(self, read: Iterable[tuple[FoundFile, Sequence[str]]]) -> None:
        marks = ", ".join("?" * (4 + len(_FACTS)))
        read = list(read)
        rows = [(as_utf8(f.path), os.fsencode(f.path), f.size, f.mtime_ns, *facts) for f, facts in read]
        self._write(f"INSERT OR REPLACE INTO temp.listed VALUES ({marks})", rows)
        self._write("INSERT OR IGNORE INTO temp.seen VALUES (?)", [(self._key(f.path),) for f, _ in read])

    def _flush(self) -> None:
        self._write("INSERT OR REPLACE INTO main.files VALUES (?, ?, ?, ?, ?, ?)", self._fresh, begin="BEGIN IMMEDIATE")
        self._fresh = []

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]], begin: str = "BEGIN") -> None:
        if not rows:
            return
        with self._refusals():
            self._connection.execute(begin)
            with self._connection:
                self._connection.executemany(statement, rows)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise UnwritableError(
                f"{self._cache} (or SQLite's folder for temporary files, see SQLITE_TMPDIR) cannot be written: no space is left. "
                "Free some, then run again."
            ) from error

    # ---- reading -------------------------------------------------------------------------------------------------

    def count(self) -> int:
        """How many files are listed, tables among them."""
        return int(self._connection.execute("SELECT COUNT(*) FROM temp.listed").fetchone()[0])

    def count_others(self) -> int:
        """How much is listed that is no file."""
        return int(self._connection.execute("SELECT COUNT(*) FROM temp.others").fetchone()[0])

    def count_scans(self) -> int:
        """How many scans have a usable file."""
        query = "SELECT COUNT(DISTINCT scan) FROM temp.listed WHERE scan != '' AND reason = ''"
        return int(self._connection.execute(query).fetchone()[0])

    def digest(self) -> str:
        """`sha256:<hex>` of the source: relative paths and contents, independent of machine and modification times."""
        digest = hashlib.sha256(b'{"files":[')
        _update(digest, self._connection.execute("SELECT name, sha256 FROM temp.listed ORDER BY name"))
        digest.update(b'],"others":[')
        _update(digest, self._connection.execute("SELECT name, reason, detail FROM temp.others ORDER BY name"))
        digest.update(b"]}")
        return "sha256:" + digest.hexdigest()

    def scans(self) -> Iterator[ScanFiles]:
        """The scans by id."""
        rows = self._connection.execute(
            "SELECT scan, path, sha256, format, patient, size FROM temp.listed WHERE scan != '' AND reason = '' ORDER BY scan, name"
        )
        for scan_id, group in groupby(rows, key=lambda row: row[0]):
            members = list(group)
            files = tuple(os.fsdecode(row[1]) for row in members)
            digest = sha256_json(sorted(row[2] for row in members))
            patient, size = max(row[4] for row in members), sum(row[5] for row in members)
            yield ScanFiles(scan_id, members[0][3], files, digest, patient, size)

    def excluded(self) -> Iterator[Excluded]:
        """Everything that is no part of a scan: scans without a usable file as one, other files one by one."""
        others = self._connection.execute("SELECT name, reason, detail FROM temp.others ORDER BY name")
        for name, reason, detail in others:
            yield Excluded(reason, sentence(reason, PATH, detail), path=name)
        files = self._connection.execute(
            "SELECT name, reason, detail FROM temp.listed WHERE scan = '' AND reason != '' ORDER BY name"
        )
        for name, reason, detail in files:
            if name not in self._not_excluded:
                yield Excluded(reason, sentence(reason, PATH, detail), path=name)
        # Where other files of a scan are usable, a localizer or a truncated file is excluded alone.
        members = self._connection.execute(
            "SELECT f.scan, f.name, f.reason, f.detail, "
            "EXISTS (SELECT 1 FROM temp.listed u WHERE u.scan = f.scan AND u.reason = '') "
            "FROM temp.listed f WHERE f.scan != '' AND f.reason != '' ORDER BY f.scan, f.name"
        )
        for (scan_id, usable), group in groupby(members, key=lambda row: (row[0], row[4])):
            if usable:
                for _, name, reason, detail, _ in group:
                    yield Excluded(reason, sentence(reason, PATH, detail), scan_id=scan_id, path=name)
            else:
                _, _, reason, detail, _ = next(group)
                text = sentence(reason, f"Scan {scan_id}", detail)
                yield Excluded(reason, text, scan_id=scan_id, num_files=1 + sum(1 for _ in group))


def _checksum(key: bytes, file: FoundFile, facts: bytes) -> int:
    return zlib.crc32(b"%b %d %d %b" % (key, file.size, file.mtime_ns, facts))


def _update(digest: "hashlib._Hash", rows: Iterable[tuple[str, ...]]) -> None:
    for number, row in enumerate(rows):
        digest.update(("," if number else "").encode() + canonical_json(list(row)).encode())


def _open_cache(cache: Path, key_id: str) -> sqlite3.Connection:
    cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _prepared(sqlite3.connect(cache, timeout=_TIMEOUT_S, isolation_level=None), key_id)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise
        if error.sqlite_errorcode in _DAMAGED:
            logger.warning("%s is damaged (%s) and is made again: every file of the source is read once", cache, error)
            for path in (cache, cache.with_name(cache.name + "-journal")):
                path.unlink(missing_ok=True)
            return _prepared(sqlite3.connect(cache, timeout=_TIMEOUT_S, isolation_level=None), key_id)
        logger.warning("%s cannot be used (%s): the next run will read every file of the source again", cache, error)
        return _prepared(sqlite3.connect("", isolation_level=None), key_id)  # a private file that SQLite removes


def _prepared(connection: sqlite3.Connection, key_id: str) -> sqlite3.Connection:
    """The connection with its tables, emptied where facts are of another version or patient keys of another secret."""
    try:
        connection.execute("PRAGMA temp_store = FILE")
        problems = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problems != "ok":
            error = sqlite3.DatabaseError(str(problems).splitlines()[0])
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
        connection.execute("BEGIN IMMEDIATE")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        owner = connection.execute("SELECT key_id FROM owner").fetchone() if "owner" in tables else None
        if version != FACTS_VERSION or owner != (key_id,):
            for table in tables:
                connection.execute(f'DROP TABLE "{table}"')
            for statement in _MAIN:
                connection.execute(statement)
            connection.execute("INSERT INTO owner VALUES (?)", (key_id,))
            connection.execute(f"PRAGMA user_version = {FACTS_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection
