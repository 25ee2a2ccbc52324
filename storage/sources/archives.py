"""Archives as ways to list files: zip and tar, plain or compressed; a member is the file `archive.zip/inner/path`.

Members of a zip or a plain tar are read where they lie. A compressed tar can only be read from its start, so the members of one
that are wanted are unpacked in one pass, see `copied`. What an archive claims is not believed: sizes are counted while bytes are
read, against a budget that follows from the size of the archive, and check sums are verified before anything is given out.
"""

import errno
import io
import lzma
import posixpath
import shutil
import stat
import struct
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from storage.bucket_path import AT_ONCE, BucketPath
from storage.files import naming_path, remove_leftovers, temporary_path
from storage.sources.archive_streams import Budget, TooCostlyError, decompressed
from storage.sources.opening import copies, mode_of, open_regular, opened_again, size_of, status_of
from storage.sources.tar_headers import TarHeader, begins_tar, check_tar_end

READ_KINDS = ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz")
ARCHIVE_ERRORS = (
    OSError, EOFError, ValueError, KeyError, IndexError, NotImplementedError, RuntimeError, OverflowError,
    struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError,
)  # fmt: skip
_MAGIC = {
    b"\x1f\x8b": "gz",
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_ZIP_STARTS = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")  # the second is an empty one's, the third one in several parts
_OFFICE = {"[Content_Types].xml", "mimetype", "META-INF/MANIFEST.MF"}  # documents and programs that happen to be zips
_IN_MEMORY = 64 << 20  # members up to this size are not written to a temporary file
_PIECE = 1 << 20
_SMALL_PIECE = 1 << 12  # of compressed bytes, where one piece may become very many
_LOCAL_HEADER = 30
_ENCRYPTED = 1


@dataclass(frozen=True)
class Member:
    """A file in an archive: its path there, its size, and where it is not read reason code and detail of its verdict."""

    name: str
    size: int
    reason: str = ""
    detail: str = ""


def archive_kind(stream: BinaryIO) -> str:
    """Which archive a file is (of `READ_KINDS`, or one that is not read), "" where it is none."""
    stream.seek(0)
    start = stream.read(512)
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")
    if begins_tar(start):
        return "tar"
    if start.startswith(_ZIP_STARTS):
        return "" if _is_document(stream, start) else "zip"
    if kind in ("gz", "bz2", "xz"):
        stream.seek(0)
        with suppress(*ARCHIVE_ERRORS):
            if begins_tar(decompressed(stream, kind, Budget(_PIECE)).read(512)):
                return f"tar.{kind}"
    return {"gz": "gzip", "bz2": "bzip2"}.get(kind, kind)


def _is_document(stream: BinaryIO, start: bytes) -> bool:
    """Whether a zip, damaged or not, is a document or program."""
    length = int.from_bytes(start[26:28], "little")
    names = {start[_LOCAL_HEADER : _LOCAL_HEADER + length].decode("latin-1")}
    stream.seek(0)
    with suppress(*ARCHIVE_ERRORS), zipfile.ZipFile(stream) as archive:
        names |= set(archive.namelist())
    return bool(_OFFICE & names)


def read_members(source: Path, name: str, kind: str) -> Generator[tuple[Member, BinaryIO | None], None, None]:
    """The files of an archive in the order in which they lie; each with its content, seekable, or with a reason.

    A stream is valid until the next member is asked for.

    Args:
        source: folder of the source.
        name: relative path of the archive.
        kind: of `READ_KINDS`.

    Raises: OSError: the archive cannot be read from here on; the members before are good.
    """
    with open_regular(source, name) as stream:
        budget = Budget.of(size_of(stream))
        try:
            if kind == "zip":
                yield from _read_zip(stream, budget)
            else:
                yield from _read_tar(stream, kind, budget)
        except TooCostlyError:
            raise
        except ARCHIVE_ERRORS as error:
            if kind == "zip" and not isinstance(error, OSError):  # faults of its members are named one by one
                raise OSError(errno.EIO, "its directory is missing or damaged") from error
            raise _as_os_error(error) from error


@contextmanager
def open_member(source: Path, name: str) -> Iterator[BinaryIO]:
    """One file in an archive, by its path (`archive.zip/inner/path`), seekable, its check sum verified.

    Raises: OSError: it is not there, or cannot be read.
    """
    if (copy := copies.get((str(source), name))) is not None:
        with copy.open("rb") as stream:
            yield stream
        return
    archive, inner = _split(source, name)
    try:
        content = _content(source, archive, inner)
    except OSError:
        raise
    except ARCHIVE_ERRORS as error:
        raise _as_os_error(error) from error
    if content is not None:
        with content:
            yield content
        return
    with open_regular(source, archive) as stream:
        kind = archive_kind(stream)
    with closing(read_members(source, archive, kind)) as members:
        found = next((content for member, content in members if member.name == inner and content is not None), None)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "it is not in its archive any more")
        yield found


@contextmanager
def copied(source: Path, files: Sequence[str]) -> Iterator[None]:
    """Copy what cannot be read at once where it lies, for as long as the block lasts, into the folder for temporary files.

    These are members of compressed tars, in one pass over each, and objects of a bucket, many at a time.

    Raises:
        OSError: an archive is gone or cannot be read.
        UnwritableError: the folder for temporary files is full.
    """
    wanted: dict[str, set[str]] = {}
    folders: dict[str, bool] = {}
    for name in files:
        folder = name.rpartition("/")[0]
        if folder not in folders:
            folders[folder] = _is_folder(source, folder)
        if not folders[folder]:
            with suppress(FileNotFoundError):
                archive, inner = _split(source, name)
                wanted.setdefault(archive, set()).add(inner)
    temporary = Path(tempfile.gettempdir())
    place = temporary_path(temporary / "prdit-archive")
    added: list[tuple[str, str]] = []
    try:
        if isinstance(source, BucketPath):
            there = [name for name in files if folders[name.rpartition("/")[0]]]
            remove_leftovers(temporary)
            with naming_path(temporary):
                place.mkdir(mode=0o700, exist_ok=True)
            added += [(str(source), name) for name in there]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for key, copy in zip(
                    added, pool.map(partial(_copy_object, source, place), enumerate(there)), strict=True
                ):
                    copies[key] = copy
        for archive, members in wanted.items():
            with open_regular(source, archive) as stream:
                kind = archive_kind(stream)
            if kind not in ("tar.gz", "tar.bz2", "tar.xz"):
                continue
            remove_leftovers(temporary)
            with naming_path(temporary):
                place.mkdir(mode=0o700, exist_ok=True)
            for member, content in read_members(source, archive, kind):
                if content is None or member.name not in members:
                    continue
                copy = place / str(len(added))
                with naming_path(copy), copy.open("wb") as target:
                    shutil.copyfileobj(content, target, _PIECE)
                added.append((str(source), f"{archive}/{member.name}"))
                copies[added[-1]] = copy
                members.discard(member.name)
                if not members:
                    break
        yield
    finally:
        for key in added:
            copies.pop(key, None)
        shutil.rmtree(place, ignore_errors=True)


def _copy_object(source: BucketPath, place: Path, numbered: tuple[int, str]) -> Path:
    number, name = numbered
    copy = place / str(number)
    with open_regular(source, name) as content, naming_path(copy), copy.open("wb") as target:
        shutil.copyfileobj(content, target, _PIECE)
    return copy


# ---- one open archive --------------------------------------------------------------------------------------------------


@dataclass
class _Opened:
    """An archive that can be read anywhere, kept open as a scan's files are mostly of one."""

    key: tuple[object, ...]
    size: int
    stream: BinaryIO
    reader: zipfile.ZipFile | tarfile.TarFile
    members: dict[str, zipfile.ZipInfo | tarfile.TarInfo]


_lock = threading.RLock()
_opened: _Opened | None = None


def _content(source: Path, archive: str, inner: str) -> BinaryIO | None:
    """A file of an archive; None where that is a compressed tar."""
    with _lock:
        opened = _open_archive(source, archive)
        if opened is None:
            return None
        info = opened.members.get(inner)
        if info is None:
            raise FileNotFoundError(errno.ENOENT, "it is not in its archive any more")
        budget = Budget.of(opened.size)
        if isinstance(info, zipfile.ZipInfo):
            return _zip_content(cast("zipfile.ZipFile", opened.reader), info, budget)
        return _tar_content(cast("tarfile.TarFile", opened.reader), info, budget)


def _open_archive(source: Path, archive: str) -> _Opened | None:
    """The archive, from before where it is the same; None for a compressed tar."""
    global _opened
    with open_regular(source, archive) as stream:
        state = status_of(stream)
        key = (str(source), archive, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        if _opened is not None and _opened.key == key:
            return _opened
        kind = archive_kind(stream)
        if kind not in ("zip", "tar"):
            return None
        own = opened_again(stream)
    if _opened is not None:
        _opened.reader.close()
        _opened.stream.close()
        _opened = None
    own.seek(0)
    if kind == "zip":
        reader = zipfile.ZipFile(own)
        infos = {path: info for info, path, reason, _ in _zip_members(reader) if not reason}
        _opened = _Opened(key, state.st_size, own, reader, dict(infos))
    else:
        tar = tarfile.open(fileobj=own, mode="r:", tarinfo=TarHeader)  # noqa: SIM115 - kept open
        found = {path: info for info, path, reason, _ in _tar_members(tar) if not reason}
        _opened = _Opened(key, state.st_size, own, tar, dict(found))
    return _opened


def _split(source: Path, name: str) -> tuple[str, str]:
    """(path of the archive, path in it)."""
    parts = name.split("/")
    for number in range(1, len(parts)):
        archive = "/".join(parts[:number])
        if stat.S_ISREG(mode_of(source, archive)):
            return archive, "/".join(parts[number:])
    raise FileNotFoundError(errno.ENOENT, "no such file")


def _is_folder(source: Path, name: str) -> bool:
    try:
        return stat.S_ISDIR(mode_of(source, name))
    except NotADirectoryError:
        return False


# ---- zip ---------------------------------------------------------------------------------------------------------------


def _read_zip(stream: BinaryIO, budget: Budget) -> Iterator[tuple[Member, BinaryIO | None]]:
    with zipfile.ZipFile(stream) as archive:
        for info, path, reason, detail in _zip_members(archive):
            if reason:
                yield Member(path, info.file_size, reason, detail), None
                continue
            try:
                content = _zip_content(archive, info, budget)
            except TooCostlyError as error:
                yield Member(path, info.file_size, "too_costly", str(error.strerror)), None
            except ARCHIVE_ERRORS as error:
                unpackable = isinstance(error, NotImplementedError)  # by other programs
                found = "archive_member" if unpackable else "unreadable_file"
                yield Member(path, info.file_size, found, _said(error)), None
            else:
                with content:
                    yield Member(path, info.file_size), content


def _zip_members(archive: zipfile.ZipFile) -> list[tuple[zipfile.ZipInfo, str, str, str]]:
    """(entry, path, reason, detail) of every file, in the order in which they lie."""
    infos = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.header_offset)
    names = Counter(posixpath.normpath(info.filename) for info in infos)
    overlapping: set[int] = set()
    reach, last = -1, -1
    for number, info in enumerate(infos):
        if info.header_offset < reach:
            overlapping |= {last, number}
        end = info.header_offset + _LOCAL_HEADER + len(info.orig_filename) + info.compress_size
        if end > reach:
            reach, last = end, number
    found = []
    for number, info in enumerate(infos):
        mode = info.external_attr >> 16
        reason, detail = "", ""
        if number in overlapping:
            reason, detail = "too_costly", "its bytes are those of another member too"
        elif info.flag_bits & _ENCRYPTED:
            reason, detail = "archive_member", "it is encrypted"
        elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            reason, detail = "not_regular_file", f"{_special(stat.S_ISLNK(mode))} in an archive"
        found.append((info, *_checked(info.filename, names, reason, detail)))
    return found


def _zip_content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: Budget) -> BinaryIO:
    """Content of a member; its check sum is verified, as it is read to its end."""
    budget.claim(info.file_size)
    small = info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    with archive.open(info) as stream:
        return _copied(cast("BinaryIO", stream), info.file_size, _SMALL_PIECE if small else _PIECE)


# ---- tar ---------------------------------------------------------------------------------------------------------------


def _read_tar(stream: BinaryIO, kind: str, budget: Budget) -> Iterator[tuple[Member, BinaryIO | None]]:
    plain = stream if kind == "tar" else decompressed(stream, kind.partition(".")[2], budget)
    names: Counter[str] = Counter()
    with tarfile.open(fileobj=plain, mode="r|", tarinfo=TarHeader) as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # it would remember each
            if info.isdir():
                continue
            path, reason, detail = _tar_checked(info, names)
            if reason:
                yield Member(path, info.size, reason, detail), None
                continue
            with _tar_content(archive, info, budget if kind == "tar" else None) as content:
                yield Member(path, info.size), content
        check_tar_end(cast("BinaryIO", archive.fileobj))


def _tar_members(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, str, str]]:
    names: Counter[str] = Counter()
    for info in archive:
        archive.members = []  # type: ignore[attr-defined]
        if not info.isdir():
            yield info, *_tar_checked(info, names)


def _tar_checked(info: tarfile.TarInfo, names: Counter[str]) -> tuple[str, str, str]:
    """(path, reason, detail) of an entry; a name that was there already is left out, as nothing before it can be taken back."""
    path = posixpath.normpath(info.name)
    names[path] += 1
    reason, detail = "", ""
    if info.issym() or info.islnk():
        reason, detail = "not_regular_file", f"{_special(link=True)} in an archive"
    elif not info.isreg():
        reason, detail = "not_regular_file", f"{_special(link=False)} in an archive"
    elif info.issparse():
        reason, detail = "archive_member", "it is a sparse file"
    return _checked(info.name, names, reason, detail)


def _tar_content(archive: tarfile.TarFile, info: tarfile.TarInfo, budget: Budget | None) -> BinaryIO:
    if budget is not None:
        budget.claim(info.size)
    stream = archive.extractfile(info)
    if stream is None:
        raise tarfile.ReadError("it has no content")
    with stream:
        return _copied(cast("BinaryIO", stream), info.size, _PIECE)


# ---- both --------------------------------------------------------------------------------------------------------------


def _checked(name: str, names: Counter[str], reason: str, detail: str) -> tuple[str, str, str]:
    """(path, reason, detail): names that leave the archive, and those it has more than once, are not read."""
    path = posixpath.normpath(name)
    if name.startswith("/") or path.startswith("../") or path in ("..", "."):
        return name, "outside_source", "its name in the archive"
    if not reason and names[path] > 1:
        return path, "archive_member", "the archive has several files of this name"
    return path, reason, detail


def _special(link: bool) -> str:
    return "a link" if link else "a device or pipe"


def _copied(stream: BinaryIO, size: int, piece: int) -> BinaryIO:
    """The whole of a stream that claims a size, seekable: in memory, or in a file that vanishes when closed."""
    if size <= _IN_MEMORY:
        target: BinaryIO = io.BytesIO()
    else:
        with naming_path(Path(tempfile.gettempdir()) / "prdit-archive"):
            target = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 - the caller closes it
    try:
        while data := stream.read(piece):
            with naming_path(Path(tempfile.gettempdir()) / "prdit-archive"):
                target.write(data)
        if target.tell() != size:
            raise EOFError(f"{target.tell()} of {size} bytes are there")
        target.seek(0)
    except BaseException:
        target.close()
        raise
    return target


def _said(error: BaseException) -> str:
    """What went wrong, for a sentence; never a name in the archive."""
    if isinstance(error, NotImplementedError):
        return "its compression is not read"
    if isinstance(error, EOFError) or str(error) == "unexpected end of data":
        return "it ends early"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "its check sum is wrong" if "CRC" in str(error) else "it is damaged"


def _as_os_error(error: BaseException) -> OSError:
    return error if isinstance(error, OSError) and error.strerror else OSError(errno.EIO, _said(error))
