"""NRRD: placed and read as SimpleITK does, in every encoding; headers that lie, and files that are elsewhere, by name."""

import bz2
import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from storage.geometry import FILL_HU
from tests.unit.storage.sources.single_files import (
    DIRECTIONS,
    SHAPE,
    SPACING,
    VALUES,
    assert_world_linear,
    centre_origin,
    facts_of,
    load,
    refused,
    world_linear,
)

_NAMES = {"i2": "short", "i4": "int", "u1": "uchar", "u2": "unsigned short", "f4": "float", "f8": "double"}
_TO_SPACE = {
    "left-posterior-superior": (1, 1, 1), "right-anterior-superior": (-1, -1, 1), "left-anterior-superior": (1, -1, 1),
    "LPS": (1, 1, 1), "RAS": (-1, -1, 1),
}  # fmt: skip


def vector(values: Any) -> str:
    return "(" + ",".join(repr(float(v)) for v in values) + ")"


def header(values: np.ndarray, steps: np.ndarray, space: str = "left-posterior-superior") -> dict[str, str]:
    flip = np.asarray(_TO_SPACE[space])
    return {
        "type": _NAMES[values.dtype.str[1:]],
        "dimension": "3",
        "space": space,
        "sizes": " ".join(str(n) for n in values.shape[::-1]),
        "space directions": " ".join(vector(flip * step) for step in steps.T),
        "kinds": "domain domain domain",
        "endian": "big" if values.dtype.byteorder == ">" else "little",
        "encoding": "raw",
        "space units": '"mm" "mm" "mm"',
        "space origin": vector(flip * centre_origin(steps)),
    }


def encoded(values: np.ndarray, encoding: str) -> bytes:
    raw = values.tobytes()
    return {
        "raw": lambda: raw,
        "gzip": lambda: gzip.compress(raw),
        "gz": lambda: gzip.compress(raw),
        "bzip2": lambda: bz2.compress(raw),
        "ascii": lambda: "\n".join(str(v) for v in values.ravel()).encode(),
        "txt": lambda: " ".join(str(v) for v in values.ravel()).encode() + b"\n",
    }[encoding]()


STEPS = np.diag(SPACING)


def write(
    path: Path, values: np.ndarray = VALUES, steps: np.ndarray = STEPS, data: bytes | None = None, **fields: Any
) -> Path:
    """Fields with None are left out; `space_units` means "space units"."""
    space = fields.get("space")
    all_fields = header(values, steps, space if space in _TO_SPACE else "left-posterior-superior")
    all_fields |= {name.replace("_", " "): text for name, text in fields.items()}
    lines = [
        "NRRD0004",
        "# a comment",
        "patient:=SMITH",
        *(f"{k}: {v}" for k, v in all_fields.items() if v is not None),
    ]
    body = encoded(values, all_fields["encoding"]) if data is None else data
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + body)
    return path


@pytest.mark.parametrize("space", _TO_SPACE)
@pytest.mark.parametrize("name", DIRECTIONS)
def test_hu_stays_at_its_place_in_the_world(tmp_path: Path, name: str, space: str) -> None:
    steps = DIRECTIONS[name] * np.array(SPACING)
    values = world_linear(steps, centre_origin(steps)).astype(np.float32)
    write(tmp_path / "a.nrrd", values, steps, space=space)
    scan = load(tmp_path, "a.nrrd")
    np.testing.assert_array_equal(scan.hu, values)
    np.testing.assert_allclose(scan.direction, DIRECTIONS[name], atol=1e-12)
    assert scan.spacing_mm == pytest.approx(SPACING)
    assert scan.origin_mm == pytest.approx(tuple(centre_origin(steps)))
    assert scan.notes == ()
    assert_world_linear(scan)


@pytest.mark.parametrize("name", [name for name in DIRECTIONS if "left-handed" not in name])  # ITK refuses those
def test_simpleitk_writes_and_reads_the_same(tmp_path: Path, name: str) -> None:
    image = sitk.GetImageFromArray(VALUES)
    image.SetSpacing(SPACING)
    image.SetOrigin((3.0, -7.0, 11.0))
    image.SetDirection(DIRECTIONS[name].ravel())
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"), True)
    mine, write_path = load(tmp_path, "a.nrrd"), write(tmp_path / "b.nrrd", steps=DIRECTIONS[name] * np.array(SPACING))
    np.testing.assert_array_equal(mine.hu, VALUES)
    np.testing.assert_allclose(mine.direction.ravel(), image.GetDirection(), atol=1e-12)
    assert mine.spacing_mm == pytest.approx(SPACING)
    assert mine.origin_mm == pytest.approx((3.0, -7.0, 11.0))
    theirs = sitk.ReadImage(str(write_path))
    np.testing.assert_allclose(theirs.GetDirection(), load(tmp_path, "b.nrrd").direction.ravel(), atol=1e-12)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "gz", "bzip2", "ascii", "txt"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<i4", ">f4", "<f8"])
def test_encodings_and_byte_orders(tmp_path: Path, encoding: str, dtype: str) -> None:
    values = VALUES.astype(dtype)
    write(tmp_path / "a.nrrd", values, encoding=encoding)
    np.testing.assert_array_equal(load(tmp_path, "a.nrrd").hu, VALUES)


def test_unsigned_fill_is_recognised(tmp_path: Path) -> None:
    values = VALUES.astype(np.int32)
    values[:, :3, :3] = 62512
    write(tmp_path / "a.nrrd", values)
    scan = load(tmp_path, "a.nrrd")
    assert (scan.hu[:, :3, :3] == FILL_HU).all()
    assert "198 of 10560 voxels in regions above ingest.max_hu = 30719" in scan.notes[0]


def test_skips(tmp_path: Path) -> None:
    raw = VALUES.tobytes()
    write(tmp_path / "lines.nrrd", data=b"one\ntwo\n" + raw, **{"line skip": "2"})
    write(tmp_path / "bytes.nrrd", data=b"x" * 77 + raw, byteskip="77")
    write(tmp_path / "both.nrrd", data=b"one\n" + b"x" * 5 + raw, **{"lineskip": "1", "byte skip": "5"})
    write(tmp_path / "end.nrrd", data=b"x" * 1001 + raw, **{"byte skip": "-1"})
    write(tmp_path / "zipped.nrrd", data=gzip.compress(b"x" * 9 + raw), encoding="gzip", **{"byte skip": "9"})
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(load(tmp_path, path.name).hu, VALUES)


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1.0), ("cm", 10.0), ("m", 1000.0), ("um", 0.001)])
def test_units(tmp_path: Path, unit: str, factor: float) -> None:
    write(tmp_path / "a.nrrd", space_units=f'"{unit}" "{unit}" "{unit}"')
    scan = load(tmp_path, "a.nrrd")
    assert scan.spacing_mm == pytest.approx(tuple(factor * mm for mm in SPACING))
    assert scan.origin_mm == pytest.approx(tuple(factor * centre_origin(STEPS)))


def test_what_is_assumed_is_noted(tmp_path: Path) -> None:
    write(tmp_path / "a.nrrd", space_units=None, space_origin=None)
    scan = load(tmp_path, "a.nrrd")
    assert scan.origin_mm == (0.0, 0.0, 0.0)
    assert ["origin" in scan.notes[0], len(scan.notes)] == [True, 1]


def test_a_header_without_a_unit_is_in_millimetres(tmp_path: Path) -> None:
    """As ITK and 3D Slicer write it."""
    write(tmp_path / "a.nrrd", space_units=None)
    scan = load(tmp_path, "a.nrrd")
    assert (scan.spacing_mm, scan.notes) == (pytest.approx(SPACING), ())


NO_PLACE = {
    "no space": {"space": None},
    "no anatomical space": {"space": "3D-right-handed"},
    "scanner": {"space": "scanner-xyz"},
    "spacings alone": {"space": None, "space directions": None, "spacings": "1.5 1.3 2"},
    "no directions": {"space directions": None},
    "flat": {"space directions": "(1,0,0) (0,1,0) (1,0,0)"},
    "zero": {"space directions": "(1,0,0) (0,1,0) (0,0,0)"},
    "no number": {"space directions": "(1,0,0) (0,nan,0) (0,0,1)"},
    "two numbers": {"space directions": "(1,0) (0,1) (0,0)"},
    "no length": {"space units": '"s" "s" "s"'},
    "origin of two": {"space origin": "(1,2)"},
}


@pytest.mark.parametrize("name", NO_PLACE)
def test_without_a_place_quarantined(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.nrrd", **NO_PLACE[name])
    assert refused(tmp_path, "a.nrrd").reason == "missing_geometry"


def test_one_component_is_dropped_several_are_refused(tmp_path: Path) -> None:
    def directions(place: int) -> str:
        words = [vector(step) for step in STEPS.T]
        return " ".join([*words[:place], "none", *words[place:]])

    four = {"dimension": "4", "kinds": "vector domain domain domain"}
    write(tmp_path / "one.nrrd", sizes="1 20 24 22", **four, **{"space directions": directions(0)})
    write(tmp_path / "last.nrrd", sizes="20 24 22 1", **four, **{"space directions": directions(3)})
    for name in ("one.nrrd", "last.nrrd"):
        np.testing.assert_array_equal(load(tmp_path, name).hu, VALUES)
    write(tmp_path / "rgb.nrrd", sizes="3 20 24 22", **four, **{"space directions": directions(0)})
    write(tmp_path / "time.nrrd", sizes="20 24 22 2", **four, **{"space directions": directions(3)})
    write(tmp_path / "flat.nrrd", sizes="20 24", dimension="2", **{"space directions": "(1,0,0) (0,1,0)"})
    for name in ("rgb.nrrd", "time.nrrd", "flat.nrrd"):
        assert refused(tmp_path, name).reason == "multi_volume"
    assert "3 × 20 × 24 × 22" in str(refused(tmp_path, "rgb.nrrd"))


# ---- files beside the header ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "encoding"), [("a.raw", "raw"), ("a.raw.gz", "gzip"), ("deeper/a.raw", "raw")])
def test_voxels_in_a_file_beside_the_header(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / "p" / "deeper").mkdir(parents=True)
    (tmp_path / "p" / name).write_bytes(encoded(VALUES, encoding))
    write(tmp_path / "p" / "a.nhdr", data=b"", encoding=encoding, **{"data file": name})
    np.testing.assert_array_equal(load(tmp_path, "p/a.nhdr").hu, VALUES)


def test_the_file_of_voxels_belongs_to_the_scan(tmp_path: Path) -> None:
    for name in ("a.raw", "b.raw"):
        (tmp_path / name).write_bytes(VALUES.tobytes())
    header_path = write(tmp_path / "a.nhdr", data=b"", datafile="a.raw")
    assert facts_of(tmp_path / "a.raw") == facts_of(header_path)
    np.testing.assert_array_equal(load(tmp_path, "a.nhdr", "a.raw").hu, VALUES)
    assert facts_of(tmp_path / "b.raw").reason == "unknown_format"


@pytest.mark.parametrize(
    "named",
    [
        "../out.raw",
        "sub/../../out.raw",
        "/etc/hostname",
        "link.raw",
        "missing.raw",
        "..\\out.raw",
        "LIST",
        "a%03d.raw 1 9 1",
    ],
)
def test_files_elsewhere_are_not_opened(tmp_path: Path, named: str) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (tmp_path / "out.raw").write_bytes(VALUES.tobytes())
    (source / "link.raw").symlink_to(tmp_path / "out.raw")
    write(source / "a.nhdr", data=b"", **{"data file": named})
    error = refused(source, "a.nhdr")
    assert error.reason == "detached_data"
    assert "out.raw" not in str(error)


# ---- headers that lie ----------------------------------------------------------------------------------------------------


def peak_of(function: Any) -> tuple[Any, int]:
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("sizes", "encoding", "reason"),
    [
        ("10240 10240 10240", "raw", "too_large"),
        ("1000000 1000000 1000000", "gzip", "too_large"),
        ("512 512 2000", "raw", "unreadable_pixels"),
        ("512 512 2000", "ascii", "unreadable_pixels"),
        ("512 512 2000", "gzip", "too_costly"),
        ("512 512 2000", "bzip2", "too_costly"),
        ("20 24 23", "raw", "unreadable_pixels"),
        ("20 24 23", "gzip", "unreadable_pixels"),
        ("20 24 23", "bzip2", "unreadable_pixels"),
        ("20 24 23", "ascii", "unreadable_pixels"),
        ("20 24 -22", "raw", "multi_volume"),
        ("20 0 22", "raw", "multi_volume"),
        ("20 24", "raw", "unreadable_file"),
        ("20 24 x", "raw", "bad_number"),
    ],
)
def test_sizes_that_lie(tmp_path: Path, sizes: str, encoding: str, reason: str) -> None:
    write(tmp_path / "a.nrrd", sizes=sizes, encoding=encoding)
    error, peak = peak_of(lambda: refused(tmp_path, "a.nrrd"))
    assert error.reason == reason
    assert peak < 4 << 20


def test_bombs(tmp_path: Path) -> None:
    zeros = gzip.compress(bytes(128 << 20))
    write(tmp_path / "claimed.nrrd", data=zeros, encoding="gzip", sizes="512 512 300")
    write(tmp_path / "skipped.nrrd", data=zeros, encoding="gzip", **{"byte skip": str(300 << 20)})
    write(tmp_path / "behind.nrrd", data=zeros, encoding="gzip")
    for name in ("claimed.nrrd", "skipped.nrrd"):
        error, peak = peak_of(lambda name=name: refused(tmp_path, name))
        assert error.reason == "too_costly"
        assert peak < 4 << 20
    error, peak = peak_of(lambda: refused(tmp_path, "behind.nrrd"))
    assert "its compressed data are longer than its header says" in str(error)
    assert peak < 8 << 20


DAMAGED = {
    "a field twice": ("type: short", "type: short\ntype: float", "unreadable_file"),
    "a line that is no field": ("type: short", "type: short\nhello", "unreadable_file"),
    "no dimension": ("dimension: 3", "", "unreadable_file"),
    "dimension is no number": ("dimension: 3", "dimension: three", "bad_number"),
    "directions that are none": ("(", "[", "unreadable_file"),
    "an origin that is no number": ("space origin: (", "space origin: (x", "bad_number"),
    "directions that are no numbers": ("(1.5", "(SMITH", "bad_number"),
    "a skip that is no number": ("encoding: raw", "encoding: raw\nbyte skip: x", "bad_number"),
    "a negative skip": ("encoding: raw", "encoding: raw\nbyte skip: -2", "bad_number"),
    "a block": ("type: short", "type: block", "unsupported_pixels"),
    "no type": ("type: short", "content: x", "unsupported_pixels"),
    "no byte order": ("endian: little", "content: x", "unsupported_pixels"),
    "hexadecimal": ("encoding: raw", "encoding: hex", "unsupported_pixels"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_headers(tmp_path: Path, name: str) -> None:
    old, new, reason = DAMAGED[name]
    data = write(tmp_path / "a.nrrd").read_bytes()
    start, _, rest = data.partition(b"\n\n")
    lines = start.decode().replace(old, new).split("\n")
    (tmp_path / "a.nrrd").write_bytes("\n".join(line for line in lines if line).encode() + b"\n\n" + rest)
    error = refused(tmp_path, "a.nrrd")
    assert error.reason == reason
    assert "SMITH" not in str(error)


def test_a_header_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\n" + b"x" * (3 << 20))
    assert refused(tmp_path, "a.nrrd").reason == "unreadable_file"
    data = write(tmp_path / "b.nrrd", data=b"").read_bytes()
    (tmp_path / "b.nrrd").write_bytes(data[:-2])  # the header is the file
    assert refused(tmp_path, "b.nrrd").reason == "unreadable_file"
    data = write(tmp_path / "c.nhdr", data=b"", **{"data file": "c.raw"}).read_bytes()
    (tmp_path / "c.nhdr").write_bytes(data[:-2])
    (tmp_path / "c.raw").write_bytes(VALUES.tobytes())
    np.testing.assert_array_equal(load(tmp_path, "c.nhdr").hu, VALUES)


def test_text_that_is_no_numbers(tmp_path: Path) -> None:
    words = b"1 " * 5000
    for name, data in (
        ("a", words + b"x" * 70000),
        ("b", words + b"1.5.2 " * 9000),
        ("c", words + b"99999999 " * 9000),
    ):
        write(tmp_path / f"{name}.nrrd", data=data, encoding="ascii")
        assert refused(tmp_path, f"{name}.nrrd").reason == "unreadable_pixels"


def test_too_few_slices_along_any_axis(tmp_path: Path) -> None:
    write(tmp_path / "a.nrrd", VALUES[:, :5].copy())
    assert refused(tmp_path, "a.nrrd", min_slices=6).reason == "too_few_slices"
    assert load(tmp_path, "a.nrrd", min_slices=5).hu.shape == (SHAPE[0], 5, SHAPE[2])


def test_a_header_that_breaks_off_is_no_header_of_another_kind(tmp_path: Path) -> None:
    content = write(tmp_path / "a.nrrd").read_bytes()
    for size in range(8, content.index(b"\n\n"), 5):
        (tmp_path / "a.nrrd").write_bytes(content[:size])
        assert refused(tmp_path, "a.nrrd").reason == "unreadable_file"
