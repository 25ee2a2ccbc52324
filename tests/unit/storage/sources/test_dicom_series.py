"""DICOM series as files: HU at their places, repeats, odd images, fill, numbers that are none; files are read once."""

import copy
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import RLELossless

import storage.sources.dicom_series as dicom_series
from storage.errors import UnusableSeriesError
from storage.geometry import FILL_HU
from storage.sources.dicom import DICOM
from storage.sources.dicom_series import SeriesImages, load_series
from storage.sources.source import Limits, ScanRequest, SourceVolume
from tests.unit.storage.dicom_files import linear_hu, write_series

LIMITS = Limits(min_slices=8)
SHAPE = (12, 20, 24)


def load(folder: Path, limits: Limits = LIMITS) -> list[SourceVolume]:
    files = tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*.dcm")))
    return list(load_series(ScanRequest(folder, files, "1.2.3.4.5", limits)))


def reason_of(folder: Path, limits: Limits = LIMITS) -> tuple[str, str]:
    with pytest.raises(UnusableSeriesError) as error:
        load(folder, limits)
    return error.value.reason, str(error.value)


def expected(matrix: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """HU of every voxel of a series that `write_series` has written, rounded as it was stored."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    world = (np.stack([i, j, k, np.ones_like(i)], axis=-1) @ matrix.T)[..., :3]
    return np.rint(linear_hu(world))


def rewrite(path: Path, to: Path | None = None, **values: Any) -> None:
    """Change tags of a file, or write a copy with other tags; None removes one."""
    data = pydicom.dcmread(path)
    for name, value in values.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(to or path)


def set_raw(path: Path, name: str, text: bytes) -> None:
    """Write a value that pydicom would refuse to write."""
    data = pydicom.dcmread(path)
    tag = Tag(name)
    element = copy.copy(data[tag])
    element.VR, element._value = "OB", text + b" " * (len(text) % 2)
    vr = pydicom.datadict.dictionary_VR(tag)
    data[tag] = element
    data.save_as(path)
    content = path.read_bytes()
    start = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little")
    at = content.index(start + b"OB")
    body = element._value
    path.write_bytes(content[:at] + start + vr.encode() + len(body).to_bytes(2, "little") + content[at + 12 :])


def test_every_voxel_of_a_series_is_what_was_stored(tmp_path: Path) -> None:
    matrix = write_series(tmp_path, shape=SHAPE)
    (found,) = load(tmp_path)
    assert found.hu.dtype == np.int16
    assert (found.hu == expected(matrix)).all()
    assert found.spacing_mm == pytest.approx((1.7, 1.3, 2.5))
    assert found.origin_mm == pytest.approx(tuple(matrix[:3, 3]))
    assert found.completeness == "unknown"
    assert found.notes == ()


@pytest.mark.parametrize("digits", [1, 2])
def test_rounded_positions_keep_voxels_at_their_places(tmp_path: Path, digits: int) -> None:
    """0.75 mm apart, written with one decimal: the step is right to 0.01 mm."""

    def rounded(_: int, data: Dataset) -> None:
        data.ImagePositionPatient = [f"{float(v):.{digits}f}" for v in data.ImagePositionPatient]

    write_series(tmp_path, shape=(24, 20, 24), spacing=(1.7, 1.3, 0.75), change=rounded)
    (found,) = load(tmp_path)
    assert found.slice_mm is None
    assert found.spacing_mm[2] == pytest.approx(0.75, abs=0.01 if digits == 1 else 0.001)


def test_uneven_slices_are_kept_where_they_are(tmp_path: Path) -> None:
    """Up to 8 % of 2.5 mm off, 10 % are allowed."""
    off = 0.2 * np.sin(np.arange(12))

    def moved(k: int, data: Dataset) -> None:
        x, y, z = data.ImagePositionPatient
        data.ImagePositionPatient = [x, y, round(float(z) + off[k], 6)]

    write_series(tmp_path, shape=SHAPE, change=moved)
    (found,) = load(tmp_path)
    assert found.slice_mm is not None
    assert found.origin_mm[2] + np.asarray(found.slice_mm) == pytest.approx(
        -13.75 + 2.5 * np.arange(12) + off, abs=1e-5
    )
    assert found.notes


def test_two_acquisitions_in_one_series_are_two_volumes(tmp_path: Path) -> None:
    """Interleaved half a step apart: never one volume of alternating slices."""
    for number, value in ((1, 100.0), (2, 200.0)):

        def second(k: int, data: Dataset, number: int = number) -> None:
            x, y, z = data.ImagePositionPatient
            data.AcquisitionNumber, data.ImagePositionPatient = number, [x, y, float(z) + 1.25 * (number - 1)]
            data.SOPInstanceUID = f"1.2.3.{number}.{k}"

        write_series(tmp_path / str(number), lambda w, v=value: np.full(w.shape[:-1], v), shape=SHAPE, change=second)
    found = load(tmp_path)
    assert [(one.part, one.num_parts) for one in found] == [("acquisition 1", 2), ("acquisition 2", 2)]
    assert [np.unique(one.hu).tolist() for one in found] == [[100], [200]]
    assert found[1].origin_mm[2] - found[0].origin_mm[2] == pytest.approx(1.25)
    assert [one.spacing_mm[2] for one in found] == pytest.approx([2.5, 2.5])


@pytest.mark.parametrize("how", ["copy", "new instance", "other header", "compressed", "other rescale"])
def test_repeats_count_once(tmp_path: Path, how: str) -> None:
    matrix = write_series(tmp_path, shape=SHAPE)
    for k in (3, 7):
        source, target = tmp_path / f"{k:03d}.dcm", tmp_path / f"again{k}.dcm"
        if how == "copy":
            target.write_bytes(source.read_bytes())
        elif how == "new instance":
            rewrite(source, target, SOPInstanceUID=f"1.9.{k}")
        elif how == "other header":
            rewrite(source, target, InstanceCreationDate="20200202")
        elif how == "other rescale":  # the same HU
            data = pydicom.dcmread(source)
            pixels = data.pixel_array.astype("<i2") + int(data.RescaleIntercept)
            rewrite(source, target, RescaleIntercept=0, PixelRepresentation=1, PixelData=pixels.tobytes())
        else:
            data = pydicom.dcmread(source)
            data.compress(RLELossless)
            data.save_as(target)
    (found,) = load(tmp_path)
    assert found.num_duplicates == 2
    assert (found.hu == expected(matrix)).all()


def test_the_same_pixels_of_another_rescale_are_other_hu(tmp_path: Path) -> None:
    write_series(tmp_path, shape=SHAPE)
    rewrite(tmp_path / "003.dcm", tmp_path / "again.dcm", SOPInstanceUID="1.9.3", RescaleIntercept=-1000)
    assert reason_of(tmp_path)[0] == "duplicate_slices"


@pytest.mark.parametrize(
    "broken", [["a/003.dcm"], ["b/003.dcm"], ["a/003.dcm", "b/007.dcm", *(f"a/{k:03d}.dcm" for k in range(8, 12))]]
)
def test_a_file_that_cannot_be_decoded_beside_a_whole_copy_is_left_out(tmp_path: Path, broken: list[str]) -> None:
    matrix = write_series(tmp_path / "a", shape=SHAPE)
    write_series(tmp_path / "b", shape=SHAPE)
    for name in broken:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-300])
    (found,) = load(tmp_path)
    assert (found.hu == expected(matrix)).all()
    assert sorted((one.file, one.reason) for one in found.left_out) == [
        (name, "unreadable_pixels") for name in sorted(broken)
    ]
    assert any(re.match(rf"{len(broken)} files? cannot be decoded", note) for note in found.notes)


def test_a_whole_copy_is_found_where_the_series_has_several_volumes(tmp_path: Path) -> None:
    for number in (1, 2):

        def change(k: int, data: Dataset, number: int = number) -> None:
            x, y, z = data.ImagePositionPatient
            data.AcquisitionNumber, data.ImagePositionPatient = number, [x, y, float(z) + 1.25 * (number - 1)]
            data.SOPInstanceUID = f"1.2.3.{number}.{k}"

        for copy_ in ("a", "b"):
            write_series(tmp_path / copy_ / str(number), shape=SHAPE, change=change)
    broken = tmp_path / "a/2/005.dcm"
    broken.write_bytes(broken.read_bytes()[:-300])
    found = load(tmp_path)
    assert [(one.part, one.num_duplicates, one.hu.shape[0]) for one in found] == [
        ("acquisition 1", 12, 12),
        ("acquisition 2", 11, 12),
    ]
    assert [(one.file, one.reason) for one in found[0].left_out] == [("a/2/005.dcm", "unreadable_pixels")]


@pytest.mark.parametrize("how", ["both copies", "other image", "other place"])
def test_a_file_that_cannot_be_decoded_without_a_whole_copy_refuses_the_series(tmp_path: Path, how: str) -> None:
    write_series(tmp_path / "a", shape=SHAPE)
    write_series(tmp_path / "b", shape=SHAPE)
    one, other = tmp_path / "a/011.dcm", tmp_path / "b/011.dcm"
    if how == "other image":
        rewrite(other, SOPInstanceUID="1.9.3")
    elif how == "other place":
        rewrite(other, ImagePositionPatient=list(pydicom.dcmread(tmp_path / "b/010.dcm").ImagePositionPatient))
    one.write_bytes(one.read_bytes()[:-300])
    if how == "both copies":
        other.write_bytes(other.read_bytes()[:-200])
    assert reason_of(tmp_path)[0] in ("unreadable_pixels", "duplicate_slices")


def test_other_pixels_at_one_position_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, shape=SHAPE)
    pixels = bytearray(pydicom.dcmread(tmp_path / "003.dcm").PixelData)
    pixels[100] ^= 1
    rewrite(tmp_path / "003.dcm", tmp_path / "again.dcm", SOPInstanceUID="1.9.3", PixelData=bytes(pixels))
    reason, message = reason_of(tmp_path)
    assert reason == "duplicate_slices"
    assert "-6.2" in message  # where: the fourth of 12 slices, 2.5 mm apart around 0


@pytest.mark.parametrize("kind", ["turned", "no orientation", "other matrix", "no pixels at all"])
def test_an_odd_image_is_left_out(tmp_path: Path, kind: str) -> None:
    matrix = write_series(tmp_path, shape=SHAPE)
    odd = tmp_path / "000odd.dcm"  # the first file
    data = pydicom.dcmread(tmp_path / "003.dcm")
    data.SOPInstanceUID = "1.9.3"
    reason = "missing_geometry"
    if kind == "turned":
        data.ImageOrientationPatient, reason = [1, 0, 0, 0, 0, -1], "inconsistent_orientation"
    elif kind == "no orientation":
        del data.ImageOrientationPatient
    elif kind == "other matrix":
        data.Rows, data.PixelData, reason = 10, data.PixelData[: 10 * 24 * 2], "inconsistent_shape"
    data.save_as(odd)
    if kind == "no pixels at all":
        odd.write_bytes(odd.read_bytes()[:700])
        reason = "missing_geometry"
    (found,) = load(tmp_path)
    assert [(one.file, one.reason) for one in found.left_out] == [("000odd.dcm", reason)]
    assert (found.hu == expected(matrix)).all()
    assert found.origin_mm == pytest.approx(tuple(matrix[:3, 3]))


@pytest.mark.parametrize("value", [b"1\\2\\here", b""])
def test_a_slice_without_a_place_is_a_part_that_is_missing(tmp_path: Path, value: bytes) -> None:
    write_series(tmp_path, shape=SHAPE)
    set_raw(tmp_path / "011.dcm", "ImagePositionPatient", value)  # the last one: the others are an even stack
    with pytest.raises(UnusableSeriesError) as error:
        load(tmp_path)
    assert error.value.reason == ("bad_number" if value else "missing_geometry")
    assert error.value.file == "011.dcm"


BAD = {
    "PixelSpacing": [b"1.3", b"1.3\\x", b"nan\\1", b"1.3\\1.7\\2"],
    "ImagePositionPatient": [b"1\\2", b"a\\b\\c", b"1\\2\\inf"],
    "ImageOrientationPatient": [b"1\\0\\0", b"1\\0\\0\\0\\1\\?"],
    "RescaleSlope": [b"one", b"1\\1", b"nan"],
    "RescaleIntercept": [b"-1O24", b"inf"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
@pytest.mark.parametrize("everywhere", [True, False])
def test_numbers_that_are_none_are_named(tmp_path: Path, name: str, text: bytes, everywhere: bool) -> None:
    write_series(tmp_path, shape=SHAPE)
    for path in sorted(tmp_path.iterdir()) if everywhere else [tmp_path / "005.dcm"]:
        set_raw(path, name, text)
    reason, message = reason_of(tmp_path)
    assert reason == "bad_number"
    assert name in message


@pytest.mark.parametrize(
    "name", ["AcquisitionNumber", "InstanceNumber", "ImagesInAcquisition", "KVP", "SliceThickness", "PixelPaddingValue"]
)
def test_numbers_that_are_none_are_dropped_where_nothing_depends_on_them(tmp_path: Path, name: str) -> None:
    matrix = write_series(tmp_path, shape=SHAPE, change=lambda k, d: setattr(d, name, 1))
    for path in tmp_path.iterdir():
        if name != "PixelPaddingValue":  # which is binary
            set_raw(path, name, b"x1\\?")
    with warnings.catch_warnings(record=True) as caught:
        (found,) = load(tmp_path)
    assert not caught  # pydicom's would repeat the value, which may be free text
    assert (found.hu == expected(matrix)).all()
    assert "KVP" not in found.attributes or name != "KVP"


@pytest.mark.parametrize("given", ["Z_EFF", "MGML", "EFF ATOMIC", "ED", "John Smith"])
def test_other_quantities_are_skipped_by_name(tmp_path: Path, given: str) -> None:
    write_series(tmp_path, shape=SHAPE, change=lambda k, d: setattr(d, "RescaleType", given))
    reason, message = reason_of(tmp_path)
    assert reason == "other_quantity"
    assert "Smith" not in message
    assert given == "John Smith" or given in message


@pytest.mark.parametrize(("given", "noted"), [("HU", 0), ("HU_MOD", 0), ("Houndsfield Unit", 0), ("US", 1), (None, 1)])
def test_hu_and_unspecified_values_are_read(tmp_path: Path, given: str | None, noted: int) -> None:
    def typed(_: int, data: Dataset) -> None:
        if given is None:
            del data.RescaleType
        else:
            data.RescaleType = given

    matrix = write_series(tmp_path, shape=SHAPE, change=typed)
    (found,) = load(tmp_path)
    assert (found.hu == expected(matrix)).all()
    assert len(found.notes) == noted


@pytest.mark.parametrize("rescale_type", ["", "US", "HU"])
@pytest.mark.parametrize(
    "word",
    [
        "EFF_ATOMIC_NUM", "EFF_Z", "IODINE", "IOMAP", "MD", "GSI MD", "WATER", "WATER(IODINE)", "SEGMENTATION", "PERFUSION",
        "CBF", "ELECTRON_DENSITY", "ED",
    ],
)  # fmt: skip
def test_a_map_is_known_by_its_image_type(word: str, rescale_type: str, tmp_path: Path) -> None:
    def typed(_: int, data: Dataset) -> None:
        data.RescaleType, data.ImageType = rescale_type, ["DERIVED", "SECONDARY", "AXIAL", word]

    write_series(tmp_path, shape=SHAPE, change=typed)
    assert reason_of(tmp_path)[0] == "other_quantity"


@pytest.mark.parametrize(
    "word", ["MONOENERGETIC", "GSI MONO", "CT_SOM5 SPI", "VUE", "RESAMPLED", "HEAD", "CT_SOM5 SPI DUAL"]
)
def test_derived_images_in_hu(word: str, tmp_path: Path) -> None:
    def typed(_: int, data: Dataset) -> None:
        data.ImageType = ["DERIVED", "SECONDARY", "AXIAL", word]

    write_series(tmp_path, shape=SHAPE, change=typed)
    assert len(load(tmp_path)) == 1


def test_an_original_image_in_hu_is_no_map_by_two_letters(tmp_path: Path) -> None:
    def typed(_: int, data: Dataset) -> None:
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "ED"]

    write_series(tmp_path, shape=SHAPE, change=typed)
    assert len(load(tmp_path)) == 1


@pytest.mark.parametrize(
    "word", ["MIN IP", "MIN_IP", "MinIP", "CT_SOM5 MIP", "AVERAGE", "SUBTRACTION", "MEAN", "CSA MPR"]
)
def test_derived_of_another_series(word: str, tmp_path: Path) -> None:
    def typed(_: int, data: Dataset) -> None:
        data.ImageType = ["DERIVED", "SECONDARY", word]

    write_series(tmp_path, shape=SHAPE, change=typed)
    assert reason_of(tmp_path)[0] == "derived_reformat"
    with (tmp_path / "000.dcm").open("rb") as stream:
        facts = DICOM.read_header(stream, Path("000.dcm"))
    assert facts is not None
    assert facts.reason == "derived_reformat"


def corners(k: int, data: Dataset, stored: int, dtype: str) -> None:
    """Write a value into the corners of a slice."""
    pixels = np.frombuffer(data.PixelData, "<i2").astype(dtype).reshape(data.Rows, data.Columns)
    pixels[:4, :4] = pixels[-4:, -4:] = np.array(stored).astype(dtype)
    data.PixelData, data.PixelRepresentation = pixels.tobytes(), int(dtype == "<i2")


@pytest.mark.parametrize(
    ("stored", "dtype", "declared"),
    [
        (63536, "<u2", None),  # undeclared, beyond what HU can be
        (65535, "<u2", None),
        (63536, "<u2", ("US", 63536)),
        (-2000, "<i2", None),  # below air
        (-2000, "<i2", ("US", 63536)),  # the wrong sign
        (-2000, "<i2", ("SS", -2000)),
        (4095, "<i2", ("SS", 4095)),
        (0, "<u2", ("US", 0)),
    ],
)
def test_padding_and_fill_are_not_measured(
    tmp_path: Path, stored: int, dtype: str, declared: tuple[str, int] | None
) -> None:
    def filled(k: int, data: Dataset) -> None:
        corners(k, data, stored, dtype)
        if declared:
            data.add_new("PixelPaddingValue", *declared)

    matrix = write_series(tmp_path, shape=SHAPE, change=filled)
    (found,) = load(tmp_path, Limits(min_slices=8, max_hu=30719))
    fill = np.zeros(SHAPE, dtype=bool)
    fill[:, :4, :4] = fill[:, -4:, -4:] = True
    assert (found.hu[fill] == FILL_HU).all()
    assert (found.hu[~fill] == expected(matrix)[~fill]).all()
    assert bool(found.notes) == (stored > 60000 and not declared)


def test_a_padding_range_is_fill_and_its_neighbours_are_not(tmp_path: Path) -> None:
    def ranged(k: int, data: Dataset) -> None:
        corners(k, data, 2500, "<i2")
        data.add_new("PixelPaddingValue", "SS", 2400)
        data.add_new("PixelPaddingRangeLimit", "SS", 2600)

    write_series(tmp_path, shape=SHAPE, change=ranged)
    (found,) = load(tmp_path)
    assert int((found.hu == FILL_HU).sum()) == 12 * 32


def test_a_few_voxels_above_the_limit_become_the_limit(tmp_path: Path) -> None:
    """Metal in the middle of three slices; a limit of 3071."""

    def metal(k: int, data: Dataset) -> None:
        if k in (5, 6, 7):
            pixels = np.frombuffer(data.PixelData, "<i2").reshape(data.Rows, data.Columns).copy()
            pixels[10, 11] = 9000 + k
            data.PixelData = pixels.tobytes()

    write_series(tmp_path, shape=SHAPE, change=metal)
    (found,) = load(tmp_path, Limits(min_slices=8, max_hu=3071))
    assert found.hu[5:8, 10, 11].tolist() == [3071] * 3
    assert not (found.hu == FILL_HU).any()
    assert any("3" in note and "3071" in note for note in found.notes)


@pytest.mark.parametrize("intercept", [31000, 60000])
def test_a_scan_beyond_what_hu_can_be_is_refused(tmp_path: Path, intercept: int) -> None:
    """Every stored value is positive."""
    write_series(tmp_path, shape=SHAPE, change=lambda k, d: setattr(d, "RescaleIntercept", intercept))
    assert reason_of(tmp_path, Limits(min_slices=8, max_hu=30719))[0] == "impossible_hu"


def test_each_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = write_series(tmp_path, shape=SHAPE)
    opened: Counter[str] = Counter()
    real = dicom_series.open_file

    def counted(source: Path, name: str) -> Any:
        opened[name] += 1
        return real(source, name)

    monkeypatch.setattr(dicom_series, "open_file", counted)
    assert (load(tmp_path)[0].hu == expected(matrix)).all()
    assert set(opened.values()) == {1}
    assert len(opened) == 12
    opened.clear()
    monkeypatch.setattr(dicom_series, "KEPT_BYTES", 3 * 2000)  # the pixels of files beyond that are read again
    assert (load(tmp_path)[0].hu == expected(matrix)).all()
    assert set(opened.values()) == {1, 2}


def test_private_data_is_not_kept_in_memory(tmp_path: Path) -> None:
    def private(_: int, data: Dataset) -> None:
        data.private_block(0x0019, "ACME", create=True).add_new(1, "OB", bytes(100_000))

    write_series(tmp_path, shape=SHAPE, change=private)
    files = tuple(sorted(path.name for path in tmp_path.iterdir()))
    images = SeriesImages(ScanRequest(tmp_path, files, "1", LIMITS), "Series 1")
    assert {element.tag.group for element in images.header(images.planes[0])} <= {0x08, 0x10, 0x18, 0x20, 0x28, 0x7FE0}


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    write_series(tmp_path, shape=SHAPE)
    files = (*sorted(path.name for path in tmp_path.iterdir()), "gone.dcm")
    (found,) = load_series(ScanRequest(tmp_path, files, "1", LIMITS))
    assert [(one.file, one.reason) for one in found.left_out] == [("gone.dcm", "unreadable_file")]
    (tmp_path / "005.dcm").unlink()
    with pytest.raises(UnusableSeriesError, match="<path>") as error:
        list(load_series(ScanRequest(tmp_path, files[:-1], "1", LIMITS)))
    assert (error.value.reason, error.value.file) == ("unreadable_file", "005.dcm")


def test_one_slice_of_another_rescale_is_named(tmp_path: Path) -> None:
    def shifted(k: int, data: Dataset) -> None:
        if k == 5:
            data.RescaleIntercept = 30000

    write_series(tmp_path, lambda w: np.where(w[..., 0] < 0, -900.0, 40.0), shape=SHAPE, change=shifted)
    with pytest.raises(UnusableSeriesError) as error:
        load(tmp_path)
    assert error.value.reason == "impossible_hu"
    assert error.value.file is not None
    assert pydicom.dcmread(tmp_path / error.value.file).RescaleIntercept == 30000


def test_slices_of_zero_bytes_are_named(tmp_path: Path) -> None:
    def hole(k: int, data: Dataset) -> None:
        if k in (5, 6):
            data.PixelData = bytes(len(data.PixelData))

    write_series(tmp_path, shape=SHAPE, change=hole)
    with pytest.raises(UnusableSeriesError, match="2 of 12 slices: number 6, 7") as error:
        load(tmp_path)
    assert error.value.reason == "no_content"
    assert error.value.file is not None
    assert not any(pydicom.dcmread(tmp_path / error.value.file).PixelData)


@pytest.mark.parametrize(("which", "reason"), [((0, 1, 11), ""), ((5,), "no_content")])
def test_slices_of_declared_padding_alone_may_end_a_series(tmp_path: Path, which: tuple[int, ...], reason: str) -> None:
    def padded(k: int, data: Dataset) -> None:
        data.add_new("PixelPaddingValue", "SS", -2000)
        if k in which:
            data.PixelData = np.full((data.Rows, data.Columns), -2000, "<i2").tobytes()

    write_series(tmp_path, shape=SHAPE, change=padded)
    if reason:
        assert reason_of(tmp_path)[0] == reason
        return
    (found,) = load(tmp_path)
    assert [k for k in range(12) if (found.hu[k] == FILL_HU).all()] == list(which)
