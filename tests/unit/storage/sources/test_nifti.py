"""NIfTI as a source: recognised by content, HU and place in the world exact, every odd file with its reason."""

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from storage.errors import UnusableSeriesError
from storage.exports.nifti import write_nifti
from storage.geometry import AIR_HU, FILL_HU, Volume
from storage.resample import resample_series
from storage.sources.formats import read_source_file
from storage.sources.nifti import load_nifti
from storage.sources.source import Limits, ScanRequest, SourceVolume
from tests.unit.storage.dicom_files import linear_hu
from tests.unit.storage.sources.nifti_files import centred, world_linear, write_image
from tests.unit.storage.sources.single_files import facts_of

SHAPE = (20, 22, 24)
VALUES = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)


def load(path: Path, **limits: Any) -> SourceVolume:
    return next(load_nifti(ScanRequest(path.parent, (path.name,), "nifti-0", Limits(**limits))))


def refused(path: Path, **limits: Any) -> UnusableSeriesError:
    with pytest.raises(UnusableSeriesError) as caught:
        load(path, **limits)
    assert "nifti-0" in str(caught.value)
    return caught.value


# ---- recognising ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "no extension"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_recognised_by_content(tmp_path: Path, name: str, kind: type) -> None:
    path = write_image(tmp_path / name, VALUES, kind=kind)
    sha256, facts = read_source_file(path.parent, path.name)
    assert len(sha256) == 64
    assert facts.format == "nifti"
    assert facts.reason == ""
    assert facts.scan.startswith("nifti-")
    assert len(facts.scan) == len("nifti-") + 16
    np.testing.assert_array_equal(load(path).hu, VALUES.transpose(2, 1, 0))


def test_scan_id_is_of_the_path_and_does_not_show_it(tmp_path: Path) -> None:
    ids = [
        read_source_file(write_image(tmp_path / k / "doe.nii", VALUES).parent, "doe.nii")[1].scan for k in ("a", "b")
    ]
    assert ids[0] != ids[1]
    assert "doe" not in "".join(ids)


def test_other_gzip_is_an_archive(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"no image at all" * 100))
    (tmp_path / "b.gz").write_bytes(b"\x1f\x8b\x08damaged at once")
    for name in ("a.gz", "b.gz"):
        facts = read_source_file(tmp_path, name)[1]
        assert (facts.format, facts.reason, facts.detail) == ("", "archive", "gzip")


def test_large_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_image(tmp_path / "a.nii", VALUES)
    whole = read_source_file(path.parent, path.name)
    monkeypatch.setattr("storage.sources.formats._WHOLE_BYTES", 1000)
    assert read_source_file(path.parent, path.name) == whole


def test_big_endian(tmp_path: Path) -> None:
    affine = centred(np.diag([1.0, 1.0, 2.0]), SHAPE)
    image = nibabel.Nifti1Image(VALUES, affine).header.as_byteswapped(">")
    image.set_data_dtype(np.int16)
    image.set_sform(affine, code=1)
    image.set_data_offset(352)
    path = tmp_path / "big.nii"
    path.write_bytes(image.binaryblock + b"\0" * 4 + VALUES.astype(">i2").tobytes(order="F"))
    assert read_source_file(path.parent, path.name)[1].format == "nifti"
    np.testing.assert_array_equal(load(path).hu, VALUES.transpose(2, 1, 0))


# ---- place ---------------------------------------------------------------------------------------------------------------

_c, _s = np.cos(np.deg2rad(15)), np.sin(np.deg2rad(15))
TURN = np.array([[_c, -_s, 0], [_s, _c, 0], [0, 0, 1]])
TIP = np.array([[1, 0, 0], [0, _c, -_s], [0, _s, _c]])
AXES = {
    "LPS": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "LAS, left-handed": np.diag([1.0, -1.0, 1.0]),
    "all flipped, left-handed": -np.eye(3),
    "sagittal": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    "oblique": TURN @ TIP,
    "oblique, flipped": TURN @ TIP @ np.diag([1.0, -1.0, -1.0]),
    "oblique, left-handed": TURN @ TIP @ np.diag([-1.0, 1.0, 1.0]),
}


@pytest.mark.parametrize("name", AXES)
def test_hu_stays_at_its_place_in_the_world(tmp_path: Path, name: str) -> None:
    steps = AXES[name] * np.array([1.5, 1.3, 2.0])
    affine = centred(steps, SHAPE)
    affine[:3, 3] += (-31.0, 17.0, 400.0)
    stored = world_linear(affine, SHAPE).astype(np.float32)
    scan = load(write_image(tmp_path / "a.nii.gz", stored, affine))
    assert scan.spacing_mm == pytest.approx((1.5, 1.3, 2.0), abs=1e-5)
    np.testing.assert_allclose(scan.direction, AXES[name], atol=1e-6)
    assert scan.tilt_deg == pytest.approx(0, abs=0.05)
    volume = resample_series(scan, spacing_mm=1.0, interpolation="cubic")
    index = np.random.default_rng(0).uniform(5, 14, (200, 3))
    world = index @ steps.T + np.asarray(scan.origin_mm)
    place = np.rint(volume.index_of(world)).astype(int)
    found = volume.hu[tuple(place.T)]
    expected = linear_hu(volume.world_mm(place.astype(float)))
    assert np.abs(found - expected).max() <= 1.0


def test_sheared_affine_is_a_tilt(tmp_path: Path) -> None:
    steps = np.diag([1.5, 1.5, 2.0])
    steps[1, 2] = 2.0 * np.tan(np.deg2rad(18))
    path = write_image(
        tmp_path / "a.nii", VALUES, centred(steps, SHAPE), change=lambda h: h.__setitem__("qform_code", 0)
    )
    assert load(path).tilt_deg == pytest.approx(18, abs=0.01)


def test_what_prdit_writes_comes_back(tmp_path: Path) -> None:
    hu = np.random.default_rng(0).integers(-1024, 2000, (5, 6, 7)).astype(np.int16)
    volume = Volume(hu, (2.0, 2.0, 2.0), (-10.0, 20.0, -30.0))
    write_nifti(tmp_path / "v.nii.gz", volume)
    scan = load(tmp_path / "v.nii.gz")
    back = resample_series(scan, spacing_mm=2.0, interpolation="cubic")
    np.testing.assert_array_equal(back.hu, hu)
    assert back.origin_mm == pytest.approx(volume.origin_mm)
    assert scan.notes == ()


@pytest.mark.parametrize(("unit", "factor"), [(1, 1e-3), (2, 1.0), (3, 1e3)])
def test_units_of_length(tmp_path: Path, unit: int, factor: float) -> None:
    affine = centred(np.diag([1.5, 1.3, 2.0]), SHAPE)
    affine[:3] *= factor
    path = write_image(tmp_path / "a.nii", VALUES, affine, change=lambda h: h.__setitem__("xyzt_units", unit))
    scan = load(path)
    assert scan.spacing_mm == pytest.approx((1.5, 1.3, 2.0), rel=1e-5)
    assert scan.origin_mm == pytest.approx((-14.25, -13.65, -23.0), rel=1e-5)
    assert scan.notes == ()


@pytest.mark.parametrize(("code", "num_notes"), [(0, 0), (5, 1)])
def test_a_unit_that_is_not_given_is_millimetres_and_one_of_an_unknown_code_is_noted(
    tmp_path: Path, code: int, num_notes: int
) -> None:
    path = write_image(tmp_path / "a.nii", VALUES, change=lambda h: h.__setitem__("xyzt_units", code))
    scan = load(path)
    assert scan.spacing_mm == pytest.approx((1.5, 1.3, 2.0))
    assert [note for note in scan.notes if "millimetres" in note] == list(scan.notes)
    assert len(scan.notes) == num_notes


def moved(header: Any, voxels: float) -> None:
    header["qoffset_x"] += 1.5 * voxels


def test_sform_and_qform_must_agree(tmp_path: Path) -> None:
    near = load(write_image(tmp_path / "near.nii", VALUES, change=lambda h: moved(h, 0.09)))
    assert near.origin_mm[0] == pytest.approx(-14.25)  # the sform's
    error = refused(write_image(tmp_path / "far.nii", VALUES, change=lambda h: moved(h, 0.11)))
    assert error.reason == "conflicting_geometry"
    assert "0.11 voxels" in str(error)
    turned = centred(TURN * np.array([1.5, 1.3, 2.0]), SHAPE)
    path = write_image(tmp_path / "turned.nii", VALUES, change=lambda h: h.set_qform(turned, code=1))
    assert refused(path).reason == "conflicting_geometry"


def test_qform_alone_places(tmp_path: Path) -> None:
    def only_qform(header: Any) -> None:
        header["sform_code"] = 0
        header["srow_x"] = 9
        header["pixdim"][0] = 0  # counts as 1

    affine = centred(TURN * np.array([1.5, 1.3, 2.0]), SHAPE)
    scan = load(write_image(tmp_path / "a.nii", VALUES, affine, change=only_qform))
    np.testing.assert_allclose(scan.direction, TURN, atol=1e-6)


def uncoded(header: Any) -> None:
    header["sform_code"] = header["qform_code"] = 0


def flat(header: Any) -> None:
    header["qform_code"] = 0
    header["srow_z"] = 0


def no_number(header: Any) -> None:
    header["qform_code"] = 0
    header["srow_z"] = np.nan


def bad_quaternion(header: Any) -> None:
    header["sform_code"] = 0
    header["quatern_b"] = header["quatern_c"] = 1


@pytest.mark.parametrize("change", [uncoded, flat, no_number, bad_quaternion])
def test_without_a_place_quarantined(tmp_path: Path, change: Any) -> None:
    assert refused(write_image(tmp_path / "a.nii", VALUES, change=change)).reason == "missing_geometry"


# ---- values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slope", "inter", "expected", "dtype"),
    [
        (0.0, 7.0, VALUES, np.int16),
        (np.nan, 7.0, VALUES, np.int16),
        (1.0, -10.0, VALUES - 10, np.int16),
        (2.0, 801.0, VALUES * 2 + 801, np.int16),
        (0.5, -100.25, VALUES * 0.5 - 100.25, np.float32),
    ],
)
def test_scaling(tmp_path: Path, slope: float, inter: float, expected: np.ndarray, dtype: type) -> None:
    def scale(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = slope, inter

    scan = load(write_image(tmp_path / "a.nii.gz", VALUES, change=scale))
    assert scan.hu.dtype == dtype
    np.testing.assert_array_equal(scan.hu, np.where(expected < AIR_HU, FILL_HU, expected).transpose(2, 1, 0))


def test_slope_without_intercept(tmp_path: Path) -> None:
    def scale(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = 2.0, np.inf

    assert refused(write_image(tmp_path / "a.nii", VALUES, change=scale)).reason == "missing_rescale"


def test_values_below_air_are_fill(tmp_path: Path) -> None:
    values = VALUES.astype(np.float32)
    values[:5] = -3024.0
    scan = load(write_image(tmp_path / "a.nii", values))
    assert (scan.hu[:, :, :5] == FILL_HU).all()
    assert scan.notes == ()
    np.testing.assert_array_equal(scan.hu[:, :, 5:], VALUES.transpose(2, 1, 0)[:, :, 5:])


def test_not_finite(tmp_path: Path) -> None:
    values = VALUES.astype(np.float32)
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    path = write_image(tmp_path / "a.nii.gz", values)
    error = refused(path)
    assert error.reason == "not_finite"
    assert "3 of 10560" in str(error)
    assert "ingest.nan" in str(error)
    scan = load(path, nan="air")
    assert list(scan.hu[:3, 0, 0]) == [FILL_HU] * 3
    assert scan.hu[3, 0, 0] == VALUES[0, 0, 3]
    assert scan.notes == ("3 of 10560 voxels are not finite and became -1024 HU",)


def test_undeclared_fill_in_the_corners_is_fill_and_noted(tmp_path: Path) -> None:
    values = VALUES.astype(np.int32)
    values[:3, :3] = 62512
    scan = load(write_image(tmp_path / "a.nii", values))
    assert (scan.hu[:, :3, :3] == FILL_HU).all()
    assert scan.hu.max() == VALUES.max()
    assert scan.notes == ("216 of 10560 voxels in regions above ingest.max_hu = 30719 were taken as fill: -1024 HU",)


def test_a_scan_beyond_hu_is_quarantined(tmp_path: Path) -> None:
    def shifted(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = 1, 31024

    assert refused(write_image(tmp_path / "a.nii", VALUES, change=shifted)).reason == "impossible_hu"


@pytest.mark.parametrize("header", ["nifti pair", "analyze"])
def test_images_in_two_files_are_skipped_by_name(tmp_path: Path, header: str) -> None:
    data = bytearray(write_image(tmp_path / "a.nii", VALUES).read_bytes()[:348])
    data[344:348] = b"ni1\0" if header == "nifti pair" else b"\0\0\0\0"
    if header == "analyze":
        data[32:36], data[38:39] = (16384).to_bytes(4, "little"), b"r"
    (tmp_path / "a.hdr").write_bytes(data)
    facts = facts_of(tmp_path / "a.hdr")
    assert (facts.format, facts.scan, facts.reason) == ("nifti", "", "image_pair")


def test_trailing_axes_of_one_are_dropped_and_series_refused(tmp_path: Path) -> None:
    one = load(write_image(tmp_path / "one.nii", VALUES[..., None, None]))
    np.testing.assert_array_equal(one.hu, VALUES.transpose(2, 1, 0))
    error = refused(write_image(tmp_path / "two.nii", np.stack([VALUES, VALUES], axis=3)))
    assert error.reason == "multi_volume"
    assert "20 × 22 × 24 × 2" in str(error)
    assert (
        refused(write_image(tmp_path / "flat.nii", VALUES[:, :, 0], np.diag([1.0, 1.0, 2.0, 1.0]))).reason
        == "multi_volume"
    )


def test_too_few_slices_along_any_axis(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.nii", VALUES[:5])
    assert refused(path, min_slices=6).reason == "too_few_slices"
    assert load(path, min_slices=5).hu.shape == (24, 22, 5)


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_unsupported_pixels(tmp_path: Path, dtype: Any) -> None:
    path = write_image(tmp_path / "a.nii", np.zeros(SHAPE, dtype))
    assert refused(path).reason == "unsupported_pixels"


def test_unknown_data_type(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.nii", VALUES)
    data = bytearray(path.read_bytes())
    data[70:72] = (77).to_bytes(2, "little")
    path.write_bytes(data)
    error = refused(path)
    assert error.reason == "unsupported_pixels"
    assert "77" in str(error)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncated_file(tmp_path: Path, name: str) -> None:
    path = write_image(tmp_path / name, VALUES)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert read_source_file(path.parent, path.name)[1].format == "nifti"
    assert refused(path).reason == "unreadable_pixels"


def test_damaged_gzip(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.nii.gz", VALUES)
    data = bytearray(path.read_bytes())
    data[-6] ^= 255  # of the checksum
    path.write_bytes(data)
    assert refused(path).reason == "unreadable_pixels"


def test_a_header_that_claims_terabytes(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.nii", VALUES)
    data = bytearray(path.read_bytes())
    data[42:48] = (30000).to_bytes(2, "little") * 3
    path.write_bytes(data)
    assert refused(path).reason == "too_large"


def claiming(path: Path, sizes: tuple[int, int, int], num_bytes: int) -> Path:
    """A gzipped file whose header claims `sizes` voxels, with so many zeros behind it."""
    data = bytearray(write_image(path.with_suffix(".nii"), VALUES).read_bytes()[:352])
    data[42:48] = b"".join(n.to_bytes(2, "little") for n in sizes)
    with gzip.open(path, "wb", compresslevel=9) as stream:
        stream.write(data)
        for _ in range(num_bytes >> 20):
            stream.write(bytes(1 << 20))
    return path


def test_a_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    path = claiming(tmp_path / "bomb.nii.gz", (512, 512, 512), 256 << 20)
    assert path.stat().st_size < 300_000
    tracemalloc.start()
    error = refused(path)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert error.reason == "too_costly"
    assert "536871264" in str(error)


def test_data_far_behind_the_header_are_refused(tmp_path: Path) -> None:
    path = claiming(tmp_path / "far.nii.gz", SHAPE, 8 << 20)
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[108:112] = np.float32(300 << 20).tobytes()
    path.write_bytes(gzip.compress(data))
    assert refused(path).reason == "too_costly"


def test_what_follows_the_voxels_is_read_to_the_check_sum_where_it_is_short(tmp_path: Path) -> None:
    assert (load(claiming(tmp_path / "short.nii.gz", SHAPE, 8 << 20)).hu == 0).all()
    path = claiming(tmp_path / "long.nii.gz", SHAPE, 80 << 20)
    tracemalloc.start()
    assert "its compressed data are longer than its header says" in str(refused(path))
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_a_real_scan_may_be_small_when_compressed(tmp_path: Path) -> None:
    shape = (128, 128, 64)
    values = np.full(shape, -1000, np.int16)
    values[40:80, 40:80] = 40
    path = write_image(tmp_path / "phantom.nii.gz", values)
    assert path.stat().st_size * 200 < values.nbytes
    assert load(path).hu.shape == shape[::-1]


@pytest.mark.parametrize("damage", ["a bit", "zeros", "cut", "sum"])
def test_a_damaged_gzip_is_refused_whatever_its_values_are(tmp_path: Path, damage: str) -> None:
    """Damaged data can be longer than the image, so that the check sum is not reached with the last voxel."""
    packed = gzip.compress(write_image(tmp_path / "a.nii", VALUES).read_bytes())
    half, name = len(packed) // 2, tmp_path / "a.nii.gz"
    if damage == "a bit":
        variants = []
        for place in range(half, len(packed) - 8, (len(packed) - half) // 60):
            data = bytearray(packed)
            data[place] ^= 4
            variants.append(bytes(data))
    else:
        variants = [
            {
                "zeros": packed[:half] + bytes(len(packed) - half),
                "cut": packed[:half],
                "sum": packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:],
            }[damage]
        ]
    for data in variants:
        name.write_bytes(data)
        error = refused(name)
        assert error.reason == "unreadable_pixels"
        assert ("its compressed data are damaged" in str(error)) or ("its compressed data end early" in str(error))
