"""Archives for tests, good and hostile, of real bytes."""

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path


def write_archive(path: Path, files: Mapping[str, bytes]) -> Path:
    """A zip or tar by the ending of its name, with these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    mode = {".tar": "w:", ".tgz": "w:gz", ".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}[path.suffix]
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pack_folder(folder: Path, path: Path) -> Path:
    """An archive of all files of a folder, by their names in it."""
    files = {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}
    return write_archive(path, files)


def overlapping_zip(path: Path, number: int, size: int) -> Path:
    """A zip whose directory names one compressed file many times (D. Fifield, A better zip bomb, 2019: full overlap)."""
    data = bytes(size)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(data) + packer.flush()
    crc = zlib.crc32(data)
    name = b"f0000"
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, crc, len(packed), size, len(name), 0) + name + packed
    entries = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, crc, len(packed), size, 5, 0, 0, 0, 0, 0, 0)
        + b"f%04d" % k
        for k in range(number)
    )
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, number, number, len(entries), len(local), 0)
    path.write_bytes(local + entries + end)
    return path


def change_bytes(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes of a file wherever they are."""
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
