"""Archives: their files by name and content, in any order; what cannot be trusted is named, and its neighbours are read."""

import gzip
import io
import os
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.errors import UnwritableError
from storage.sources.archive_streams import Budget, TooCostlyError
from storage.sources.archives import READ_KINDS, archive_kind, copied, read_members
from storage.sources.files import open_file
from tests.unit.disks import small_disk
from tests.unit.storage.sources.archive_files import change_bytes, overlapping_zip, write_archive

FILES = {"a/one": b"first" * 100, "a/two": b"", "b": bytes(range(256)) * 300}
ENDINGS = {"zip": "zip", "tar": "tar", "tar.gz": "tgz", "tar.bz2": "tar.bz2", "tar.xz": "tar.xz"}


def members(source: Path, name: str) -> tuple[dict[str, bytes], dict[str, tuple[str, str]]]:
    """(content of the files that are read, reason and detail of the others)."""
    with open_file(source, name) as stream:
        kind = archive_kind(stream)
    good, bad = {}, {}
    for member, content in read_members(source, name, kind):
        if content is None:
            bad[member.name] = (member.reason, member.detail)
        else:
            good[member.name] = content.read()
            assert len(good[member.name]) == member.size
    return good, bad


@pytest.mark.parametrize("kind", READ_KINDS)
def test_files_by_name_and_content_in_any_order(tmp_path: Path, kind: str) -> None:
    name = f"x.{ENDINGS[kind]}"
    write_archive(tmp_path / "in" / name, FILES)
    with (tmp_path / "in" / name).open("rb") as stream:
        assert archive_kind(stream) == kind
    assert members(tmp_path, f"in/{name}") == (FILES, {})
    for member in ("b", "a/one", "b", "a/two"):
        with open_file(tmp_path, f"in/{name}/{member}") as stream:
            assert stream.read() == FILES[member]
            stream.seek(3)
            assert stream.read(4) == FILES[member][3:7]
    with pytest.raises(OSError, match="not in its archive"), open_file(tmp_path, f"in/{name}/none"):
        pass


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_compression_of_zip_and_zip64(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        for name, data in FILES.items():
            with archive.open(name, "w", force_zip64=True) as stream:
                stream.write(data)
    assert members(tmp_path, "x.zip") == (FILES, {})


@pytest.mark.parametrize("ending", ["tgz", "tar.xz"])
def test_compressed_tars_are_unpacked_once_and_removed(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    write_archive(tmp_path / f"x.{ending}", FILES)
    (tmp_path / "plain").write_bytes(b"plain")
    passes = []
    real = read_members

    def counted(*arguments: object) -> object:
        passes.append(arguments)
        return real(*arguments)

    monkeypatch.setattr("storage.sources.archives.read_members", counted)
    with copied(tmp_path, ["plain", f"x.{ending}/b", f"x.{ending}/a/one"]):
        for _ in range(3):
            for member in ("b", "a/one"):
                with open_file(tmp_path, f"x.{ending}/{member}") as stream:
                    assert stream.read() == FILES[member]
        assert len(list((tmp_path / "tmp").iterdir())) == 1
    assert len(passes) == 1
    assert not list((tmp_path / "tmp").iterdir())


def test_a_zip_that_is_replaced_is_opened_again(tmp_path: Path) -> None:
    write_archive(tmp_path / "x.zip", {"a": b"old"})
    with open_file(tmp_path, "x.zip/a") as stream:
        assert stream.read() == b"old"
    write_archive(tmp_path / "y.zip", {"a": b"newer"})
    (tmp_path / "y.zip").replace(tmp_path / "x.zip")
    with open_file(tmp_path, "x.zip/a") as stream:
        assert stream.read() == b"newer"


def test_names_that_leave_links_devices_and_repeats(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in {
            "../up": tarfile.REGTYPE,
            "/etc/passwd": tarfile.REGTYPE,
            "link": tarfile.SYMTYPE,
            "hard": tarfile.LNKTYPE,
            "device": tarfile.CHRTYPE,
            "pipe": tarfile.FIFOTYPE,
            "./good": tarfile.REGTYPE,
            "a/../good": tarfile.REGTYPE,
        }.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"data"))
    good, bad = members(tmp_path, "x.tar")
    assert good == {"good": b"data"}
    assert bad.pop("good") == ("archive_member", "the archive has several files of this name")
    assert bad == {
        "../up": ("outside_source", "its name in the archive"),
        "/etc/passwd": ("outside_source", "its name in the archive"),
        "link": ("not_regular_file", "a link in an archive"),
        "hard": ("not_regular_file", "a link in an archive"),
        "device": ("not_regular_file", "a device or pipe in an archive"),
        "pipe": ("not_regular_file", "a device or pipe in an archive"),
    }


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_faulty_members_of_a_zip_cost_no_neighbour(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good", b"good bytes")
        archive.writestr("bad crc", b"bytes that change")
        archive.writestr("twice", b"1")
        archive.writestr("twice", b"2")
        archive.writestr("../up", b"x")
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("last", b"last bytes")
    change_bytes(path, b"bytes that change", b"bytes that CHANGE")
    assert members(tmp_path, "x.zip") == (
        {"good": b"good bytes", "last": b"last bytes"},
        {
            "bad crc": ("unreadable_file", "its check sum is wrong"),
            "twice": ("archive_member", "the archive has several files of this name"),
            "../up": ("outside_source", "its name in the archive"),
            "link": ("not_regular_file", "a link in an archive"),
        },
    )
    with pytest.raises(OSError, match="not in its archive"), open_file(tmp_path, "x.zip/twice"):
        pass


@pytest.mark.parametrize(
    ("offset", "value", "detail"), [(8, 1, "it is encrypted"), (10, 9, "its compression is not read")]
)
def test_encrypted_or_unknown_compression(tmp_path: Path, offset: int, value: int, detail: str) -> None:
    path = write_archive(tmp_path / "x.zip", {"good": b"good" * 9, "other": b"other" * 9})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\1\2")  # the directory's entry of `other`
    data[entry + offset : entry + offset + 2] = struct.pack("<H", value)
    path.write_bytes(data)
    assert members(tmp_path, "x.zip") == ({"good": b"good" * 9}, {"other": ("archive_member", detail)})


@pytest.mark.parametrize(("claim", "detail"), [(10, "its check sum is wrong"), (10_000, "it ends early")])
def test_a_size_that_lies(tmp_path: Path, claim: int, detail: str) -> None:
    path = write_archive(tmp_path / "x.zip", {"good": b"good" * 9, "lie": bytes(1000)})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\1\2")
    data[entry + 24 : entry + 28] = struct.pack("<I", claim)
    path.write_bytes(data)
    good, bad = members(tmp_path, "x.zip")
    assert good == {"good": b"good" * 9}
    assert bad == {"lie": ("unreadable_file", detail)}


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    overlapping_zip(tmp_path / "overlap.zip", 200, 1 << 20)
    good, bad = members(tmp_path, "overlap.zip")
    assert good == {}
    assert len(bad) == 200
    assert set(bad.values()) == {("too_costly", "its bytes are those of another member too")}
    write_archive(tmp_path / "bomb.zip", {"small": b"small", "bomb": bytes(300 << 20), "behind": b"behind"})
    assert (tmp_path / "bomb.zip").stat().st_size < 1 << 20
    good, bad = members(tmp_path, "bomb.zip")
    assert good == {"small": b"small", "behind": b"behind"}
    assert bad == {"bomb": ("too_costly", "the archive unpacks to more than 100 times its size")}


def test_a_compressed_tar_is_read_as_far_as_its_size_accounts_for(tmp_path: Path) -> None:
    write_archive(tmp_path / "x.tgz", {"small": b"small", "bomb": bytes(300 << 20), "behind": b"behind"})
    found = read_members(tmp_path, "x.tgz", "tar.gz")
    member, content = next(found)
    assert content is not None
    assert (member.name, content.read()) == ("small", b"small")
    with pytest.raises(TooCostlyError, match="more than 100 times its size"):
        next(found)


def no_end(data: bytes) -> bytes:
    """A tar cut off exactly behind its second file."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return data[: tar.getmembers()[2].offset]


def second_header(data: bytes) -> int:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()[1].offset


DAMAGED_TARS: dict[str, tuple[Callable[[bytes], bytes], str, int]] = {  # damage, detail, files before it
    "no end": (no_end, "it ends early", 2),
    "in a header": (lambda data: no_end(data) + data[len(no_end(data)) :][:200], "it ends early", 2),
    "a header of noise": (
        lambda data: data[: second_header(data)] + os.urandom(512) + data[second_header(data) + 512 :],
        "it is damaged",
        1,
    ),
    "a header of zeros": (
        lambda data: data[: second_header(data)] + bytes(512) + data[second_header(data) + 512 :],
        "it is damaged",
        1,
    ),
    "a tail of zeros": (lambda data: no_end(data) + bytes(2 << 20), "it ends early", 2),
}


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize("damage", DAMAGED_TARS)
def test_a_tar_ends_where_it_says_so(tmp_path: Path, damage: str, kind: str) -> None:
    """Python's `tarfile` takes any of these for a shorter archive."""
    change, detail, num_files = DAMAGED_TARS[damage]
    data = change(write_archive(tmp_path / "x.tar", FILES).read_bytes())
    (tmp_path / "y").write_bytes(gzip.compress(data) if kind == "tar.gz" else data)
    found = []
    with pytest.raises(OSError, match=detail):
        found.extend(member.name for member, _ in read_members(tmp_path, "y", kind))
    assert found == list(FILES)[:num_files]


def test_damaged_directory_and_sum_are_named(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "x.zip", FILES)
    data = path.read_bytes()
    with path.open("rb") as stream:
        assert archive_kind(stream) == "zip"
    for changed in (data[:-100], data[: len(data) // 2], data[:-22] + bytes(22), b"PK\3\4" + os.urandom(500)):
        path.write_bytes(changed)
        with path.open("rb") as stream:
            assert archive_kind(stream) == "zip"
        with pytest.raises(OSError, match="its directory is missing or damaged"):
            members(tmp_path, "x.zip")
    data = bytearray(write_archive(tmp_path / "x.tgz", FILES).read_bytes())
    data[-6] ^= 1  # of the check sum
    (tmp_path / "x.tgz").write_bytes(data)
    with pytest.raises(OSError, match="its check sum is wrong"):
        members(tmp_path, "x.tgz")


def test_a_tar_of_before_1988_has_no_magic(tmp_path: Path) -> None:
    info = tarfile.TarInfo("old")
    info.size = 3
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[257:512] = bytes(255)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(header + b"abc" + bytes(509 + 1024))
    assert members(tmp_path, "x.tar") == ({"old": b"abc"}, {})


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz", "x.tar.bz2", "x.tar.xz"])
def test_a_truncated_archive_is_an_error_of_the_system(tmp_path: Path, name: str) -> None:
    path = write_archive(tmp_path / name, {"one": os.urandom(5000), "two": os.urandom(50_000)})
    path.write_bytes(path.read_bytes()[:30_000])
    kind = {v: k for k, v in ENDINGS.items()}[name.removeprefix("x.")]
    with pytest.raises(OSError, match=r"it ends early|its directory is missing"):
        list(read_members(tmp_path, name, kind))


def test_other_archives_and_documents_are_told_apart(tmp_path: Path) -> None:
    write_archive(tmp_path / "table.zip", {"[Content_Types].xml": b"<x/>", "xl/workbook.xml": b"<x/>"})
    for data, kind in {
        b"7z\xbc\xaf\x27\x1c" + bytes(600): "7z",
        b"Rar!\x1a\x07" + bytes(600): "rar",
        b"\x1f\x8b\x08" + bytes(600): "gzip",
        b"no archive" * 90: "",
        (tmp_path / "table.zip").read_bytes(): "",
    }.items():
        assert archive_kind(io.BytesIO(data)) == kind


def test_budget_counts() -> None:
    budget = Budget.of(10)
    budget.claim(200 << 20)
    with pytest.raises(TooCostlyError, match="more than 100 times"):
        budget.claim(57 << 20)
    with pytest.raises(TooCostlyError, match=r"5\.0 GiB unpacked"):
        Budget.of(1 << 40).claim(5 << 30)


def test_a_full_folder_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "x.tgz", {"a": os.urandom(3 << 20)})
    with small_disk(tmp_path / "disk", 1024) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        with (
            pytest.raises(UnwritableError, match=rf"^{disk}/.* cannot be written: no space is left"),
            copied(tmp_path, ["x.tgz/a"]),
        ):
            pass
        assert not list(disk.iterdir())
