"""List, hash and header-read a source, once per run: in parallel, streamed, unchanged files from the cache."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path, PurePosixPath

from storage.bucket_path import AT_ONCE, BucketPath
from storage.errors import NoScansError
from storage.patient_key import key_id
from storage.places import as_place
from storage.privacy import INGESTS, beside_store, opaque_id
from storage.sources.files import FoundFile, FoundOther, check_here, check_source, walk_source
from storage.sources.formats import read_source_file
from storage.sources.index import Excluded, FileIndex, ReadFile, ScanFiles
from storage.sources.manifests import Expected, Manifest, read_manifest
from storage.sources.patient_ids import patient_id_notes
from storage.sources.source import as_utf8
from storage.sources.tables import Assigned, SourceTables
from tasks.ingest.archive_scan import ArchiveNames, list_archives
from tasks.ingest.costs import allowance, lost_file
from tasks.run.fanout import Allowance, Lost, Pool

BATCH_FILES = 64
BATCH_BYTES = 256 << 20
_SMALL_BYTES = 8 << 20
FEW_BATCHES = 5  # up to so many are read in one process: a cluster takes seconds to start
_ASKED_AT_ONCE = 500  # files, of the cache
_SAY_EVERY_S = 20.0
logger = logging.getLogger("prdit.scan")


@dataclass(frozen=True)
class Batch:
    """Files for a worker to read; it gives patient keys back, so that no patient id leaves it."""

    source: str
    files: tuple[FoundFile, ...]
    key: bytes


@dataclass(frozen=True)
class Scan:
    """One scan of a source: what it takes to ingest it, and what is known of it beside its headers.

    Attributes:
        scan_id: a DICOM series' UID, say.
        format: name of its format in `storage.sources.formats.FORMATS`.
        files: relative paths, sorted.
        digest: hash of its files' contents.
        patient_key, patient_known: as `storage.patient_key.patient_key` gives them; patients.csv is taken into account.
        patient_given: whether the patient is from patients.csv.
        labels: of labels.csv, value by name.
        num_expected: images that lists in the source say it has; None where none does.
        size: bytes that its files have where they lie, in archives compressed; reading it may cost what they account for.
        num_beside: other CT images of the same study in the source, scouts among them.
        num_no_slices: files of it that are images of other kinds, and are not in `files`.
        num_unreadable: files of it, or of its folders and of no known scan, that cannot be read; 0 where it is one file.
    """

    scan_id: str
    format: str
    files: tuple[str, ...]
    digest: str
    patient_key: str
    patient_known: bool
    patient_given: bool
    labels: dict[str, str]
    num_expected: int | None = None
    size: int = 0
    num_beside: int = 0
    num_no_slices: int = 0
    num_unreadable: int = 0


class SourceScan:
    """A source as it was found.

    Attributes:
        source: its folder.
        digest: `sha256:<hex>` of relative paths and contents, independent of machine and modification times.
        num_files: regular files.
        num_scans: scans with a usable file.
    """

    def __init__(
        self, source: Path, index: FileIndex, tables: SourceTables, expected: Expected, archives: dict[str, int]
    ) -> None:
        self.source = source
        self._expected = expected
        self._archives = archives
        self._index = index
        self._tables = tables
        self.digest = index.digest()
        self.num_files = index.count()
        self.num_scans = index.count_scans()

    def scans(self) -> Iterator[Scan]:
        """The scans by id."""
        folders, scans = self._index.unreadable()
        studies, no_slices = self._index.images_of_studies(), self._index.no_slices()
        for found, told in self._assigned():
            yield Scan(
                found.scan_id,
                found.format,
                found.files,
                found.digest,
                told.patient_key,
                told.patient_known,
                told.patient_given,
                told.labels,
                self._expected.count(found.scan_id),
                self._size(found),
                studies[found.study] - len(found.files) if found.study else 0,
                no_slices[found.scan_id],
                self._num_unreadable(found, folders, scans),
            )

    def exclusions(self) -> Iterator[Excluded]:
        """Everything that is no part of a scan, with a reason."""
        return self._index.excluded()

    def notes(self) -> list[str]:
        """Sentences about rows of the tables that contradict a file or match no scan, and about lists that do not fit."""
        notes = self._expected.notes({found.scan_id: found.num_contents for found in self._index.scans()})
        if self._tables:
            notes += self._tables.notes((found.scan_id, told) for found, told in self._assigned())
        notes += patient_id_notes(
            (found for found, told in self._assigned() if not told.patient_given), self._tables.key
        )
        return notes

    def _num_unreadable(self, found: ScanFiles, folders: Counter[str], scans: Counter[str]) -> int:
        """How many files may be missing from a scan, which has one file for each slice."""
        if len(found.files) == 1:
            return 0
        places = {_folder(name) for name in found.files}
        places |= {_folder(holder) for holder in self._holders(found)}  # another archive beside it may have the rest
        return scans[found.scan_id] + sum(folders[folder] for folder in {as_utf8(place) for place in places})

    def _size(self, found: ScanFiles) -> int:
        """Bytes that a scan's files account for: unpacked ones count as at most four times their archives' size."""
        holders = self._holders(found)
        packed = sum(self._archives[place] for place in holders)
        return min(found.size, 4 * packed) if holders else found.size

    def _holders(self, found: ScanFiles) -> set[str]:
        """The archives that a scan's files lie in."""
        folders = {_folder(name) for name in found.files} if self._archives else set()
        places = (place for folder in folders for place in accumulate(folder.split("/"), "{}/{}".format))
        return {place for place in places if place in self._archives}

    def _assigned(self) -> Iterator[tuple[ScanFiles, Assigned]]:
        """The scans by id, with what the tables say of each."""
        for found in self._index.scans():
            yield found, self._tables.assign(found.scan_id, found.files, found.patient)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def file_cache(store_path: Path) -> Path:
    """Where what is known of source files is cached."""
    return beside_store(store_path, ".files.sqlite")


def source_record(source: Path, store_path: Path, key: bytes) -> Path:
    """Where the last verdicts on a source are kept with their paths: beside the store, not in it."""
    return beside_store(store_path, INGESTS) / f"{opaque_id(key, 'source', str(source.resolve()))}.json"


def _names_folder(source: Path, store_path: Path, key: bytes) -> Path:
    """Where the names of the files in a source's archives are kept."""
    return source_record(source, store_path, key).with_suffix(".archives")


@contextmanager
def scan_source(
    source: Path, store_path: Path, key: bytes, pool: Pool, *, archives: bool = True
) -> Iterator[SourceScan]:
    """Scan a source; it is only read, and each file that changed since the last time is read once.

    Args:
        source: folder, searched recursively.
        store_path: the store that the cache lies beside.
        key: secret of the patient keys.
        pool: worker processes.
        archives: whether archives are read as if they were folders.

    Raises:
        SourceError: the folder is missing or empty, or a table in it is malformed.
        UnwritableError: the cache cannot be written.
    """
    source = as_place(source)
    check_source(source)
    tables = SourceTables(source, key)
    index = FileIndex(file_cache(store_path), source, key_id(key))
    try:
        left = _read_batches(index, source, key, pool)
        while left:  # each round leaves at least one file fewer
            batches = [
                Batch(str(source), tuple(left[k : k + BATCH_FILES]), key) for k in range(0, len(left), BATCH_FILES)
            ]
            rounds = pool.map(read_batch, batches, few=FEW_BATCHES, allowance=_batch_allowance)
            left = [file for batch, result in rounds for file in _list_batch(index, batch, result)]
        sizes = {}
        if archives:
            sizes = list_archives(index, source, key, pool, ArchiveNames(_names_folder(source, store_path, key)))
        index.finish()
        if not index.count() and not index.count_others():
            raise NoScansError(
                f"Source {as_utf8(str(source))} is empty. Give a folder with CT (DICOM, NIfTI, NRRD, MetaImage or npz)."
            )
        yield SourceScan(source, index, tables, _expected(index, source, pool), sizes)
    finally:
        index.close()


def _expected(index: FileIndex, source: Path, pool: Pool) -> Expected:
    """What lists in the source say of it."""
    names = index.manifests()
    found = []
    for name, result in pool.map(
        partial(read_manifest, source), names, few=len(names), allowance=lambda _: allowance(0)
    ):
        if not isinstance(result, Lost):
            found.append(result)
        elif result.error is not None:
            raise result.error
        else:
            note = f"{PurePosixPath(name).suffix or 'DICOMDIR'} list: it cannot be read ({result.detail}); remove it."
            found.append(Manifest("list", notes=(note,)))
    return Expected(found)


def read_batch(batch: Batch) -> Iterator[ReadFile]:
    """Read the files of a batch, each once; in their order."""
    source = as_place(batch.source)
    check_here(source)
    names = [file.path for file in batch.files]
    if not isinstance(source, BucketPath):
        yield from (ReadFile.of(*read_source_file(source, name), batch.key) for name in names)
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from (ReadFile.of(*read, batch.key) for read in pool.map(partial(read_source_file, source), names))


def _read_batches(index: FileIndex, source: Path, key: bytes, pool: Pool) -> list[FoundFile]:
    """List the source, reading what is not known; returns files that were not reached, as one before them was not to be read."""
    left: list[FoundFile] = []
    num_read, said = 0, time.monotonic()
    batches = _batches(index, source, key)
    for batch, result in pool.map(read_batch, batches, few=FEW_BATCHES, allowance=_batch_allowance):
        left += _list_batch(index, batch, result)
        num_read += len(batch.files)
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            logger.info("scan: %d files read", num_read)
    return left


def _list_batch(index: FileIndex, batch: Batch, result: "list[ReadFile] | Lost") -> list[FoundFile]:
    """List what was read of a batch. Where its reader was lost, it was for the file after those; returns the ones behind that.

    Raises: UserError: what a worker met concerns the whole ingest.
    """
    if not isinstance(result, Lost):
        index.add(zip(batch.files, result, strict=True))
        return []
    reason, detail = lost_file(result)
    done = len(result.done)
    read = [*result.done, ReadFile("", reason=reason, detail=detail)]
    index.add(zip(batch.files[: done + 1], read, strict=True))
    return list(batch.files[done + 1 :])


def _batch_allowance(batch: Batch) -> Allowance:
    """For each file of a batch, as its reader sends one by one."""
    return allowance(max(file.size for file in batch.files))


def _batches(index: FileIndex, source: Path, key: bytes) -> Iterator[Batch]:
    """What must be read of a source, in batches of bounded number and size; small files apart, as large ones may cost more."""
    small: list[FoundFile] = []
    large: list[FoundFile] = []
    for file in _unread(index, source):
        files = small if file.size <= _SMALL_BYTES else large
        files.append(file)
        if len(files) == BATCH_FILES or sum(file.size for file in files) >= BATCH_BYTES:
            yield Batch(str(source), tuple(files), key)
            files.clear()
    for files in (small, large):
        if files:
            yield Batch(str(source), tuple(files), key)


def _unread(index: FileIndex, source: Path) -> Iterator[FoundFile]:
    """Walk the source and list what is known; the files that must be read."""
    found: list[FoundFile] = []
    for item in walk_source(source):
        if isinstance(item, FoundOther):
            index.add_other(item)
            continue
        found.append(item)
        if len(found) == _ASKED_AT_ONCE:
            yield from index.list_known(found)
            found = []
    yield from index.list_known(found)
