"""Hostile sources: their cost is bounded, nothing outside the source is opened, and every good scan beside them is ingested."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from storage.sources.files import open_file
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.factories import small_ingest
from tests.unit.storage.dicom_files import write_series
from tests.unit.storage.sources.archive_files import overlapping_zip

CODE = """
import json, resource, sys
from pathlib import Path
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.factories import small_ingest
config = small_ingest(spacing_mm=4.0, num_levels=1, **json.loads(sys.argv[3]))
report = ingest(Path(sys.argv[1]), Path(sys.argv[2]), config, runner=Local(1))
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
# Not ru_maxrss of this process: before it started another program it was a copy of the one that ran it.
own = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
peak = max(own, used[1].ru_maxrss)
print(json.dumps({
    "seconds": sum(use.ru_utime + use.ru_stime for use in used),  # of processors: other work on the machine changes it little
    "peak_mb": peak / 1024,
    "committed": len(report.committed),
    "excluded": report.num_excluded,
    "messages": [e.message for e in [*report.skipped, *report.quarantined]],
}))
"""


def ingested(repository: Path, source: Path, **changes: Any) -> dict[str, Any]:
    """What an ingest in a process of its own made of a source, its seconds and its peak of memory."""
    arguments = [sys.executable, "-c", CODE, str(source), str(source.with_name("store")), json.dumps(changes)]
    done = subprocess.run(arguments, cwd=repository, capture_output=True, text=True, timeout=280, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def deflated(path: Path, size: int) -> None:
    """A CT slice, its data set deflated, with zeros in a private element."""
    write_series(path.parent / "temporary", shape=(1, 8, 8), uid="1.2.9")
    (slice_,) = (path.parent / "temporary").iterdir()
    data = pydicom.dcmread(slice_)
    slice_.unlink()
    slice_.parent.rmdir()
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    plain = io.BytesIO()
    head = Dataset({k: v for k, v in data.items() if k.group <= 0x28})
    head.private_block(0x11, "BOMB", create=True).add_new(1, "OB", b"")
    data.save_as(plain, enforce_file_format=True)
    raw = plain.getvalue()
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    bomb = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, size)
    meta_end = 132 + 12 + struct.unpack("<I", raw[140:144])[0]
    original = zlib.decompress(raw[meta_end:], -15)
    pieces = [raw[:meta_end], packer.compress(_before_group(original, 0x0009)), packer.compress(bomb)]
    pieces += [packer.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    pieces += [packer.compress(original[len(_before_group(original, 0x0009)) :]), packer.flush()]
    path.write_bytes(b"".join(pieces))


def _before_group(data: bytes, group: int) -> bytes:
    """The elements of an explicit little endian data set before a group."""
    place = 0
    while struct.unpack_from("<H", data, place)[0] < group:
        kind = data[place + 4 : place + 6]
        long = kind in (b"OB", b"OW", b"SQ", b"UN", b"UT")
        size = struct.unpack_from("<I", data, place + 8)[0] if long else struct.unpack_from("<H", data, place + 6)[0]
        place += (12 if long else 8) + size
    return data[:place]


def nifti_claim(path: Path) -> None:
    """A gzipped NIfTI of zeros that claims 1290³ voxels, and has them."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 1290, 1290, 1290, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    struct.pack_into("<hh", header, 252, 0, 1)
    struct.pack_into("<12f", header, 280, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    header[344:348] = b"n+1\0"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(header)
        for _ in range(1024):
            stream.write(bytes(1 << 20))


def zeros_in_tar(path: Path, opened: Callable[..., Any], size: int) -> None:
    """A compressed tar with a file of zeros."""
    info = tarfile.TarInfo("zeros")
    info.size = size
    with opened(path, "wb") as stream:
        stream.write(info.tobuf())
        for _ in range(size >> 20):
            stream.write(bytes(1 << 20))
        stream.write(bytes(1024))


def sparse_tar(path: Path) -> None:
    """A tar with a file of 1 TiB that has no bytes."""
    info = tarfile.TarInfo("sparse")
    info.type, info.pax_headers = tarfile.REGTYPE, {"GNU.sparse.major": "0", "GNU.sparse.minor": "1"}
    info.pax_headers |= {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40), "GNU.sparse.name": "sparse"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)


BOMBS: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "deflate": ("bomb.dcm", "too_costly", lambda path: deflated(path, 1 << 30)),
    "nifti": ("bomb.nii.gz", "too_large", nifti_claim),
    "overlap": ("bomb.zip", "too_costly", lambda path: overlapping_zip(path, 2000, 16 << 20)),
    "tar.bz2": ("bomb.tar.bz2", "too_costly", lambda path: zeros_in_tar(path, bz2.open, 300 << 20)),
    "tar.xz": ("bomb.tar.xz", "too_costly", lambda path: zeros_in_tar(path, partial(lzma.open, preset=0), 300 << 20)),
    "sparse": ("bomb.tar", "archive_member", sparse_tar),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_costs_little_and_its_neighbour_nothing(tmp_path: Path, kind: str, repository: Path) -> None:
    name, reason, make = BOMBS[kind]
    write_series(tmp_path / "src" / "good")
    make(tmp_path / "src" / name)
    assert (tmp_path / "src" / name).stat().st_size < 10_000_000
    found = ingested(repository, tmp_path / "src")
    assert found["committed"] == 1
    assert set(found["excluded"]) == {reason}
    assert found["peak_mb"] < 2048
    assert found["seconds"] < 30


def test_only_regular_files_inside_the_source_are_opened(tmp_path: Path) -> None:
    """A pipe nobody writes to would block its reader, so the test would not end."""
    source, outside = tmp_path / "src", tmp_path / "outside"
    write_series(source / "good")
    write_series(outside / "other", uid="1.2.8")
    os.mkfifo(source / "pipe.dcm")
    (source / "zero.dcm").symlink_to("/dev/zero")
    (source / "file.dcm").symlink_to(outside / "other" / "000.dcm")
    (source / "folder").symlink_to(outside)
    (source / "again").symlink_to("good")
    report = ingest(source, tmp_path / "store", small_ingest(spacing_mm=4.0, num_levels=1), runner=Local(1))
    assert len(report.committed) == 1
    assert {
        entry.path: (entry.reason, str(entry.message).partition("(")[2].partition(")")[0]) for entry in report.skipped
    } == {
        "pipe.dcm": ("not_regular_file", ""),
        "zero.dcm": ("outside_source", "a link to a character device"),
        "file.dcm": ("outside_source", "a link to a file"),
        "folder": ("outside_source", "a link to a folder"),
    }
    assert not report.quarantined


@pytest.mark.parametrize(("name", "number"), [("d", 1100), ("a folder with a name that is long", 1100)])
def test_a_scan_below_1100_folders(tmp_path: Path, name: str, number: int) -> None:
    write_series(tmp_path / "series", shape=(8, 8, 8))
    write_series(tmp_path / "src" / "good", shape=(9, 8, 8), uid="1.2.8")
    here = os.open(tmp_path / "src", os.O_RDONLY)
    for _ in range(number):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    for path in (tmp_path / "series").iterdir():
        os.rename(path, path.name, dst_dir_fd=here)
    os.close(here)
    try:
        report = ingest(
            tmp_path / "src", tmp_path / "store", small_ingest(spacing_mm=4.0, num_levels=1), runner=Local(1)
        )
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "src")], check=True)  # deeper than shutil.rmtree goes
    assert sorted(str(entry.series_uid) for entry in report.committed) == ["1.2.3.4.5", "1.2.8"]
    assert report.num_excluded == {}


ODD_NAMES = [
    b"line\nbreak",
    b"$(touch here)",
    b"quote'\"",
    b"caf\xe9",
    b"-rf",
    b" ",
    b"a\\b",
    b"\xff\xfe",
    "ж 肺".encode(),
]


@pytest.mark.parametrize("packed", [False, True])
def test_odd_names_are_only_names(tmp_path: Path, packed: bool) -> None:
    write_series(tmp_path / "series", shape=(len(ODD_NAMES), 8, 8))
    source = tmp_path / "src"
    source.mkdir()
    for name, path in zip(ODD_NAMES, sorted((tmp_path / "series").iterdir()), strict=True):
        path.rename(source / os.fsdecode(name))
    if packed:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            tar.add(source, "inner")
        shutil.rmtree(source)
        source.mkdir()
        (tmp_path / "x.tar").rename(source / "x.tar")
    (source / "other\n$(x)").write_text("no image, and a name that is none")
    report = ingest(source, tmp_path / "store", small_ingest(spacing_mm=4.0, num_levels=1), runner=Local(1))
    assert len(report.committed) == 1
    assert report.committed[0].num_slices == len(ODD_NAMES)
    assert [(entry.reason, entry.path) for entry in report.skipped] == [("unknown_format", "other\n$(x)")]


def test_a_file_that_is_swapped_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    os.mkfifo(tmp_path / "src" / "a")
    with pytest.raises(OSError, match="it is a named pipe now"), open_file(tmp_path / "src", "a"):
        pass
    (tmp_path / "src" / "b").symlink_to("../secret")
    with pytest.raises(OSError, match="leads out of the source"), open_file(tmp_path / "src", "b"):
        pass
    (tmp_path / "src" / "c").symlink_to("..")
    with pytest.raises(OSError, match="leads out of the source"), open_file(tmp_path / "src", "c/secret"):
        pass
