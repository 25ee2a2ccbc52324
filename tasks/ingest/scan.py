"""List, hash and header-read a source, once per run: in parallel, streamed, unchanged files from the cache."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage.errors import SourceError
from storage.patient_key import key_id, patient_key
from storage.sources.files import FoundFile, FoundOther, check_source, walk_source
from storage.sources.formats import read_source_file
from storage.sources.index import Excluded, FileIndex, ReadFile, ScanFiles
from storage.sources.source import as_utf8
from storage.sources.tables import Assigned, SourceTables
from tasks.run.fanout import Lost, Pool

BATCH_FILES = 64
BATCH_BYTES = 256 << 20
FEW_BATCHES = 5  # up to so many are read in this process: workers take seconds to start
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
    """

    scan_id: str
    format: str
    files: tuple[str, ...]
    digest: str
    patient_key: str
    patient_known: bool
    patient_given: bool
    labels: dict[str, str]


class SourceScan:
    """A source as it was found.

    Attributes:
        source: its folder.
        digest: `sha256:<hex>` of relative paths and contents, independent of machine and modification times.
        num_files: regular files.
        num_scans: scans with a usable file.
    """

    def __init__(self, source: Path, index: FileIndex, tables: SourceTables) -> None:
        self.source = source
        self._index = index
        self._tables = tables
        self.digest = index.digest()
        self.num_files = index.count()
        self.num_scans = index.count_scans()

    def scans(self) -> Iterator[Scan]:
        """The scans by id."""
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
            )

    def exclusions(self) -> Iterator[Excluded]:
        """Everything that is no part of a scan, with a reason."""
        return self._index.excluded()

    def notes(self) -> list[str]:
        """Sentences about rows of the tables that contradict a file or match no scan."""
        if not self._tables:
            return []
        return self._tables.notes((found.scan_id, told) for found, told in self._assigned())

    def _assigned(self) -> Iterator[tuple[ScanFiles, Assigned]]:
        """The scans by id, with what the tables say of each."""
        for found in self._index.scans():
            yield found, self._tables.assign(found.scan_id, found.files, found.patient)


def beside_store(store_path: Path, ending: str) -> Path:
    """The path beside a store that has its name and an ending: for what may reveal who was scanned, and so is not in it."""
    place = store_path.resolve()
    return place.with_name(place.name + ending)


def file_cache(store_path: Path) -> Path:
    """Where what is known of source files is cached."""
    return beside_store(store_path, ".files.sqlite")


@contextmanager
def scan_source(source: Path, store_path: Path, key: bytes, pool: Pool) -> Iterator[SourceScan]:
    """Scan a source; it is only read, and each file that changed since the last time is read once.

    Args:
        source: folder, searched recursively.
        store_path: the store that the cache lies beside.
        key: secret of the patient keys.
        pool: worker processes, for more than a few hundred new files.

    Raises:
        SourceError: the folder is missing or empty, or a table in it is malformed.
        UnwritableError: the cache cannot be written.
    """
    source = Path(source)
    check_source(source)
    tables = SourceTables(source, key)
    index = FileIndex(file_cache(store_path), source, key_id(key))
    try:
        lost = _read_batches(index, source, key, pool)
        _read_alone(index, source, key, pool, lost)
        index.finish()
        if not index.count() and not index.count_others():
            raise SourceError(f"Source {as_utf8(str(source))} is empty. Give a folder with CT as DICOM or NIfTI.")
        yield SourceScan(source, index, tables)
    finally:
        index.close()


def read_batch(batch: Batch) -> list[ReadFile]:
    """Read the files of a batch, each once; in their order."""
    read = []
    for file in batch.files:
        sha256, facts = read_source_file(Path(batch.source), file.path)
        patient = patient_key(batch.key, facts.patient_id, "")[0] if facts.patient_id else ""
        read.append(ReadFile(sha256, facts.format, facts.scan, facts.reason, facts.detail, patient))
    return read


def _read_batches(index: FileIndex, source: Path, key: bytes, pool: Pool) -> list[FoundFile]:
    """List the source, reading what is not known; returns the files of batches that were lost."""
    lost: list[FoundFile] = []
    num_read, said = 0, time.monotonic()
    batches = _batches(index, source, key)
    for batch, result in pool.map(read_batch, batches, few=FEW_BATCHES):
        if isinstance(result, Lost):
            _stop_on_error(result)
            lost += batch.files
            continue
        index.add(zip(batch.files, result, strict=True))
        num_read += len(result)
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            logger.info("scan: %d files read", num_read)
    return lost


def _read_alone(index: FileIndex, source: Path, key: bytes, pool: Pool, files: list[FoundFile]) -> None:
    """Read files one by one, so that one that kills its reader costs no other."""
    singles = (Batch(str(source), (file,), key) for file in files)
    for batch, result in pool.map(read_batch, singles, few=0):
        if isinstance(result, Lost):
            _stop_on_error(result)
            detail = "its reader died" if result.reason == "worker_died" else result.detail
            result = [ReadFile("", reason="unreadable_file", detail=detail)]
        index.add(zip(batch.files, result, strict=True))


def _batches(index: FileIndex, source: Path, key: bytes) -> Iterator[Batch]:
    """What must be read of a source, in batches of bounded number and size."""
    files: list[FoundFile] = []
    for file in _unread(index, source):
        files.append(file)
        if len(files) == BATCH_FILES or sum(file.size for file in files) >= BATCH_BYTES:
            yield Batch(str(source), tuple(files), key)
            files = []
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


def _stop_on_error(result: Lost) -> None:
    if result.error is not None:
        raise result.error
