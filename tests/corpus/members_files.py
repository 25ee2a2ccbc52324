"""What lies beside and around the images: names, links, special files, archives, damaged files, and input that means harm."""

import io
import os
import socket
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydicom.uid import DeflatedExplicitVRLittleEndian

from tests.corpus.classic import Scan, put, save, scan, write
from tests.corpus.member import Expect, Place, Write, member
from tests.corpus.members_valid import one

# -- kind 16


def _named(name: str, *, folder: bool = False) -> Write:
    def write_it(place: Place) -> Expect:
        made = scan(place)
        paths = save(place, made.slices)
        text = os.fsdecode(name.encode("latin-1")) if "\xfc" in name else name
        for k, path in enumerate(paths):
            if folder:
                target = path.parent / text / path.name
                target.parent.mkdir(exist_ok=True)
            else:
                target = path.with_name(f"{k:03d}{text}")
            path.rename(target)
        return Expect(volumes=(made.right(),))

    return write_it


for _name, _text, _folder in (
    ("latin_1_file", "M\xfcller.dcm", False),
    ("latin_1_folder", "M\xfcller", True),
    ("newline", "a\nb.dcm", False),
    ("quotes", "'\"`.dcm", False),
    ("shell", "$(touch owned);{0}%s.dcm", False),
    ("spaces", "  lung  .dcm ", True),
    ("long", "x" * 220, True),
    ("emoji", "🫁胸部.dcm", False),
    ("dash", "-rf", True),
    ("backslash", "a\\b.dcm", False),
    ("zip_in_a_folders_name", "scan.zip", True),
):
    member("16", "listing", name=f"name_{_name}", broken=False)(_named(_text, folder=_folder))


# -- kind 18


def _outside(place: Place, path: Path) -> Path:
    """Move a file out of the source."""
    outside = place.folder.parent.parent / "outside"
    outside.mkdir(exist_ok=True)
    path.rename(outside / f"{place.name}-{path.name}")
    return outside / f"{place.name}-{path.name}"


@member("18", "listing")
def link_to_a_file_outside(place: Place) -> Expect:
    made, other = scan(place), scan(place, series=2)
    save(place, made.slices)
    (path,) = save(place, other.slices[:1], folder="other")
    target = _outside(place, path)
    path.symlink_to(target)
    return Expect(volumes=(made.right(),), reasons=("outside_source",))


@member("18", "listing")
def link_to_a_slice_outside(place: Place) -> Expect:
    made = scan(place)
    paths = save(place, made.slices)
    paths[12].symlink_to(_outside(place, paths[12]))
    return Expect(reasons=("outside_source", "missing_slices"))


@member("18", "listing")
def link_to_a_folder_outside(place: Place) -> Expect:
    made = scan(place)
    save(place, made.slices)
    save(place, scan(place, series=2).slices, folder="other")
    target = _outside(place, place.folder / "other")
    (place.folder / "other").symlink_to(target)
    return Expect(volumes=(made.right(),), reasons=("outside_source",))


@member("18", "listing")
def link_relative_to_a_file_outside(place: Place) -> Expect:
    made = scan(place)
    save(place, made.slices)
    (place.folder.parent.parent / "secret.dcm").write_bytes(b"secret" * 100)
    (place.folder / "link").symlink_to("../../secret.dcm")
    return Expect(volumes=(made.right(),), reasons=("outside_source",))


@member("18", "listing", broken=False)
def link_within_the_source(place: Place) -> Expect:
    """The same file by two names: counted as a repeat, or listed once."""
    made = scan(place)
    paths = save(place, made.slices)
    (place.folder / "again").symlink_to(paths[3].name)
    return Expect(volumes=(made.right(num_duplicates=1),), alternatives=(Expect(volumes=(made.right(),)),))


@member("18", "listing", broken=False)
def link_to_a_folder_within_the_source(place: Place) -> Expect:
    made = scan(place)
    save(place, made.slices, folder="in")
    (place.folder / "loop").symlink_to(".")
    (place.folder / "again").symlink_to("in")
    return Expect(
        volumes=(made.right(),),
        reasons=("outside_source?",),
        alternatives=(Expect(volumes=(made.right(num_duplicates=24),)),),
    )


@member("18", "listing")
def link_to_a_device(place: Place) -> Expect:
    made = scan(place)
    save(place, made.slices)
    (place.folder / "zero").symlink_to("/dev/zero")
    return Expect(volumes=(made.right(),), reasons=("outside_source|not_regular_file",))


def _special(make: Callable[[Path], Any]) -> Write:
    def write_it(place: Place) -> Expect:
        made = scan(place)
        save(place, made.slices)
        make(place.folder / "special")
        return Expect(volumes=(made.right(),), reasons=("not_regular_file",))

    return write_it


def _socket(path: Path) -> None:
    """Made under a short name: the system allows about a hundred characters."""
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


for _name, _make in {
    "pipe": os.mkfifo,
    "socket": _socket,
    "link_that_is_broken": lambda path: path.symlink_to("nowhere"),
    "link_to_itself": lambda path: path.symlink_to(path.name),
}.items():
    member("18", "listing", name=f"special_{_name}")(_special(_make))


# -- files that are no images


def _junk(content: bytes, reason: str) -> Write:
    def write_it(place: Place) -> Expect:
        (place.folder).mkdir(parents=True)
        (place.folder / "junk.dcm").write_bytes(content)
        return one(place, scan(place), reasons=(reason,))

    return write_it


for _name, (_content, _reason) in {
    "empty": (b"", "unreadable_file"),
    "zeros": (bytes(5000), "unreadable_file"),
    "text": (b"this is text and no image at all\n" * 20, "unknown_format"),
    "preamble_alone": (b"\0" * 128 + b"DICM", "unreadable_file|unknown_format|not_ct"),
    "preamble_and_noise": (b"\0" * 128 + b"DICM" + bytes(range(7, 251)) * 9, "unreadable_file|unknown_format|not_ct"),
    "group_8_and_noise": (b"\x08\x00" + bytes(range(7, 251)) * 9, "unreadable_file|unknown_format|not_ct"),
    "lengths_that_lie": (
        b"\0" * 128 + b"DICM\x08\x00\x05\x00UN\0\0\xfe\xff\xff\x7f" + b"x" * 80,
        "unreadable_file|unknown_format|not_ct|too_costly",
    ),
    "png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 400, "unknown_format"),
    "pdf": (b"%PDF-1.7\n" + b"x" * 400, "unknown_format"),
}.items():
    member("other", "listing", name=f"junk_{_name}")(_junk(_content, _reason))


def _cut_to(size: int) -> Write:
    """A copy that broke off: of the last files only a name, or a beginning, is there."""

    def write_it(place: Place) -> Expect:
        geometry = place.world.geometry.turned(spacing_mm=(8.0, 8.6, 8.2))
        made = scan(place, geometry=geometry)
        for path in save(place, made.slices, name="IM{:04d}")[22:]:
            path.write_bytes(path.read_bytes()[:size])
        whole = replace(made, positions=geometry.positions[:22])
        return Expect(volumes=(whole.right(),), reasons=("unreadable_file",) * 2, notes=("2 .*cannot be read",))

    return write_it


for _size in (0, 100, 200, 400):
    member("other", "listing", name=f"last_files_cut_to_{_size}_bytes")(_cut_to(_size))


@member("other", "listing")
def unreadable_by_its_permissions(place: Place) -> Expect:
    """Root reads everything: then it is one more repeat."""
    made = scan(place)
    paths = save(place, made.slices)
    copy = place.folder / "locked"
    copy.write_bytes(paths[0].read_bytes())
    copy.chmod(0)
    if os.geteuid() == 0:
        return Expect(volumes=(made.right(num_duplicates=1),))
    return Expect(volumes=(made.right(),), reasons=("unreadable_file",))


@member("other", "listing", broken=False)
def sixty_folders_deep(place: Place) -> Expect:
    made = scan(place)
    save(place, made.slices, folder="/".join("d" * (1 + k % 3) for k in range(60)))
    return Expect(volumes=(made.right(),))


# -- archives


def _zip(place: Place, made: Scan, *, compression: int = zipfile.ZIP_DEFLATED, inside: str = "scan") -> Path:
    paths = save(place, made.slices, folder="unpacked")
    with zipfile.ZipFile(place.folder / "scan.zip", "w", compression) as archive:
        for path in paths:
            archive.write(path, f"{inside}/{path.name}")
    _remove(place.folder / "unpacked")
    return place.folder / "scan.zip"


def _tar(place: Place, made: Scan, mode: str, name: str) -> Path:
    paths = save(place, made.slices, folder="unpacked")
    with tarfile.open(place.folder / name, mode) as archive:  # type: ignore[call-overload]
        for path in paths:
            archive.add(path, f"scan/{path.name}")
    _remove(place.folder / "unpacked")
    return place.folder / name


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def _in_tar(mode: str, name: str) -> Write:
    def write_it(place: Place) -> Expect:
        made = scan(place)
        _tar(place, made, mode, name)
        return Expect(volumes=(made.right(),))

    return write_it


for _name, _mode, _file in (
    ("tar", "w", "scan.tar"),
    ("tar_gz", "w:gz", "scan.tar.gz"),
    ("tar_bz2", "w:bz2", "scan.tbz"),
    ("tar_xz", "w:xz", "scan.tar.xz"),
):
    member("valid", "listing", name=f"archive_{_name}")(_in_tar(_mode, _file))


@member("valid", "listing")
def archive_zip(place: Place) -> Expect:
    made = scan(place)
    _zip(place, made)
    return Expect(volumes=(made.right(),))


@member("valid", "listing")
def archive_zip_stored(place: Place) -> Expect:
    made = scan(place)
    _zip(place, made, compression=zipfile.ZIP_STORED)
    return Expect(volumes=(made.right(),))


@member("valid", "listing")
def archive_beside_its_content(place: Place) -> Expect:
    """Packed and unpacked: the same slices twice."""
    made = scan(place)
    _zip(place, made)
    save(place, made.slices)
    return Expect(volumes=(made.right(num_duplicates=24),))


@member("valid", "listing")
def archive_of_half_a_series(place: Place) -> Expect:
    """The other half lies beside it."""
    made = scan(place)
    half = Scan(made.slices[:12], made.geometry, made.hu)
    _zip(place, half)
    save(place, made.slices[12:], start=12)
    return Expect(volumes=(made.right(),))


@member("hostile", "listing")
def archive_cut_short(place: Place) -> Expect:
    """A zip without its directory."""
    made = scan(place)
    path = _zip(place, made)
    path.write_bytes(path.read_bytes()[:-3000])
    return one(place, scan(place, series=2), reasons=("unreadable_file",))


@member("hostile", "listing")
def archive_tar_gz_cut_short(place: Place) -> Expect:
    """The stack is not whole, so it is not read."""
    made = scan(place)
    path = _tar(place, made, "w:gz", "scan.tar.gz")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    other = scan(place, series=2, hu=lambda w: place.world.hu(w) - 30)
    save(place, other.slices)
    right = other.right()
    return Expect(volumes=(right,), reasons=("unreadable_file",) * 2)


@member("hostile", "listing")
def archive_member_damaged(place: Place) -> Expect:
    """One member's check sum is wrong: a gap."""
    made = scan(place)
    path = _zip(place, made, compression=zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.infolist()[12].header_offset
    data[start + 900] ^= 0xFF
    path.write_bytes(bytes(data))
    return Expect(reasons=("archive_member|unreadable_file", "missing_slices?"))


@member("hostile", "listing")
def archive_encrypted(place: Place) -> Expect:
    """The bit that says that members are encrypted is set in each."""
    made = scan(place)
    path = _zip(place, made)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        starts = [info.header_offset for info in archive.infolist()]
    for start in starts:
        data[start + 6] |= 1
    at = -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
        data[at + 8] |= 1
    path.write_bytes(bytes(data))
    return one(place, scan(place, series=2), reasons=("archive_member*",), alternatives=())


@member("hostile", "listing")
def archive_that_climbs(place: Place) -> Expect:
    """Members named `../../…` and `/tmp/…` are never written there; whether they are read is open, the good ones are."""
    made = scan(place)
    path = _zip(place, made)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../climbed.dcm", b"climbed" * 50)
        archive.writestr("/tmp/prdit-climbed.dcm", b"climbed" * 50)
    return Expect(volumes=(made.right(),), reasons=("archive_member|unknown_format|outside_source",) * 2)


@member("hostile", "listing")
def archive_with_links(place: Place) -> Expect:
    """A tar with a link that leaves it, a pipe and a device."""
    made = scan(place)
    path = _tar(place, made, "w", "scan.tar")
    with tarfile.open(path, "a") as archive:
        for name, kind, target in (
            ("passwd", tarfile.SYMTYPE, "/etc/passwd"),
            ("pipe", tarfile.FIFOTYPE, ""),
            ("disk", tarfile.BLKTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return Expect(volumes=(made.right(),), reasons=("not_regular_file|outside_source|archive_member",) * 3)


@member("hostile", "listing")
def archive_in_an_archive(place: Place) -> Expect:
    """An inner archive is named, not lost: read, or listed as an archive."""
    made, inner = scan(place), scan(place, series=2, hu=lambda w: place.world.hu(w) - 30)
    packed = _zip(place, inner)
    content = packed.read_bytes()
    packed.unlink()
    outer = _zip(place, made)
    with zipfile.ZipFile(outer, "a") as archive:
        archive.writestr("scan/inner.zip", content)
    both = Expect(volumes=(made.right(), inner.right()))
    return Expect(volumes=(made.right(),), reasons=("archive|archive_member",), alternatives=(both,))


@member("hostile", "listing")
def archive_with_two_members_of_one_name(place: Place) -> Expect:
    """Equal ones. The second is named or counted as a repeat; or neither is trusted, which leaves a gap."""
    made = scan(place)
    path = _zip(place, made)
    with zipfile.ZipFile(path) as archive:
        name, data = archive.namelist()[4], archive.read(archive.namelist()[4])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, data)
    return Expect(
        volumes=(made.right(),),
        reasons=("archive_member?",),
        alternatives=(
            Expect(volumes=(made.right(num_duplicates=1),)),
            Expect(reasons=("archive_member*", "missing_slices")),
        ),
    )


# -- kind 19


def deflated_zeros(total: int) -> bytes:
    """Zeros as raw deflate, made from few."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = b"\0" * (1 << 20)
    return b"".join(packer.compress(piece) for _ in range(total >> 20)) + packer.flush()


def _bomb(total: int) -> Write:
    """A deflated slice with a private tag of zeros, beside a good series."""

    def write_it(place: Place) -> Expect:
        made = scan(place, series=2)
        data = made.slices[0]
        path = place.folder / "bomb.dcm"
        write(path, data, DeflatedExplicitVRLittleEndian)
        content = path.read_bytes()
        stream = io.BytesIO()
        plain = put(scan(place, series=2).slices[0])
        write(place.folder / "plain.dcm", plain)
        stream.write((place.folder / "plain.dcm").read_bytes())
        (place.folder / "plain.dcm").unlink()
        meta_end = 132 + 12 + int.from_bytes(content[140:144], "little")
        body = stream.getvalue()
        body_start = 132 + 12 + int.from_bytes(body[140:144], "little")
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        tag = b"\x09\x00\x10\x00LO\x04\x00ACME\x09\x00\x01\x10OB\0\0" + total.to_bytes(4, "little")
        # In front of everything else that matters: a reader has to pass it.
        packed = packer.compress(tag)
        piece = b"\0" * (1 << 20)
        packed += b"".join(packer.compress(piece) for _ in range(total >> 20))
        packed += packer.compress(body[body_start:]) + packer.flush()
        path.write_bytes(content[:meta_end] + packed)
        good = scan(place)
        save(place, good.slices)
        return Expect(volumes=(good.right(),), reasons=("too_costly|unreadable_file",))

    return write_it


member("19", "listing", name="deflate_bomb_of_a_gigabyte", slow=True)(_bomb(1 << 30))
member("19", "listing", name="deflate_bomb_of_200_megabytes", slow=True)(_bomb(200 << 20))


@member("19", "listing", slow=True)
def zip_bomb(place: Place) -> Expect:
    made = scan(place)
    save(place, made.slices)
    with (
        zipfile.ZipFile(place.folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("zeros.dcm", "w", force_zip64=True) as stream,
    ):
        for _ in range(1024):
            stream.write(b"\0" * (1 << 20))
    return Expect(volumes=(made.right(),), reasons=("too_costly|archive_member|archive",))


@member("19", "listing", slow=True)
def gzip_bomb(place: Place) -> Expect:
    """A gigabyte of zeros as `.nii.gz`: no image that is read."""
    made = scan(place)
    save(place, made.slices)
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\3"
    (place.folder / "bomb.nii.gz").write_bytes(head + deflated_zeros(1 << 30) + b"\0" * 8)
    return Expect(volumes=(made.right(),), reasons=("too_costly|unreadable_file",))


@member("19", "multi-frame")
def header_that_claims_65535_rows(place: Place) -> Expect:
    made = scan(place, series=2).put(Rows=65535, Columns=65535)
    good = scan(place)
    save(place, good.slices)
    save(place, made.slices, folder="large")
    return Expect(volumes=(good.right(),), reasons=("unreadable_pixels|too_costly|too_large",))
