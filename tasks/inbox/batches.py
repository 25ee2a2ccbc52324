"""From complete series to a batch: the folder of links that ingest reads.

Links are hard links: an ingest follows no symbolic link out of its source, and a hard link keeps what was taken when a file is
replaced or removed in the inbox. Where they are not possible (another file system, another owner) files are copied. Names are made
from the names in the inbox with the ledger's secret, part for part, so that they reveal nobody and tables still find their scans.
Three kinds of files keep their names, in folders without theirs: tables, lists, and scans with a detached header (.nhdr, .mhd),
which names its file of voxels.
"""

import csv
import errno
import hashlib
import hmac
import io
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from storage.errors import SourceError
from storage.files import (
    fsync_directory,
    naming_path,
    remove_leftovers,
    sha256_file,
    temporary_path,
    write_bytes_atomic,
)
from storage.inbox_ledger import BATCHES, PICTURES, Batch, Ledger, RecordedFile
from storage.locks import locked
from storage.sources.opening import open_regular
from storage.sources.source import as_utf8
from storage.sources.tables import TABLES
from tasks.inbox.config import Timing
from tasks.inbox.reconcile import look
from tasks.run.fanout import Pool

_NO_LINKS = {
    errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL,
    errno.ENOENT,
}  # fmt: skip
_ENDING = re.compile(
    r"\.(dcm|dicom|ima|nii|nrrd|nhdr|mha|mhd|raw|zraw|npz|zip|tgz|tar|hdr|img|gz|bz2|xz)(\.(gz|bz2|xz))?$",
    re.IGNORECASE,
)
_DETACHED = (".nhdr", ".mhd")
_MAX_TABLE = 256 << 20
logger = logging.getLogger("prdit.inbox")


def take_batch(
    ledger: Ledger, inbox: Path, *, max_series: int = 1000, timing: Timing | None = None, pool: Pool | None = None
) -> Batch | None:
    """The batch to ingest next: an open one that an ended process left, else a new one of every complete series not taken yet.

    Args:
        ledger: of the inbox.
        inbox: folder; its files are linked, never moved or changed.
        max_series: in one batch.
        timing: when things count as whole, for the look at the inbox before a new batch.
        pool: where that look reads files; default: a process that ends with it.
    Returns: None where nothing is complete.
    Raises:
        SourceError: the inbox is not there, and no batch is open.
        UnwritableError: the disk is full, say; the batch stays open, and the next call makes its folder.
    """
    with locked(ledger.folder / "take.lock"):
        remove_leftovers(ledger.folder / BATCHES)
        for batch in ledger.batches("open"):
            if _linked(ledger, inbox, batch.number):
                return ledger.batch(batch.number)
        look(ledger, inbox, timing, pool=pool)
        while new := ledger.new_batch(max_series):
            if _linked(ledger, inbox, new.number):
                return ledger.batch(new.number)
        return None


def remove_finished(ledger: Ledger) -> int:
    """Remove the folders of batches that are listed or rejected: what was ingested is in the store. Returns how many."""
    removed = 0
    with locked(ledger.folder / "take.lock"):
        for batch in ledger.finished():
            if batch.folder.exists():
                aside = temporary_path(batch.folder)
                batch.folder.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)
            ledger.forget_files_of(batch.number)
            removed += 1
        for name in (BATCHES, PICTURES):
            remove_leftovers(ledger.folder / name)
    return removed


def _linked(ledger: Ledger, inbox: Path, number: int) -> bool:
    """Make the folder of a batch where it is not there; False where nothing of the batch is left to take.

    Where it is there its tables are copied again: they may have been corrected since.
    """
    folder, secret = ledger.batch_folder(number), ledger.database.secret
    if folder.is_dir():
        if inbox.is_dir():
            remove_leftovers(folder)
            _copy_tables(ledger, inbox, folder, ledger.files_of(number), secret)
        return True
    temporary = temporary_path(folder)
    try:
        with naming_path(folder):
            temporary.mkdir(parents=True, mode=0o700)
            items = ledger.files_of(number)
            gone = [item for item, files in items.items() if not _link_item(inbox, temporary, files, secret)]
            if gone:
                logger.warning(
                    "batch %d: %d series changed before they were linked; they are taken later", number, len(gone)
                )
                if not ledger.drop(number, gone):
                    return False
            kept = {item: files for item, files in items.items() if item not in gone}
            _copy_tables(ledger, inbox, temporary, kept, secret)
            for place, _, _ in os.walk(temporary, topdown=False):
                fsync_directory(Path(place))
            temporary.rename(folder)
            fsync_directory(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _link_item(inbox: Path, folder: Path, files: Sequence[RecordedFile], secret: bytes) -> bool:
    """Link the files of an item; False where one is not what it was when it was taken, and then none is linked."""
    made: list[Path] = []
    try:
        for file, name in _names(files, secret).items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with open_regular(inbox, file.path) as stream:
                _check_same(stream, file)
                made.append(place)
                _link(stream, place, file)
                _check_same(stream, file)
    except (_ChangedError, FileNotFoundError, NotADirectoryError, IsADirectoryError):
        _remove(made)
        return False
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ESTALE, errno.EIO):
            raise
        _remove(made)
        return False
    return True


class _ChangedError(Exception):
    """A file is not what it was when it was taken."""


def _check_same(stream: BinaryIO, file: RecordedFile) -> None:
    state = os.fstat(stream.fileno())
    if (state.st_size, state.st_mtime_ns) != (file.size, file.mtime_ns):
        raise _ChangedError


def _link(stream: BinaryIO, place: Path, file: RecordedFile) -> None:
    """A hard link to an open file, or a copy of it."""
    try:
        with _directory(
            place.parent
        ) as here:  # with it Python calls linkat, which follows the link in /proc to the open file
            os.link(
                f"/proc/self/fd/{stream.fileno()}", place.name, src_dir_fd=here, dst_dir_fd=here, follow_symlinks=True
            )
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    with place.open("xb") as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)
        copy.flush()
        os.fsync(copy.fileno())
    if sha256_file(place) != file.sha256:
        raise _ChangedError


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            path.unlink()


# ---- names -------------------------------------------------------------------------------------------------------------


def _names(files: Sequence[RecordedFile], secret: bytes) -> dict[RecordedFile, str]:
    """What the files of an item are called in a batch.

    A detached header names its file of voxels, so files of an item that has one keep their names; their folders do not.
    """
    keep = any(PurePosixPath(file.path).suffix.lower() in _DETACHED for file in files)
    return {file: opaque_path(file.path, secret, keep_name=keep) for file in files}


def opaque_path(path: str, secret: bytes, *, keep_name: bool = False) -> str:
    """A relative path in which each part is replaced by a keyed hash of it; usual endings of scans stay."""
    parts = as_utf8(path).split("/")
    last = [path.rpartition("/")[2]] if keep_name else [_opaque(parts[-1], secret)]
    return "/".join([*(_opaque(part, secret) for part in parts[:-1]), *last])


def _opaque(part: str, secret: bytes) -> str:
    ending = _ENDING.search(part)
    return hmac.new(secret, part.encode(), hashlib.sha256).hexdigest()[:16] + (ending[0].lower() if ending else "")


# ---- tables ------------------------------------------------------------------------------------------------------------


def _copy_tables(
    ledger: Ledger, inbox: Path, folder: Path, items: Mapping[str, Sequence[RecordedFile]], secret: bytes
) -> None:
    """Copy the tables of the inbox into a batch, and the lists that name a series of it; earlier copies of what is gone stay."""
    names = {as_utf8(file.path): name for files in items.values() for file, name in _names(files, secret).items()}
    lists = [path for path in ledger.files.lists_of(items) if path.lower().endswith(".csv")]
    for path in [*TABLES, *lists]:
        place = folder / path if path in TABLES else folder / opaque_path(path, secret, keep_name=True)
        try:
            with open_regular(inbox, path) as stream:
                data = stream.read(_MAX_TABLE)
        except FileNotFoundError:
            continue
        except OSError as error:
            if path in TABLES:
                raise SourceError(
                    f"{path} of the inbox cannot be read ({error.strerror}): check its permissions."
                ) from error
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(place, _with_new_paths(data, names, secret) if path in TABLES else data)


def _with_new_paths(data: bytes, names: Mapping[str, str], secret: bytes) -> bytes:
    """A table whose column `path`, where it has one, names the files of a batch; what is no table is left for ingest to refuse."""
    try:
        rows = list(csv.reader(data.decode("utf-8-sig").splitlines(keepends=True), strict=True))
    except (UnicodeDecodeError, csv.Error):
        return data
    columns = [name.strip().lower() for name in rows[0]] if rows else []
    if "path" not in columns:
        return data
    place = columns.index("path")
    for row in rows[1:]:
        if len(row) == len(columns):
            row[place] = _new_path(row[place], names, secret)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def _new_path(text: str, names: Mapping[str, str], secret: bytes) -> str:
    path = text.strip().removeprefix("./").rstrip("/") or "."
    if path == "." or not text.strip():
        return text
    parts = path.split("/")
    for length in range(len(parts), 0, -1):  # a file, or one in an archive that is a file
        if name := names.get("/".join(parts[:length])):
            return "/".join([name, *parts[length:]])
    return opaque_path(path, secret)
