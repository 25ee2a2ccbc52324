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
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from storage.errors import UnwritableError
from storage.files import canonical_json, naming_path, sha256_json
from storage.patient_key import alike_key, patient_key
from storage.privacy import PATH, opaque_id
from storage.sources.archives import READ_KINDS
from storage.sources.attributes import is_uid
from storage.sources.files import FoundFile, FoundOther
from storage.sources.formats import FACTS_VERSION
from storage.sources.manifests import is_manifest
from storage.sources.source import FileFacts, as_utf8
from storage.sources.tables import TABLES
from storage.verdicts import REASONS, sentence

_FLUSH_ROWS = 2000
_TIMEOUT_S = 60.0  # another ingest into the same store may be writing
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_SHORT_READ}
_REMEDIES = {
    sqlite3.SQLITE_FULL: "no space is left. Free some, then run again.",
    sqlite3.SQLITE_IOERR: "the system reports an error. It is larger than this process may write (`ulimit -f`), or over your "
    "quota, or its device or file server fails, which the system's log says. Raise the limit or choose another folder.",
    sqlite3.SQLITE_READONLY: "it is read-only. Change its permissions, or have its file system mounted writable.",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened. Change the permissions of its folder, then run again.",
}
_FACTS = ("sha256", "format", "scan", "reason", "detail", "patient", "study", "alike", "issuer")
# A scanner counts these with the slices of an acquisition (ImagesInAcquisition).
_CT_IMAGES = "('', 'localizer', 'derived_reformat')"
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
    """What reading one file gave: `storage.sources.source.FileFacts` without the patient's id and the study's.

    Attributes:
        sha256: of its content, "" where it cannot be read.
        patient: patient key, "" where there is no id.
        study: made of the study's id with the secret of the patient keys, "" where there is none.
        alike: `storage.patient_key.alike_key` of the patient's id.
        issuer: made of who gave that id as `study` is, "" where that is not known.
    """

    sha256: str
    format: str = ""
    scan: str = ""
    reason: str = ""
    detail: str = ""
    patient: str = ""
    study: str = ""
    alike: str = ""
    issuer: str = ""

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
        study = opaque_id(key, "study", facts.study) if facts.study else ""
        issuer = opaque_id(key, "issuer", facts.issuer) if facts.issuer else ""
        alike = alike_key(key, facts.patient_id)
        return cls(sha256, facts.format, scan, facts.reason, facts.detail, patient, study, alike, issuer)

    @property
    def row(self) -> tuple[str, ...]:
        """Its values in the order of the columns."""
        return (
            self.sha256,
            self.format,
            as_utf8(self.scan),
            self.reason,
            as_utf8(self.detail),
            self.patient,
            self.study,
            self.alike,
            self.issuer,
        )


@dataclass(frozen=True)
class ScanFiles:
    """The usable files of one scan: relative paths, sorted; hash of their contents; how many contents; bytes; what they share."""

    scan_id: str
    format: str
    files: tuple[str, ...]
    digest: str
    num_contents: int
    patient: str
    size: int
    study: str
    alike: str
    issuer: str


@dataclass(frozen=True)
class Excluded:
    """One exclusion, with reason and sentence: a scan (by id, and path of its first file) or a file (by path, perhaps of a scan).

    `num_files` is that of a scan, None of a file.
    """

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

    Raises: UnwritableError, as every method: the disk is full or fails, or files may not be so large.
    """

    def __init__(self, cache: Path, source: Path, key_id: str) -> None:
        self._cache = cache
        self._root = os.fsencode(str(source.resolve()))
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
        for key, size, mtime_ns, facts, crc in list(self._rows(query, list(keys))):
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
        rows = self._rows(query, READ_KINDS)
        return [(FoundFile(os.fsdecode(path), size, mtime_ns), kind) for path, size, mtime_ns, kind in rows]

    def manifests(self) -> list[str]:
        """Relative paths of the listed files that say what the source should hold; they are not excluded from then on."""
        query = (
            "SELECT name, path, reason FROM temp.listed WHERE reason IN ('unknown_format', 'dicomdir') ORDER BY name"
        )
        found = [(name, os.fsdecode(path), reason) for name, path, reason in self._rows(query)]
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
        return _file_key(self._root, path)

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
            remedy = _REMEDIES.get(_kind(error))
            if remedy is None:
                raise
            raise UnwritableError(
                f"{self._cache} (or SQLite's folder for temporary files, see SQLITE_TMPDIR) cannot be written: {remedy}"
            ) from error

    def _rows(self, query: str, values: Sequence[object] = ()) -> Generator[Any, None, None]:
        """The rows of a query, which may need temporary files for sorting."""
        with self._refusals():
            for row in self._connection.execute(query, values):  # noqa: UP028 - it would close the cursor, perhaps after close()
                yield row

    # ---- reading -------------------------------------------------------------------------------------------------

    def count(self) -> int:
        """How many files are listed, tables among them."""
        return int(next(self._rows("SELECT COUNT(*) FROM temp.listed"))[0])

    def count_others(self) -> int:
        """How much is listed that is no file."""
        return int(next(self._rows("SELECT COUNT(*) FROM temp.others"))[0])

    def count_scans(self) -> int:
        """How many scans have a usable file."""
        query = "SELECT COUNT(DISTINCT scan) FROM temp.listed WHERE scan != '' AND reason = ''"
        return int(next(self._rows(query))[0])

    def digest(self) -> str:
        """`sha256:<hex>` of the source: relative paths and contents, independent of machine and modification times."""
        digest = hashlib.sha256(b'{"files":[')
        _update(digest, self._rows("SELECT name, sha256 FROM temp.listed ORDER BY name"))
        digest.update(b'],"others":[')
        _update(digest, self._rows("SELECT name, reason, detail FROM temp.others ORDER BY name"))
        digest.update(b"]}")
        return "sha256:" + digest.hexdigest()

    def scans(self) -> Iterator[ScanFiles]:
        """The scans by id."""
        rows = self._rows(
            "SELECT scan, path, sha256, format, patient, size, study, alike, issuer FROM temp.listed "
            "WHERE scan != '' AND reason = '' ORDER BY scan, name"
        )
        for scan_id, group in groupby(rows, key=lambda row: row[0]):
            members = list(group)
            files = tuple(os.fsdecode(row[1]) for row in members)
            hashes = [row[2] for row in members]
            digest, num_contents = sha256_json(sorted(hashes)), len(set(hashes))
            patient, _, alike, issuer = max((row[4], row[0], row[7], row[8]) for row in members)
            size, study = sum(row[5] for row in members), members[0][6]
            yield ScanFiles(scan_id, members[0][3], files, digest, num_contents, patient, size, study, alike, issuer)

    def images_of_studies(self) -> Counter[str]:
        """CT images by study, scouts among them."""
        query = f"SELECT study, COUNT(*) FROM temp.listed WHERE study != '' AND reason IN {_CT_IMAGES} GROUP BY study"
        return Counter(dict(self._rows(query)))

    def no_slices(self) -> Counter[str]:
        """Files by scan that are images of other kinds: scouts, pages, reformats."""
        kinds = [code for code, reason in REASONS.items() if reason.verdict == "skipped"]
        marks = ", ".join("?" * len(kinds))
        query = f"SELECT scan, COUNT(*) FROM temp.listed WHERE scan != '' AND reason IN ({marks}) GROUP BY scan"
        return Counter(dict(self._rows(query, kinds)))

    def unreadable(self) -> tuple[Counter[str], Counter[str]]:
        """How many files cannot be read: of no scan that is known, by folder; of scans, by id. So are files in archives."""
        reasons = "reason IN ('unreadable_file', 'too_costly', 'too_slow', 'archive_member')"
        query = f"SELECT scan, name FROM temp.listed WHERE {reasons} UNION ALL SELECT '', name FROM temp.others WHERE {reasons}"
        rows = list(self._rows(query))
        folders = Counter(name.rpartition("/")[0] for scan, name in rows if not scan)
        return folders, Counter(scan for scan, _ in rows if scan)

    def excluded(self) -> Iterator[Excluded]:
        """Everything that is no part of a scan: scans without a usable file as one, other files one by one."""
        others = self._rows("SELECT name, reason, detail FROM temp.others ORDER BY name")
        for name, reason, detail in others:
            yield Excluded(reason, sentence(reason, PATH, detail), path=name)
        files = self._rows(
            "SELECT name, reason, detail FROM temp.listed WHERE scan = '' AND reason != '' ORDER BY name"
        )
        for name, reason, detail in files:
            if name not in self._not_excluded:
                yield Excluded(reason, sentence(reason, PATH, detail), path=name)
        # Where other files of a scan are usable, a localizer or a truncated file is excluded alone.
        members = self._rows(
            "SELECT f.scan, f.name, f.reason, f.detail, "
            "EXISTS (SELECT 1 FROM temp.listed u WHERE u.scan = f.scan AND u.reason = '') "
            "FROM temp.listed f WHERE f.scan != '' AND f.reason != '' ORDER BY f.scan, f.name"
        )
        for (scan_id, usable), group in groupby(members, key=lambda row: (row[0], row[4])):
            if usable:
                for _, name, reason, detail, _ in group:
                    yield Excluded(reason, sentence(reason, PATH, detail), scan_id=scan_id, path=name)
            else:
                _, name, reason, detail, _ = next(group)
                text = sentence(reason, f"Scan {scan_id}", detail)
                yield Excluded(reason, text, scan_id=scan_id, path=name, num_files=1 + sum(1 for _ in group))


def _kind(error: sqlite3.Error) -> int:
    """The primary result code of SQLite, without what it adds in the higher bits."""
    return error.sqlite_errorcode & 0xFF


def _file_key(root: bytes, path: str) -> bytes:
    return hashlib.sha256(root + b"\0" + os.fsencode(path)).digest()[:16]


def _checksum(key: bytes, file: FoundFile, facts: bytes) -> int:
    return zlib.crc32(b"%b %d %d %b" % (key, file.size, file.mtime_ns, facts))


def _update(digest: "hashlib._Hash", rows: Iterable[tuple[str, ...]]) -> None:
    for number, row in enumerate(rows):
        digest.update(("," if number else "").encode() + canonical_json(list(row)).encode())


def _open_cache(cache: Path, key_id: str) -> sqlite3.Connection:
    with naming_path(cache):
        cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _prepared(sqlite3.connect(cache, timeout=_TIMEOUT_S, isolation_level=None), key_id)
    except sqlite3.DatabaseError as error:
        if _kind(error) == sqlite3.SQLITE_FULL:
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


# ---- forgetting a patient -------------------------------------------------------------------------------------------------


def scans_of_patient(cache: Path, patient: str) -> set[str]:
    """Ids of the scans that files with a patient key have; nothing where the cache is missing, damaged or of another version."""
    if not cache.is_file():
        return set()
    try:
        return {facts["scan"] for _, facts in _cached_facts(cache) if facts["patient"] == patient} - {""}
    except (sqlite3.DatabaseError, ValueError) as error:
        logger.warning("%s cannot be read (%s)", cache, error)
        return set()


def forget_files(cache: Path, patient: str, scans: Collection[str]) -> int:
    """Forget what is known of the files of a patient; their bytes are overwritten. The next ingest reads such files again.

    A cache that cannot be read is removed.

    Args:
        cache: see `FileIndex`.
        patient: patient key.
        scans: ids of further scans.
    Returns: how many files.
    Raises: UnwritableError: the cache cannot be written.
    """
    if not cache.is_file():
        return 0
    with naming_path(cache):
        try:
            known = list(_cached_facts(cache))
        except (sqlite3.DatabaseError, ValueError) as error:
            logger.warning("%s cannot be read (%s) and is removed: every file is read once again", cache, error)
            cache.unlink()
            return 0
        keys = [(key,) for key, facts in known if facts["patient"] == patient or facts["scan"] in scans]
        if keys:
            with closing(sqlite3.connect(cache, timeout=_TIMEOUT_S, isolation_level=None)) as connection:
                connection.execute("PRAGMA secure_delete = ON")
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("DELETE FROM files WHERE key = ?", keys)
                connection.execute("COMMIT")
                connection.execute("VACUUM")
    return len(keys)


def _cached_facts(cache: Path, only: Mapping[bytes, FoundFile] | None = None) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Keys and facts of all files, or of some that have not changed.

    Raises: sqlite3.DatabaseError, ValueError: it is damaged, or of another version.
    """
    with closing(sqlite3.connect(cache, timeout=_TIMEOUT_S, isolation_level=None)) as connection:
        if (version := connection.execute("PRAGMA user_version").fetchone()[0]) != FACTS_VERSION:
            raise ValueError(f"version {version}")
        for key, size, mtime_ns, facts in connection.execute("SELECT key, size, mtime_ns, facts FROM files"):
            if only is not None and (key not in only or (only[key].size, only[key].mtime_ns) != (size, mtime_ns)):
                continue
            yield key, dict(zip(_FACTS, json.loads(facts), strict=True))


def known_patients(cache: Path, source: Path, files: Sequence[FoundFile]) -> dict[str, tuple[str, str]]:
    """(patient key, id of the scan) by path of those files of a source that are known and have not changed."""
    if not cache.is_file():
        return {}
    root = os.fsencode(str(source.resolve()))
    keys = {_file_key(root, file.path): file for file in files}
    try:
        known = dict(_cached_facts(cache, keys))
    except (sqlite3.DatabaseError, ValueError):
        return {}
    return {keys[key].path: (facts["patient"], facts["scan"]) for key, facts in known.items()}
