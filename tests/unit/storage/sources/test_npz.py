"""RAD-ChestCT npz: orientation of the release, spacing of the setting, and no array that could be anything else."""

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.geometry import FILL_HU
from tests.unit.storage.dicom_files import linear_hu
from tests.unit.storage.sources.single_files import (
    SHAPE,
    VALUES,
    assert_world_linear,
    facts_of,
    load,
    refused,
)


def npy_bytes(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def write_zip(path: Path, *members: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("key", ["ct", "volume"])
@pytest.mark.parametrize("dtype", [np.int16, ">i2", np.int32, np.float32, np.float64])
def test_values(tmp_path: Path, save: Any, key: str, dtype: Any) -> None:
    save(tmp_path / "trn00001.npz", **{key: VALUES.astype(dtype)})
    facts = facts_of(tmp_path / "trn00001.npz")
    assert (facts.format, facts.reason, facts.patient_id) == ("npz", "", "")
    assert facts.scan.startswith("npz-")
    scan = load(tmp_path, "trn00001.npz")
    np.testing.assert_array_equal(scan.hu, VALUES)
    assert scan.hu.dtype == (np.int16 if np.dtype(dtype).kind == "i" else np.float32)


def test_half_precision(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ct=VALUES.astype(np.float16))
    np.testing.assert_array_equal(load(tmp_path, "a.npz").hu, VALUES)


def test_the_program_of_the_release_writes_the_first_axis_fastest(tmp_path: Path) -> None:
    """Its last steps, from an array with axes (x, y, z): clip, transpose, round, int16."""
    xyz = np.ascontiguousarray(VALUES.astype(np.float32).transpose(2, 1, 0))
    ct = np.rint(np.transpose(np.clip(xyz, -1000, 1000), axes=[2, 1, 0])).astype(np.int16)
    assert ct.flags.f_contiguous
    np.savez_compressed(tmp_path / "a.npz", ct=ct)
    np.testing.assert_array_equal(load(tmp_path, "a.npz").hu, np.clip(VALUES, -1000, 1000))


def test_axes_run_towards_inferior_posterior_and_left(tmp_path: Path) -> None:
    k, j, i = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    world = np.stack([0.8 * i, 0.8 * j, -0.8 * k], axis=-1)  # from superior downwards
    np.savez_compressed(tmp_path / "a.npz", ct=linear_hu(world).astype(np.float32))
    scan = load(tmp_path, "a.npz")
    np.testing.assert_array_equal(scan.direction, np.diag([1.0, 1.0, -1.0]))
    assert scan.spacing_mm == (0.8, 0.8, 0.8)
    assert scan.notes == (
        "it says nothing of its place: 0.8 × 0.8 × 0.8 mm and axes towards inferior, posterior and left were assumed, as in "
        "RAD-ChestCT",
    )
    assert_world_linear(scan)


def test_spacing_of_the_request(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ct=VALUES)
    scan = load(tmp_path, "a.npz", spacing_mm=(0.5, 0.6, 1.25))
    assert scan.spacing_mm == (0.5, 0.6, 1.25)
    assert "0.5 × 0.6 × 1.25 mm" in scan.notes[0]


def test_fill_and_numbers_that_are_none(tmp_path: Path) -> None:
    values = VALUES.astype(np.float32)
    values[:, :3, :3] = 62512.0
    values[5, 10, 10] = -3000.0
    np.savez(tmp_path / "fill.npz", ct=values)
    scan = load(tmp_path, "fill.npz")
    assert (scan.hu[:, :3, :3] == FILL_HU).all()
    assert scan.hu[5, 10, 10] == FILL_HU
    assert "198 of 10560" in scan.notes[1]
    values[0, 0, 0] = np.nan
    np.savez(tmp_path / "nan.npz", ct=values)
    assert refused(tmp_path, "nan.npz").reason == "not_finite"
    assert load(tmp_path, "nan.npz", nan="air").hu[0, 0, 0] == FILL_HU


# ---- what is no CT -------------------------------------------------------------------------------------------------------


def test_other_npz_are_of_no_format(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=VALUES, labels=VALUES)
    np.savez(tmp_path / "b.npz", VALUES)  # arr_0
    write_zip(tmp_path / "c.npz", ("deep/ct.npy", npy_bytes(VALUES)))
    for name in ("a.npz", "b.npz", "c.npz"):
        facts = facts_of(tmp_path / name)
        assert (facts.format, facts.scan, facts.reason) == ("", "", "unknown_format")


def test_other_zips_are_archives(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", ("scan/1.dcm", b"x"), ("ct.npy", npy_bytes(VALUES)))
    write_zip(tmp_path / "b.zip", ("ct.npy", npy_bytes(VALUES)), ("scan/1.dcm", b"x"))
    for name in ("a.zip", "b.zip"):
        assert facts_of(tmp_path / name).reason == "archive"


class Shell:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/prdit-was-here"),))


def test_objects_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ct=np.array([Shell()], dtype=object))
    write_zip(tmp_path / "b.npz", ("ct.npy", pickle.dumps(Shell())))
    error = refused(tmp_path, "a.npz")
    assert error.reason == "unsupported_pixels"
    assert "pickle" in str(error)
    assert refused(tmp_path, "b.npz").reason == "unreadable_pixels"
    assert not Path("/tmp/prdit-was-here").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "detail"),
    [
        (["ct", "ct"], "one array 2 times"),
        (["ct", "volume"], "2 arrays"),
        (["ct", "spacing"], "2 arrays"),
        (["mask", "ct", "origin"], "3 arrays"),
    ],
)
def test_several_arrays(tmp_path: Path, names: list[str], detail: str) -> None:
    write_zip(tmp_path / "a.npz", *((f"{name}.npy", npy_bytes(VALUES)) for name in names))
    error = refused(tmp_path, "a.npz")
    assert error.reason == "several_arrays"
    assert detail in str(error)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (VALUES[0], "multi_volume"),
        (VALUES[None].repeat(2, axis=0), "multi_volume"),
        (np.int16(3), "multi_volume"),
        (VALUES[:0], "multi_volume"),
        (VALUES.astype(np.complex64), "unsupported_pixels"),
        (VALUES > 0, "unsupported_pixels"),
        (VALUES.astype("S5"), "unsupported_pixels"),
        (np.zeros(SHAPE, np.dtype([("hu", "i2")])), "unsupported_pixels"),
        (VALUES.astype("M8[s]"), "unsupported_pixels"),
    ],
)
def test_arrays_that_are_no_volume(tmp_path: Path, values: np.ndarray, reason: str) -> None:
    np.savez(tmp_path / "a.npz", ct=values)
    assert refused(tmp_path, "a.npz").reason == reason


def test_a_leading_axis_of_one_is_dropped(tmp_path: Path) -> None:
    for name, values in (("c.npz", VALUES[None]), ("f.npz", np.asfortranarray(VALUES[None, None]))):
        np.savez(tmp_path / name, ct=values)
        np.testing.assert_array_equal(load(tmp_path, name).hu, VALUES)


# ---- what lies -----------------------------------------------------------------------------------------------------------


def with_shape(shape: str, data: bytes, descr: str = "'<i2'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


LIES = {
    "more than there is": (with_shape("(22, 24, 21)", VALUES.tobytes()), "unreadable_pixels"),
    "less than there is": (with_shape("(21, 24, 20)", VALUES.tobytes()), "unreadable_pixels"),
    "terabytes": (with_shape("(100000, 100000, 1000)", VALUES.tobytes()), "too_large"),
    "gigabytes": (with_shape("(1000, 1000, 1000)", VALUES.tobytes()), "too_costly"),
    "negative": (with_shape("(-22, -24, 20)", VALUES.tobytes()), "multi_volume"),
    "numbers that are none": (with_shape("('a', 2, 3)", VALUES.tobytes()), "unreadable_pixels"),
    "a call": (with_shape("__import__('os').getcwd()", VALUES.tobytes()), "unreadable_pixels"),
    "deeply nested": (with_shape("(" * 5000 + ")" * 5000, VALUES.tobytes()), "unreadable_pixels"),
    "type that is none": (with_shape("(22, 24, 20)", VALUES.tobytes(), "'nonsense'"), "unreadable_pixels"),
    "a sub-array": (with_shape("(22, 24, 20)", VALUES.tobytes(), "('<i2', (2, 2))"), "unsupported_pixels"),
    "another version": (b"\x93NUMPY\x03\x00" + with_shape("(22, 24, 20)", VALUES.tobytes())[8:], "unsupported_pixels"),
    "no array": (b"hello", "unreadable_pixels"),
    "nothing": (b"", "unreadable_pixels"),
    "a bomb": (with_shape("(1000, 500, 500)", bytes(500_000_000)), "too_costly"),
}


@pytest.mark.parametrize("name", LIES)
def test_headers_that_lie(tmp_path: Path, name: str) -> None:
    data, reason = LIES[name]
    path = write_zip(tmp_path / "a.npz", ("ct.npy", data))
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    error = refused(tmp_path, "a.npz")
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert error.reason == reason


def test_damaged_zips(tmp_path: Path) -> None:
    data = write_zip(tmp_path / "a.npz", ("ct.npy", npy_bytes(VALUES))).read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    assert facts_of(tmp_path / "cut.npz").reason == "unreadable_file"
    (tmp_path / "hurt.npz").write_bytes(data[:200] + bytes(20) + data[220:])
    assert refused(tmp_path, "hurt.npz").reason == "unreadable_pixels"
    stored = bytearray(
        write_zip(tmp_path / "b.npz", ("ct.npy", npy_bytes(VALUES)), compression=zipfile.ZIP_STORED).read_bytes()
    )
    stored[5000] ^= 1  # only the check sum knows
    (tmp_path / "bit.npz").write_bytes(stored)
    error = refused(tmp_path, "bit.npz")
    assert error.reason == "unreadable_pixels"
    assert "its compressed data are damaged" in str(error)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_numpy_does_not_write(tmp_path: Path, compression: int) -> None:
    write_zip(tmp_path / "a.npz", ("ct.npy", npy_bytes(VALUES)), compression=compression)
    assert refused(tmp_path, "a.npz").reason == "unsupported_pixels"


def test_too_few_slices_along_any_axis(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ct=VALUES[:, :, :5])
    assert refused(tmp_path, "a.npz", min_slices=6).reason == "too_few_slices"
    assert load(tmp_path, "a.npz", min_slices=5).hu.shape == (SHAPE[0], SHAPE[1], 5)
