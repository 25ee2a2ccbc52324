"""What is in the archives of a source: read as files are, in the order in which it lies there.

Names of members may reveal who was scanned, so they are remembered with the record of the source beside the store, and not in the
cache of files. An archive that has not changed is not opened again.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from storage.errors import UnreachableError
from storage.files import write_bytes_atomic
from storage.places import as_place
from storage.sources.archive_streams import TooCostlyError
from storage.sources.archives import read_members
from storage.sources.files import FoundFile, FoundOther, check_here
from storage.sources.formats import read_stream
from storage.sources.index import FileIndex, ReadFile
from storage.sources.source import as_utf8
from storage.verdicts import counted
from tasks.ingest.costs import allowance, lost_file
from tasks.run.fanout import Lost, Pool

_ASKED_AT_ONCE = 500  # files, of the cache
_DAMAGED = (OSError, ValueError, TypeError, KeyError, zlib.error)
Found = tuple[FoundFile | FoundOther, ReadFile | None]


@dataclass(frozen=True)
class ArchiveJob:
    """An archive for a worker to read; `key` is the secret of the patient keys."""

    source: str
    archive: FoundFile
    kind: str
    key: bytes


def read_archive(job: ArchiveJob) -> Iterator[Found]:
    """What is in an archive, one by one: a file with what its header says, or what is not read with its reason.

    The last is the archive itself where it cannot be read to its end.
    """
    check_here(as_place(job.source))
    name = job.archive.path
    number = 0
    try:
        for member, content in read_members(as_place(job.source), name, job.kind):
            number += 1
            path = f"{name}/{member.name}"
            if content is None:
                yield FoundOther(path, member.reason, member.detail), None
                continue
            sha256_, facts = read_stream(content, as_place(job.source) / path)
            if facts.reason == "archive":
                facts = replace(facts, detail=f"{facts.detail} in another archive")
            yield FoundFile(path, member.size, job.archive.mtime_ns), ReadFile.of(sha256_, facts, job.key)
        if number == 0:
            yield FoundOther(name, "unreadable_file", f"a {job.kind} without files"), None
    except UnreachableError:
        raise
    except OSError as error:
        reason = "too_costly" if isinstance(error, TooCostlyError) else "unreadable_file"
        yield FoundOther(name, reason, f"{error.strerror or type(error).__name__}{_behind(number)}"), None


def _behind(number: int) -> str:
    return f", after {counted(number, 'file')} in it" if number else ""


class ArchiveNames:
    """The names in archives as they were at the last ingest, one file for each archive, with its size and time.

    Args:
        folder: where they are kept: private, as the record of the source.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, source: Path, archive: FoundFile) -> list[FoundFile | FoundOther] | None:
        """What was in an archive; None where it is not known, or the archive has changed."""
        try:
            record = json.loads(zlib.decompress(self._path(source, archive).read_bytes()))
            if (record["size"], record["mtime_ns"]) != (archive.size, archive.mtime_ns):
                return None
            files = [FoundFile(name, size, archive.mtime_ns) for name, size in record["files"]]
            return [*files, *(FoundOther(*other) for other in record["others"])]
        except _DAMAGED:
            return None

    def remember(self, source: Path, archive: FoundFile, found: list[Found]) -> None:
        """Keep what is in an archive that was read to its end."""
        items = [item for item, _ in found]
        record: dict[str, Any] = {"size": archive.size, "mtime_ns": archive.mtime_ns}
        record["files"] = [(one.path, one.size) for one in items if isinstance(one, FoundFile)]
        record["others"] = [astuple(one) for one in items if isinstance(one, FoundOther)]
        write_bytes_atomic(self._path(source, archive), zlib.compress(json.dumps(record).encode()))

    def forget_others(self, source: Path, archives: list[FoundFile]) -> None:
        """Remove what is kept of archives that the source no longer has."""
        kept = {self._path(source, archive).name for archive in archives}
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _path(self, source: Path, archive: FoundFile) -> Path:
        return self._folder / sha256(as_utf8(archive.path).encode()).hexdigest()[:32]


def list_archives(index: FileIndex, source: Path, key: bytes, pool: Pool, names: ArchiveNames) -> dict[str, int]:
    """Put what is in the archives of a source on its list, in their place; their sizes by relative path.

    Raises: UserError: what a worker met concerns the whole ingest, as a full disk does.
    """
    archives = index.archives()

    def jobs() -> Iterator[ArchiveJob]:
        for archive, kind in archives:
            if not _list_known(index, source, archive, names):
                yield ArchiveJob(str(source), archive, kind, key)

    for job, result in pool.map(read_archive, jobs(), allowance=lambda job: allowance(job.archive.size, together=True)):
        found: list[Found] = result
        if isinstance(result, Lost):
            reason, detail = lost_file(result)
            found = [*result.done, (FoundOther(job.archive.path, reason, detail + _behind(len(result.done))), None)]
        fault = next((one for one, _ in found if isinstance(one, FoundOther) and one.path == job.archive.path), None)
        if fault is None:
            names.remember(source, job.archive, found)
        else:
            found = [(one, read and _without_rest(read, fault)) for one, read in found]
        _list(index, job.archive, found)
    names.forget_others(source, [archive for archive, _ in archives])
    return {archive.path: archive.size for archive, _ in archives}


def _without_rest(read: ReadFile, fault: FoundOther) -> ReadFile:
    """A file of an archive that is not read to its end: it may be damaged, and files of its scan may be missing."""
    return (
        read if read.reason else replace(read, reason=fault.reason, detail=f"its archive is not whole: {fault.detail}")
    )


def _list_known(index: FileIndex, source: Path, archive: FoundFile, names: ArchiveNames) -> bool:
    """List an archive's files where all are known; whether they are."""
    known = names.of(source, archive)
    if known is None:
        return False
    files = [one for one in known if isinstance(one, FoundFile)]
    if any(index.list_known(files[k : k + _ASKED_AT_ONCE]) for k in range(0, len(files), _ASKED_AT_ONCE)):
        return False
    _list(index, archive, [(one, None) for one in known if isinstance(one, FoundOther)])
    return True


def _list(index: FileIndex, archive: FoundFile, found: list[Found]) -> None:
    index.drop(archive)
    index.add((one, read) for one, read in found if isinstance(one, FoundFile) and read is not None)
    for one, _ in found:
        if isinstance(one, FoundOther):
            index.add_other(one)
