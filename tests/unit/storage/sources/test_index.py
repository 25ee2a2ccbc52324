"""The index of files: what the system refuses while it writes is one error with the cache's path."""

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.errors import UnwritableError
from storage.sources.files import FoundFile
from storage.sources.index import FileIndex, ReadFile


@contextmanager
def small_files(num_bytes: int) -> Iterator[None]:
    """Let this process write files up to that size only, as `ulimit -f` does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def read(count: int) -> list[tuple[FoundFile, ReadFile]]:
    return [(FoundFile(f"{k}.dcm", 1, 1), ReadFile("0" * 64, "dicom", "1.2", study=f"{k:0300}")) for k in range(count)]


def list_all(index: FileIndex) -> None:
    index.add(read(2000))
    index.finish()


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    index = FileIndex(tmp_path / "cache", tmp_path, "k")
    says = (
        rf"^{tmp_path}/cache \(or SQLite's folder .*\) cannot be written: the system reports an error\. .*`ulimit -f`"
    )
    for _ in range(2):
        with small_files(60_000), pytest.raises(UnwritableError, match=says):
            list_all(index)
    list_all(index)  # the limit is gone
    assert index.count() == 2000


def test_sorting_may_need_a_file_too(tmp_path: Path) -> None:
    index = FileIndex(tmp_path / "cache", tmp_path, "k")
    index.add(read(10_000))
    assert len(index.images_of_studies()) == 10_000
    with small_files(1000), pytest.raises(UnwritableError, match="the system reports an error"):
        index.images_of_studies()


def test_a_cache_that_became_read_only(tmp_path: Path) -> None:
    index = FileIndex(tmp_path / "cache", tmp_path, "k")
    index._connection.execute("PRAGMA query_only = 1")  # SQLITE_READONLY, as on a file system mounted read-only
    with pytest.raises(UnwritableError, match=r"cannot be written: it is read-only\. Change its permissions"):
        index.add(read(2000))


def test_a_fault_of_ours_stays_one(tmp_path: Path) -> None:
    index = FileIndex(tmp_path / "cache", tmp_path, "k")
    index._connection.execute("DROP TABLE temp.listed")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        index.count()


def test_the_folder_of_the_cache_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableError, match="file"):
        FileIndex(tmp_path / "file" / "cache", tmp_path, "k")


def test_rows_that_nobody_takes_may_outlive_the_index(tmp_path: Path) -> None:
    """As when a run ends with an error, whose traceback keeps the generator."""
    index = FileIndex(tmp_path / "cache", tmp_path, "k")
    index.add((FoundFile(f"{k}.dcm", 1, 1), ReadFile("0" * 64)) for k in range(3))
    rows = index._rows("SELECT name FROM temp.listed ORDER BY name")
    assert next(rows) == ("0.dcm",)
    index.close()
    rows.close()  # as when it is deleted
