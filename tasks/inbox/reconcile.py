"""A look at an inbox: what is there is held against the ledger, and items become complete.

A look stats every file and opens those that are new or changed, once each, in a process with limits, as an ingest does. It needs no
events: one look finds whatever happened since the last one, and a look that was ended in the middle is simply made again.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from storage.inbox_files import SeenFile
from storage.inbox_ledger import Ledger
from storage.locks import locked
from storage.privacy import opaque_id
from storage.sources.archives import READ_KINDS
from storage.sources.files import FoundFile, FoundOther, check_source, walk_source
from storage.sources.index import ReadFile
from storage.sources.manifests import is_manifest, read_manifest
from storage.sources.tables import TABLES
from storage.verdicts import REASONS
from tasks.inbox.config import Timing
from tasks.ingest.costs import allowance, lost_file
from tasks.ingest.scan import BATCH_FILES, Batch, read_batch
from tasks.run.fanout import Lost, Pool

_MEMORY_MB = 1300
# What is being written is called so by browsers, rsync and us, or lies in a folder that is; so is what is hidden.
_TEMPORARY = re.compile(
    r"\..*|.*~|.*\.(part|partial|filepart|tmp|temp|crdownload|download|incomplete|inprogress|lock|swp)",
    re.IGNORECASE | re.DOTALL,
)
_DETACHED = re.compile(rb"(.+)\.(nhdr|mhd)", re.IGNORECASE | re.DOTALL)
logger = logging.getLogger("prdit.inbox")


@dataclass(frozen=True)
class Look:
    """What a look found.

    Attributes:
        num_files: that are there, temporary ones left out.
        num_read: that were opened.
        num_unread: that are new or changing and are read at a later look.
        num_complete: items that are complete and that no batch has.
        num_arriving: items that are not complete yet.
        unreadable: folders that could not be listed.
        outside: links that lead out of the inbox, or nowhere, and are not followed.
    """

    num_files: int
    num_read: int
    num_unread: int
    num_complete: int
    num_arriving: int
    unreadable: int
    outside: int = 0

    @property
    def settled(self) -> bool:
        """Whether another look has nothing to wait for."""
        return self.num_unread == 0 and self.num_arriving == 0


def look(
    ledger: Ledger,
    inbox: Path,
    timing: Timing | None = None,
    *,
    clock: Callable[[], float] = time.time,
    pool: Pool | None = None,
) -> Look:
    """Bring the ledger up to date with its inbox; looks of several processes take turns.

    Args:
        ledger: of this inbox.
        inbox: folder; it is only read.
        timing: when things count as whole.
        clock: Unix time.
        pool: where files are read; default: a process that ends with the look.
    Raises:
        SourceError: the inbox is not there, or cannot be listed; nothing was changed.
        StorageError: the ledger cannot be read or written.
    """
    timing = timing or Timing()
    check_source(inbox)
    with locked(ledger.folder / "look.lock"):
        began = clock()  # of what happens while files are read nothing is known, however long that takes
        walked = _Walk(ledger, inbox, clock)
        with ExitStack() as stack:
            readers = pool or stack.enter_context(reading_pool())
            num_read = _read_files(ledger, inbox, began - timing.settle_s, readers)
        ledger.files.refresh(clock())
        _judge(ledger, timing, began, walked.active(began - timing.quiet_s))
        counts = ledger.counts()
    return Look(
        walked.num_files,
        num_read,
        ledger.files.num_unread(),
        counts.get("complete", 0),
        counts.get("arriving", 0),
        len(walked.failed),
        walked.num_outside,
    )


class _Walk:
    """The walk over an inbox; files that are new, changed or gone are recorded, a folder at a time."""

    def __init__(self, ledger: Ledger, inbox: Path, clock: Callable[[], float]) -> None:
        self._files, self._inbox, self._clock = ledger.files, inbox, clock
        self.num_files = self.num_outside = 0
        self.failed: list[bytes] = []
        self._temporary: dict[bytes, float] = {}  # last change of what is being written, by folder
        visited: set[bytes] = set()
        for folder, found in groupby(self._found(), lambda one: one.path.rpartition("/")[0]):
            visited.add(os.fsencode(folder))
            self._compare(folder, list(found))
        for folder in self._files.folders():
            if folder not in visited and not self._below_failed(folder):
                self._files.forget_folder(folder)
        self._files.try_again_unreadable()

    def active(self, since: float) -> set[bytes]:
        """Folders in which something was being written since a time."""
        return {folder for folder, changed in self._temporary.items() if changed >= since}

    def _found(self) -> Iterator[FoundFile]:
        for one in walk_source(self._inbox):
            if isinstance(one, FoundFile):
                yield one
            elif one.reason == "unreadable_file":
                self._note_failed(one)
            else:
                self.num_outside += 1

    def _note_failed(self, other: FoundOther) -> None:
        # It may be a folder, or a file: what is recorded of it and below stays as it is.
        self.failed.append(b"" if other.path == "." else os.fsencode(other.path))

    def _below_failed(self, path: bytes) -> bool:
        return any(not one or path == one or path.startswith(one + b"/") for one in self.failed)

    def _compare(self, place: str, found: list[FoundFile]) -> None:
        folder = os.fsencode(place)
        start = len(place) + 1 if place else 0
        hidden = any(_TEMPORARY.fullmatch(part) for part in place.split("/"))
        known = self._files.in_folder(folder)
        changed = []
        for file in found:
            if hidden or _TEMPORARY.fullmatch(file.path, start):
                self._temporary[folder] = max(self._temporary.get(folder, 0.0), file.mtime_ns / 1e9)
                continue
            self.num_files += 1
            name = os.fsencode(file.path[start:])
            before = known.pop(name, None)
            if before != (file.size, file.mtime_ns):
                since = self._clock() if before else self._first_seen(file)
                changed.append(SeenFile(folder, name, file.size, file.mtime_ns, since))
        if changed:
            self._files.record(changed)
        prefix = folder + b"/" if folder else b""
        if gone := [name for name in known if not self._below_failed(prefix + name)]:
            self._files.forget(folder, gone)

    def _first_seen(self, file: FoundFile) -> float:
        """When a file that was not seen before changed last: as its file system says, which no copying program sets."""
        now = self._clock()
        with suppress(OSError):
            return min(now, (self._inbox / file.path).stat().st_ctime)
        return now


def reading_pool() -> Pool:
    """A process, started when it is first needed, that reads files within limits."""
    return Pool(memory_mb=_MEMORY_MB)


def _read_files(ledger: Ledger, inbox: Path, settled: float, pool: Pool) -> int:
    """Read the files that have settled; what each is part of is recorded."""
    num_read = 0
    while unread := ledger.files.unread(settled):
        done: list[SeenFile] = []
        for seen, read in _facts(pool, inbox, ledger.database.secret, unread):
            done.append(_placed(ledger, inbox, seen, read))
        with ledger.database.changing():
            ledger.files.record(done)
            for seen in done:
                if header := _DETACHED.fullmatch(seen.name):  # its file of voxels may have come first
                    ledger.files.read_again(seen.folder, header[1])
        num_read += len(done)
    return num_read


def _facts(pool: Pool, inbox: Path, key: bytes, files: list[SeenFile]) -> Iterator[tuple[SeenFile, ReadFile]]:
    """What reading files gives; a file that ends its reader costs that file."""
    left = list(files)
    while left:
        some = left[:BATCH_FILES]
        found = tuple(FoundFile(f.path, f.size, f.mtime_ns) for f in some)
        job = Batch(str(inbox), found, key)
        most = max(file.size for file in some)
        ((_, result),) = pool.map(read_batch, [job], allowance=lambda _, most=most: allowance(most))  # type: ignore[misc]
        if isinstance(result, Lost):
            reason, detail = lost_file(result)
            result = [*result.done, ReadFile("", reason=reason, detail=detail)]
        yield from zip(some, result, strict=False)
        left = left[len(result) :]


def _placed(ledger: Ledger, inbox: Path, seen: SeenFile, read: ReadFile) -> SeenFile:
    """A file with what it is part of; of a list the numbers of images are recorded."""
    item, reason = read.scan, read.reason
    if not item and is_manifest(seen.path, reason):
        ledger.files.set_counts(seen.folder, seen.name, read_manifest(inbox, seen.path).counts)
    elif not item and seen.path not in TABLES and read.sha256 and _is_own_scan(read):
        item = opaque_id(ledger.database.secret, "file", seen.path)
    return replace(
        seen, read=True, sha256=read.sha256, item=item if read.sha256 else "", format=read.format, reason=reason
    )


def _is_own_scan(read: ReadFile) -> bool:
    """Whether a file of no known scan is for an ingest to judge: an archive that is read, or a scan that is damaged."""
    if read.reason == "archive":
        return read.detail in READ_KINDS
    return read.reason in REASONS and REASONS[read.reason].verdict == "quarantined"


def _judge(ledger: Ledger, timing: Timing, now: float, active: set[bytes]) -> None:
    """Find the items that are complete: by a list's number of images; without one after a time without a change."""
    with ledger.database.changing():
        for one in ledger.files.items("arriving"):
            if one.expected is not None:
                if one.images >= one.expected:
                    ledger.files.complete(one.item, "manifest")
                continue
            quiet = now - one.changed
            if quiet < min(timing.association_s, timing.quiet_s) or ledger.files.is_touched(one.item, active):
                continue
            if quiet >= timing.quiet_s:
                ledger.files.complete(one.item, "quiet")
            elif ledger.files.association_ended(one.item):
                ledger.files.complete(one.item, "association")
