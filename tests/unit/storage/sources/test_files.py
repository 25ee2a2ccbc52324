"""Walking a source: everything once, links followed once, nothing opened."""

import os
import socket
from pathlib import Path

import pytest

from storage.errors import SourceError
from storage.sources.files import FoundFile, FoundOther, check_source, walk_source


def walked(source: Path) -> tuple[list[str], dict[str, tuple[str, str]]]:
    found = list(walk_source(source))
    files = sorted(one.path for one in found if isinstance(one, FoundFile))
    return files, {one.path: (one.reason, one.detail) for one in found if isinstance(one, FoundOther)}


def test_files_with_size_and_time(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x").write_bytes(b"12345")
    os.utime(tmp_path / "a" / "b" / "x", ns=(1, 1_600_000_000_000_000_007))
    assert list(walk_source(tmp_path)) == [FoundFile("a/b/x", 5, 1_600_000_000_000_000_007)]


def test_a_folder_linked_twice_is_walked_under_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "x").touch()
    (tmp_path / "a").symlink_to("m")
    (tmp_path / "z").symlink_to("m")
    (tmp_path / "m" / "up").symlink_to("..")
    assert walked(tmp_path) == (["a/x"], {})


def test_what_is_no_file_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "self").symlink_to("self")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        files, others = walked(tmp_path)
    assert files == []
    assert others == {
        "pipe": ("not_regular_file", "a named pipe"),
        "socket": ("not_regular_file", "a socket"),
        "dangling": ("not_regular_file", "a broken symbolic link"),
        "self": ("not_regular_file", "a broken symbolic link"),
    }


def test_a_name_that_is_not_utf8_opens(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).write_bytes(b"x")
    (found,) = walk_source(tmp_path)
    assert isinstance(found, FoundFile)
    assert (tmp_path / found.path).read_bytes() == b"x"


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        check_source(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="is not a folder"):
        check_source(tmp_path / "file")
