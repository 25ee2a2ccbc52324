"""The files of a source: a directory walk that tolerates special files, and content hashes cached by size and time."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from storage.errors import SourceError
from storage.files import read_json, sha256_file, sha256_json, write_json_atomic

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFLNK: "a broken symbolic link",
}


@dataclass(frozen=True)
class SourceListing:
    """What a source folder contains.

    Attributes:
        files: relative POSIX paths of regular files (symbolic links followed), sorted.
        others: (relative path, reason code, detail) of what cannot be opened as a file.
    """

    files: tuple[str, ...]
    others: tuple[tuple[str, str, str], ...]


def list_source(source: Path) -> SourceListing:
    """List a folder recursively without opening anything; links to folders are followed once.

    Raises: SourceError: missing, not a folder, unreadable, or without any file.
    """
    source = Path(source)
    if not source.is_dir():
        what = "is not a folder" if source.exists() else "does not exist"
        raise SourceError(f"Source {source} {what}. Give a folder with DICOM files.")
    files: list[str] = []
    others: list[tuple[str, str, str]] = []
    seen: set[tuple[int, int]] = set()

    def failed(error: OSError) -> None:
        others.append((_relative(Path(error.filename), source), "unreadable_file", error.strerror or "no access"))

    for root, folders, names in os.walk(source, followlinks=True, onerror=failed):
        here = Path(root).stat()
        if (here.st_dev, here.st_ino) in seen:  # a loop of links, or a folder linked twice
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders.sort()
        for name in names:
            path = Path(root) / name
            relative = _relative(path, source)
            try:
                mode = path.stat().st_mode
            except OSError as error:
                detail = "a broken symbolic link" if path.is_symlink() else error.strerror or "no access"
                others.append((relative, "not_regular_file" if path.is_symlink() else "unreadable_file", detail))
                continue
            if stat.S_ISREG(mode):
                files.append(relative)
            else:
                others.append((relative, "not_regular_file", _KINDS.get(stat.S_IFMT(mode), "a special file")))
    if not files and not others:
        raise SourceError(f"Source {source} is empty. Give a folder with DICOM files.")
    return SourceListing(tuple(sorted(files)), tuple(sorted(others)))


def _relative(path: Path, source: Path) -> str:
    text = path.relative_to(source).as_posix()
    return text.encode("utf-8", "backslashreplace").decode()  # names that are not UTF-8 must still be valid JSON


def content_hashes(source: Path, files: tuple[str, ...], cache_file: Path) -> dict[str, str]:
    """SHA-256 of every file by relative path; a file of unchanged size and modification time is not read again.

    A file that cannot be read has an empty hash. The cache holds hashed paths only, so it reveals no names.
    """
    root = str(Path(source).resolve())
    try:
        cache: dict[str, list[object]] = read_json(cache_file)
    except (OSError, ValueError):
        cache = {}
    fresh: dict[str, list[object]] = {}
    hashes: dict[str, str] = {}
    for name in files:
        path = Path(source) / name
        key = sha256_json([root, name])[:32]
        try:
            state = path.stat()
            mark = [state.st_size, state.st_mtime_ns]
            known = cache.get(key)
            hashes[name] = str(known[2]) if known and known[:2] == mark else sha256_file(path)
        except OSError:
            hashes[name] = ""
            continue
        fresh[key] = [*mark, hashes[name]]
    if any(cache.get(key) != value for key, value in fresh.items()):
        cache.update(fresh)
        write_json_atomic(cache_file, cache)
    return hashes


def listing_digest(listing: SourceListing, hashes: dict[str, str]) -> str:
    """`sha256:<hex>` of a source: relative paths and contents, independent of machine and modification times."""
    content = sorted([name, digest] for name, digest in hashes.items())
    return "sha256:" + sha256_json({"files": content, "others": [list(other) for other in listing.others]})
