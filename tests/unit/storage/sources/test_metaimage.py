"""MetaImage: placed and read as SimpleITK does, attached and beside the header; contradictions and lies by name."""

import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from storage.errors import UnusableSeriesError
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

_NAMES = {"i1": "MET_CHAR", "u1": "MET_UCHAR", "i2": "MET_SHORT", "u2": "MET_USHORT", "i4": "MET_INT", "f4": "MET_FLOAT",
          "f8": "MET_DOUBLE"}  # fmt: skip
STEPS = np.diag(SPACING)


def numbers(values: Any) -> str:
    return " ".join(repr(float(v)) for v in np.ravel(values))


def write(
    path: Path, values: np.ndarray = VALUES, steps: np.ndarray = STEPS, data: bytes | None = None, **fields: Any
) -> Path:
    """Fields with None are left out."""
    spacing = np.linalg.norm(steps, axis=0)
    all_fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": str(values.dtype.byteorder == ">"),
        "CompressedData": "False",
        "TransformMatrix": numbers((steps / spacing).T),
        "Offset": numbers(centre_origin(steps)),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": None,
        "ElementSpacing": numbers(spacing),
        "DimSize": " ".join(str(n) for n in values.shape[::-1]),
        "ElementType": _NAMES[values.dtype.str[1:]],
    } | fields
    named = all_fields.pop("ElementDataFile", "LOCAL")
    lines = [f"{name} = {text}" for name, text in all_fields.items() if text is not None] + [
        f"ElementDataFile = {named}"
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(lines).encode() + b"\n" + (values.tobytes() if data is None else data))
    return path


@pytest.mark.parametrize("name", DIRECTIONS)
def test_hu_stays_at_its_place_in_the_world(tmp_path: Path, name: str) -> None:
    steps = DIRECTIONS[name] * np.array(SPACING)
    values = world_linear(steps, centre_origin(steps)).astype(np.float32)
    write(tmp_path / "a.mha", values, steps)
    scan = load(tmp_path, "a.mha")
    np.testing.assert_array_equal(scan.hu, values)
    np.testing.assert_allclose(scan.direction, DIRECTIONS[name], atol=1e-12)
    assert scan.spacing_mm == pytest.approx(SPACING)
    assert scan.origin_mm == pytest.approx(tuple(centre_origin(steps)))
    assert scan.notes == ()
    assert_world_linear(scan)


@pytest.mark.parametrize("ending", ["mha", "mhd"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", [name for name in DIRECTIONS if "left-handed" not in name])  # ITK refuses those
def test_simpleitk_writes_the_same(tmp_path: Path, name: str, compressed: bool, ending: str) -> None:
    image = sitk.GetImageFromArray(VALUES)
    image.SetSpacing(SPACING)
    image.SetOrigin((3.0, -7.0, 11.0))
    image.SetDirection(DIRECTIONS[name].ravel())
    path = tmp_path / f"a.{ending}"
    sitk.WriteImage(image, str(path), compressed)
    scan = load(tmp_path, path.name)
    np.testing.assert_array_equal(scan.hu, VALUES)
    np.testing.assert_allclose(scan.direction.ravel(), image.GetDirection(), atol=1e-6)
    assert scan.spacing_mm == pytest.approx(SPACING)
    assert scan.origin_mm == pytest.approx((3.0, -7.0, 11.0))
    facts = {facts_of(file) for file in tmp_path.iterdir()}
    assert len(facts) == 1  # the file of voxels belongs to the scan of its header


@pytest.mark.parametrize("name", [name for name in DIRECTIONS if "left-handed" not in name])
def test_simpleitk_reads_the_same(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.mha", steps=DIRECTIONS[name] * np.array(SPACING))
    image, scan = sitk.ReadImage(str(tmp_path / "a.mha")), load(tmp_path, "a.mha")
    np.testing.assert_array_equal(scan.hu, sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(scan.direction.ravel(), image.GetDirection(), atol=1e-6)
    assert scan.spacing_mm == pytest.approx(image.GetSpacing())
    assert scan.origin_mm == pytest.approx(image.GetOrigin())


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<i4", ">i4", "<f4", ">f8"])
@pytest.mark.parametrize("encoding", ["raw", "zlib", "text"])
def test_types_and_encodings(tmp_path: Path, dtype: str, encoding: str) -> None:
    values = VALUES.astype(dtype)
    if encoding == "zlib":
        data = zlib.compress(values.tobytes())
        write(tmp_path / "a.mha", values, data=data, CompressedData="True", CompressedDataSize=str(len(data)))
    elif encoding == "text":
        text = " ".join(str(v) for v in values.ravel()).encode()
        write(tmp_path / "a.mha", values, data=text, BinaryData="False")
    else:
        write(tmp_path / "a.mha", values)
    np.testing.assert_array_equal(load(tmp_path, "a.mha").hu, VALUES)


def test_synonyms_and_units(tmp_path: Path) -> None:
    write(tmp_path / "a.mha", Offset=None, Position="1 2 3", TransformMatrix=None, Rotation="1 0 0 0 1 0 0 0 1",
          ElementSpacing=None, ElementSize="0.1 0.2 0.3", DistanceUnits="cm")  # fmt: skip
    scan = load(tmp_path, "a.mha")
    assert scan.origin_mm == pytest.approx((10.0, 20.0, 30.0))
    assert scan.spacing_mm == pytest.approx((1.0, 2.0, 3.0))
    write(tmp_path / "spacing.mha", ElementSize="9 9 9")
    assert load(tmp_path, "spacing.mha").spacing_mm == pytest.approx(SPACING)


def test_intensity_function(tmp_path: Path) -> None:
    stored = (VALUES + 1024).astype(np.uint16)
    write(tmp_path / "a.mha", stored, ElementToIntensityFunctionSlope="1", ElementToIntensityFunctionOffset="-1024")
    scan = load(tmp_path, "a.mha")
    np.testing.assert_array_equal(scan.hu, VALUES)
    assert scan.hu.dtype == np.int16


def test_unsigned_fill_is_recognised(tmp_path: Path) -> None:
    values = VALUES.astype(np.int32)
    values[:, :3, :3] = 62512
    write(tmp_path / "a.mha", values)
    scan = load(tmp_path, "a.mha")
    assert (scan.hu[:, :3, :3] == FILL_HU).all()
    assert "198 of 10560" in scan.notes[0]


@pytest.mark.parametrize("skip", [0, 100, -1])
def test_header_size_of_the_file_of_voxels(tmp_path: Path, skip: int) -> None:
    (tmp_path / "a.raw").write_bytes(b"x" * (77 if skip == -1 else skip) + VALUES.tobytes())
    write(tmp_path / "a.mhd", data=b"", HeaderSize=str(skip), ElementDataFile="a.raw")
    np.testing.assert_array_equal(load(tmp_path, "a.mhd", "a.raw").hu, VALUES)


# ---- orientation ---------------------------------------------------------------------------------------------------------

ORIENTATIONS = [
    ("supine", "RAI", True), ("prone", "LPI", True), ("coronal", "RSA", True), ("oblique", "RAI", True), ("supine", "???", True),
    ("supine", "LPI", False), ("prone", "RAI", False), ("feet first", "RAI", False), ("supine", "RAS", False),
    ("coronal", "RAI", False),
]  # fmt: skip


def test_a_file_of_voxels_that_is_too_long_is_refused(tmp_path: Path) -> None:
    """What is too much may lie before the voxels."""
    (tmp_path / "a.raw").write_bytes(bytes(500) + VALUES.tobytes())
    write(tmp_path / "a.mhd", data=b"", ElementDataFile="a.raw")
    with pytest.raises(UnusableSeriesError, match="500 bytes more than its header says") as error:
        load(tmp_path, "a.mhd", "a.raw")
    assert error.value.reason == "unreadable_file"


@pytest.mark.parametrize(("name", "named", "agrees"), ORIENTATIONS)
def test_matrix_and_orientation_must_agree(tmp_path: Path, name: str, named: str, agrees: bool) -> None:
    write(tmp_path / "a.mha", steps=DIRECTIONS[name] * np.array(SPACING), AnatomicalOrientation=named)
    if agrees:
        np.testing.assert_allclose(load(tmp_path, "a.mha").direction, DIRECTIONS[name], atol=1e-12)
        return
    error = refused(tmp_path, "a.mha")
    assert error.reason == "conflicting_geometry"
    assert named in str(error)


def test_orientation_alone(tmp_path: Path) -> None:
    write(tmp_path / "rai.mha", TransformMatrix=None, AnatomicalOrientation="RAI")
    np.testing.assert_array_equal(load(tmp_path, "rai.mha").direction, np.eye(3))
    write(tmp_path / "lpi.mha", TransformMatrix=None, AnatomicalOrientation="LPI")
    assert refused(tmp_path, "lpi.mha").reason == "conflicting_geometry"


NO_PLACE: dict[str, dict[str, Any]] = {
    "no matrix": {"TransformMatrix": None},
    "no spacing": {"ElementSpacing": None},
    "zero": {"ElementSpacing": "1 1 0"},
    "no number": {"ElementSpacing": "1 nan 1"},
    "flat": {"TransformMatrix": "1 0 0 0 1 0 1 0 0"},
    "no length": {"DistanceUnits": "s"},
    "infinite": {"Offset": "inf 0 0"},
}


@pytest.mark.parametrize("name", NO_PLACE)
def test_without_a_place_quarantined(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.mha", **NO_PLACE[name])
    assert refused(tmp_path, "a.mha").reason == "missing_geometry"


# ---- files beside the header ---------------------------------------------------------------------------------------------


def test_luna16_layout(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"1.3.6.{number}.raw").write_bytes((VALUES + number).astype(np.int16).tobytes())
        write(
            tmp_path / f"1.3.6.{number}.mhd",
            data=b"",
            ElementDataFile=f"1.3.6.{number}.raw",
            AnatomicalOrientation="RAI",
        )
    for number in (1, 2):
        names = [f"1.3.6.{number}.mhd", f"1.3.6.{number}.raw"]
        assert facts_of(tmp_path / names[0]) == facts_of(tmp_path / names[1])
        np.testing.assert_array_equal(load(tmp_path, *names).hu, VALUES + number)


def test_a_raw_file_of_nobody(tmp_path: Path) -> None:
    write(tmp_path / "a.mhd", data=b"", ElementDataFile="other.raw")
    (tmp_path / "a.raw").write_bytes(VALUES.tobytes())
    assert facts_of(tmp_path / "a.raw").reason == "unknown_format"


@pytest.mark.parametrize(
    "named",
    [
        "../out.raw",
        "x/../../out.raw",
        "/etc/hostname",
        "link.raw",
        "missing.raw",
        "LIST",
        "a%03d.raw 1 9 1",
        "..\\out.raw",
    ],
)
def test_files_elsewhere_are_not_opened(tmp_path: Path, named: str) -> None:
    (tmp_path / "out.raw").write_bytes(VALUES.tobytes())
    write(tmp_path / "src" / "a.mhd", data=b"", ElementDataFile=named)
    (tmp_path / "src" / "link.raw").symlink_to(tmp_path / "out.raw")
    error = refused(tmp_path / "src", "a.mhd")
    assert error.reason == "detached_data"
    assert "out.raw" not in str(error)


# ---- headers that lie ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"DimSize": "10240 10240 10240"}, "too_large"),
        ({"DimSize": "1048576 1048576 1", "CompressedData": "True"}, "too_large"),
        ({"DimSize": "512 512 2000"}, "unreadable_pixels"),
        ({"DimSize": "512 512 2000", "BinaryData": "False"}, "unreadable_pixels"),
        ({"DimSize": "512 512 2000", "CompressedData": "True"}, "too_costly"),
        ({"DimSize": "20 24 23", "CompressedData": "True"}, "unreadable_pixels"),
        ({"DimSize": "20 24 23"}, "unreadable_pixels"),
        ({"DimSize": "20 24"}, "unreadable_file"),
        ({"DimSize": "20 24 22 x", "NDims": "4"}, "bad_number"),
        ({"DimSize": "20 -24 22"}, "multi_volume"),
        ({"DimSize": "20 24 11", "ElementNumberOfChannels": "2"}, "multi_volume"),
        ({"DimSize": "20 24 11 2", "NDims": "4"}, "multi_volume"),
        ({"DimSize": "20 528", "NDims": "2"}, "multi_volume"),
        ({"ElementType": "MET_STRING"}, "unsupported_pixels"),
        ({"ElementType": "MET_SHORT_ARRAY"}, "unsupported_pixels"),
        ({"HeaderSize": "999999"}, "unreadable_pixels"),
        ({"HeaderSize": "999999999", "CompressedData": "True"}, "too_costly"),
        ({"CompressedData": "True", "Comment": "damaged"}, "unreadable_pixels"),
        ({"Offset": "1 2"}, "unreadable_file"),
        ({"Offset": "1 2 SMITH"}, "bad_number"),
        ({"HeaderSize": "-7"}, "bad_number"),
        ({"NDims": "x"}, "bad_number"),
        ({"ElementSpacing": "1 2 x"}, "bad_number"),
    ],
)
def test_headers_that_lie(tmp_path: Path, fields: dict[str, str], reason: str) -> None:
    data = VALUES.tobytes()
    if fields.get("CompressedData") == "True":
        data = zlib.compress(data)
        data = data[:100] + b"damaged" + data[107:] if fields.get("Comment") == "damaged" else data
    write(tmp_path / "a.mha", data=data, **fields)
    tracemalloc.start()
    error = refused(tmp_path, "a.mha")
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert error.reason == reason
    assert "SMITH" not in str(error)


def test_one_voxel_along_a_fourth_axis(tmp_path: Path) -> None:
    matrix = numbers(np.eye(4))
    write(
        tmp_path / "a.mha",
        NDims="4",
        DimSize="20 24 22 1",
        TransformMatrix=matrix,
        Offset="1 2 3 4",
        ElementSpacing="1 2 3 1",
    )
    scan = load(tmp_path, "a.mha")
    np.testing.assert_array_equal(scan.hu, VALUES)
    assert scan.origin_mm == (1.0, 2.0, 3.0)


def test_a_bomb_behind_the_voxels_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "a.mha", data=zlib.compress(bytes(128 << 20)), CompressedData="True")
    tracemalloc.start()
    assert "its compressed data are longer than its header says" in str(refused(tmp_path, "a.mha"))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_damaged_headers(tmp_path: Path) -> None:
    write(tmp_path / "twice.mha", position="9 9 9")  # another Offset
    data = write(tmp_path / "a.mha").read_bytes()
    (tmp_path / "line.mha").write_bytes(data.replace(b"Offset =", b"hello\nOffset ="))
    (tmp_path / "end.mha").write_bytes(data[: data.index(b"ElementDataFile")])
    (tmp_path / "long.mha").write_bytes(
        data.replace(b"ElementType =", b"Comment = " + b"x" * 70000 + b"\nElementType =")
    )
    for name in ("twice.mha", "line.mha", "end.mha", "long.mha"):
        assert refused(tmp_path, name).reason == "unreadable_file"


@pytest.mark.parametrize(
    "text", [b"NDims of something", b"a = b\nDimSize = 3", b"Comment = NDims", b"[x]\nNDims = 3\nDimSize = 1"]
)
def test_other_text_is_no_metaimage(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(text)
    assert facts_of(tmp_path / "a.txt").reason == "unknown_format"


def test_too_few_slices_along_any_axis(tmp_path: Path) -> None:
    write(tmp_path / "a.mha", VALUES[:, :5].copy())
    assert refused(tmp_path, "a.mha", min_slices=6).reason == "too_few_slices"
    assert load(tmp_path, "a.mha", min_slices=5).hu.shape == (SHAPE[0], 5, SHAPE[2])
