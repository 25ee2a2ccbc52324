"""Previews of formats with one scan per file: which plane, which way up, and that nothing is read or raised beyond a bound."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from storage.sources import single_file_preview
from storage.sources.formats import FORMATS
from storage.sources.source import ScanRequest
from tests.unit.storage.sources.nifti_files import RAS, write_image
from tests.unit.storage.sources.single_files import DIRECTIONS, SHAPE, SPACING, centre_origin, facts_of

FILES = ["a.nii", "a.nii.gz", "a.nrrd", "z.nrrd", "a.nhdr", "a.mha", "z.mha", "a.mhd", "a.npz", "f.npz"]


def values(steps: np.ndarray) -> np.ndarray:
    """Larger towards the patient's right, front and head; (k, j, i)."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)[..., ::-1]
    world = index @ steps.T + centre_origin(steps)
    return np.rint(world @ [-3.0, -3.0, 3.0]).astype(np.int16)


def write(path: Path, hu: np.ndarray, direction: np.ndarray) -> None:
    steps = direction * SPACING
    if path.suffix == ".npz":
        np.savez_compressed(path, ct=np.asfortranarray(hu) if path.name == "f.npz" else hu)
    elif ".nii" in path.name:
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = steps, centre_origin(steps)
        write_image(path, hu.transpose(2, 1, 0), RAS @ affine)
    else:
        image = sitk.GetImageFromArray(hu)
        image.SetSpacing(SPACING)
        image.SetOrigin([float(v) for v in centre_origin(steps)])
        image.SetDirection(direction.ravel().tolist())
        sitk.WriteImage(image, str(path), path.name.startswith("z"))


def preview(path: Path) -> np.ndarray | None:
    names = tuple(sorted(one.name for one in path.parent.iterdir()))
    return FORMATS[facts_of(path).format].preview(ScanRequest(path.parent, names, "scan"))


@pytest.mark.parametrize("name", FILES)
def test_the_middle_plane_in_hu(tmp_path: Path, name: str) -> None:
    hu = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)
    write(tmp_path / name, hu, np.eye(3))
    # Where the first axis is the fastest, a plane across the last one lies in one place.
    expected = hu[:, :, SHAPE[2] // 2] if name == "f.npz" else hu[SHAPE[0] // 2]
    np.testing.assert_array_equal(preview(tmp_path / name), expected)


@pytest.mark.parametrize(
    ("name", "direction"),
    [(name, direction) for name in ("a.nii", "a.nrrd", "a.mha") for direction in DIRECTIONS]
    + [(name, "from above, left-handed") for name in ("a.npz", "f.npz")],  # the only one that npz has
)
def test_the_patients_right_is_on_the_left_and_front_or_head_on_top(tmp_path: Path, name: str, direction: str) -> None:
    matrix = DIRECTIONS[direction]
    write(tmp_path / name, values(matrix * SPACING), matrix)
    image = preview(tmp_path / name)
    assert image is not None
    assert np.diff(image, axis=0).mean() < -1
    assert np.diff(image, axis=1).mean() < -1


@pytest.mark.parametrize("name", ["a.nii.gz", "z.nrrd", "z.mha", "a.npz"])
def test_a_plane_within_the_bound_is_taken_of_compressed_data(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hu = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)
    write(tmp_path / name, hu, np.eye(3))
    monkeypatch.setattr(single_file_preview, "MAX_BYTES", 3 * hu[0].nbytes + 8)
    np.testing.assert_array_equal(preview(tmp_path / name), hu[2])
    monkeypatch.setattr(single_file_preview, "MAX_BYTES", hu[0].nbytes - 1)
    assert preview(tmp_path / name) is None
    monkeypatch.setattr(single_file_preview, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(single_file_preview, "MAX_PIXELS", hu[0].size - 1)
    assert preview(tmp_path / name) is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("cut", [0.2, 0.45])
def test_files_that_end_too_early_have_none_and_raise_nothing(tmp_path: Path, name: str, cut: float) -> None:
    write(tmp_path / name, np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16), np.eye(3))
    names = tuple(sorted(one.name for one in tmp_path.iterdir()))
    format_name = facts_of(tmp_path / name).format
    largest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: int(cut * largest.stat().st_size)])
    assert FORMATS[format_name].preview(ScanRequest(tmp_path, names, "scan")) is None


def test_every_damaged_header_raises_nothing(tmp_path: Path) -> None:
    """The first 400 bytes of every format, a random one or two of them replaced."""
    rng = np.random.default_rng(1)
    for name in ("a.nii", "a.nrrd", "a.mha", "a.npz"):
        write(tmp_path / name, np.random.default_rng(0).integers(0, 9, SHAPE).astype(np.int16), np.eye(3))
        good, format_name = (tmp_path / name).read_bytes(), facts_of(tmp_path / name).format
        for _ in range(60):
            bad = bytearray(good)
            for at in rng.integers(0, 400, 2):
                bad[at] = rng.integers(0, 256)
            (tmp_path / "bad").write_bytes(bad)
            FORMATS[format_name].preview(ScanRequest(tmp_path, ("bad",), "scan"))


def test_pixels_without_a_place_or_a_scaling_are_shown(tmp_path: Path) -> None:
    hu = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)

    def nowhere(header: object) -> None:
        header["sform_code"] = header["qform_code"] = 0  # type: ignore[index]
        header["scl_inter"] = np.inf  # type: ignore[index]

    write_image(tmp_path / "a.nii", hu.transpose(2, 1, 0), change=nowhere)
    image = preview(tmp_path / "a.nii")
    assert image is not None
    assert sorted(image.ravel()) == sorted(hu[SHAPE[0] // 2].ravel())
    text = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 20 24 22\nendian: little\nencoding: gzip\n\n"
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "a.nrrd").write_bytes(text + gzip.compress(hu.tobytes()))
    np.testing.assert_array_equal(preview(tmp_path / "n" / "a.nrrd"), hu[SHAPE[0] // 2])
