"""Multi-frame CT: every frame where it belongs, with its own rescale values, judged like single images."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels import compress

from storage.errors import UnusableSeriesError
from storage.geometry import FILL_HU
from storage.sources.dicom import DICOM
from storage.sources.dicom_series import SeriesImages
from storage.sources.source import FileFacts, Limits, ScanRequest, SourceVolume
from tests.processes import PATIENCE_S
from tests.unit.storage.dicom_files import linear_hu, write_series
from tests.unit.storage.enhanced_files import ENHANCED, LEGACY, write_enhanced

REAL = Path("/work/shared/ct/robustness/legacy_enhanced_multiframe")
MIXED = (5, 0, 3, 1, 2, 4, 6, 23, 22, *range(7, 22))
OBLIQUE = ((0.8, 0.6, 0.0), (-0.6, 0.8, 0.0))


def load(source: Path, **limits: Any) -> list[SourceVolume]:
    files = tuple(sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()))
    return list(DICOM.load(ScanRequest(source, files, "1.2.3.4.5", Limits(**limits))))


def reason_of(source: Path, **limits: Any) -> tuple[str, str]:
    with pytest.raises(UnusableSeriesError) as caught:
        load(source, **limits)
    return caught.value.reason, str(caught.value)


def facts_of(path: Path) -> FileFacts:
    with path.open("rb") as stream:
        facts = DICOM.read_header(stream, path)
    assert facts is not None
    return facts


def worst_hu(volume: SourceVolume, hu: Callable[[np.ndarray], np.ndarray] = linear_hu) -> float:
    """Largest difference from a function of world position, HU, over what was measured."""
    k, j, i = np.meshgrid(*map(np.arange, volume.hu.shape), indexing="ij")
    steps = volume.direction * np.asarray(volume.spacing_mm)
    along = k * volume.spacing_mm[2] if volume.slice_mm is None else np.asarray(volume.slice_mm)[k]
    world = np.asarray(volume.origin_mm) + i[..., None] * steps[:, 0] + j[..., None] * steps[:, 1]
    world = world + along[..., None] * volume.direction[:, 2]
    measured = volume.hu != FILL_HU
    return float(np.abs(volume.hu - hu(world))[measured].max())


@pytest.mark.parametrize("sop_class", [ENHANCED, LEGACY, uid.CTImageStorage])
@pytest.mark.parametrize("order", [None, MIXED, tuple(range(23, -1, -1))])
def test_frames_in_any_order_are_one_volume(tmp_path: Path, sop_class: str, order: tuple[int, ...] | None) -> None:
    write_enhanced(tmp_path / "one.dcm", sop_class=sop_class, order=order, axes=OBLIQUE)
    assert facts_of(tmp_path / "one.dcm") == FileFacts(
        "dicom", "1.2.3.4.5", patient_id="SECRET-ID-77", study="1.2.3.4.5.1"
    )
    (volume,) = load(tmp_path)
    assert volume.hu.shape == (24, 26, 28)
    assert volume.hu.dtype == np.int16
    assert volume.spacing_mm == pytest.approx((1.7, 1.3, 2.5))
    assert worst_hu(volume) <= 0.51
    assert volume.attributes["KVP"] == 120
    assert not any("SECRET" in str(value) or "Hidden" in str(value) for value in volume.attributes.values())


def test_one_file_and_its_single_images_are_the_same_volume(tmp_path: Path) -> None:
    write_series(tmp_path / "single")
    write_enhanced(tmp_path / "multi" / "one.dcm", order=MIXED)
    (single,), (multi,) = load(tmp_path / "single"), load(tmp_path / "multi")
    assert multi.pixel_digest == single.pixel_digest
    assert multi.geometry() == single.geometry()


@pytest.mark.parametrize("shared", [(), ("PixelValueTransformationSequence",), ("CTImageFrameTypeSequence",)])
def test_groups_may_be_shared_or_of_each_frame(tmp_path: Path, shared: tuple[str, ...]) -> None:
    write_enhanced(tmp_path / "one.dcm", shared=shared)
    assert worst_hu(load(tmp_path)[0]) <= 0.51


def test_every_frame_has_its_own_rescale(tmp_path: Path) -> None:
    def rescale(k: int, data: Dataset) -> None:
        hu = np.frombuffer(data.PixelData, "<i2").astype(float) - 1024
        data.RescaleSlope, data.RescaleIntercept = 0.25 * (k % 3 + 1), -900 - 10 * k
        data.PixelData = np.rint((hu - data.RescaleIntercept) / data.RescaleSlope).astype("<i2").tobytes()

    write_enhanced(tmp_path / "one.dcm", order=MIXED, change=rescale)
    (volume,) = load(tmp_path)
    assert volume.hu.dtype == np.float32
    assert worst_hu(volume) <= 1


def test_padding_of_the_file_is_no_tissue_in_any_frame(tmp_path: Path) -> None:
    def pad(k: int, data: Dataset) -> None:
        pixels = np.frombuffer(data.PixelData, "<i2").reshape(26, 28).copy()
        pixels[:3] = -2000
        data.PixelData = pixels.tobytes()
        data.add_new("PixelPaddingValue", "SS", -2000)

    write_enhanced(tmp_path / "one.dcm", change=pad)
    (volume,) = load(tmp_path)
    assert (volume.hu[:, :3] == FILL_HU).all()
    assert (volume.hu[:, 3:] != FILL_HU).all()
    assert worst_hu(volume) <= 0.51


def test_frames_of_several_files_are_one_volume(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "a.dcm", order=(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22))
    write_enhanced(tmp_path / "b.dcm", order=(23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1))
    (volume,) = load(tmp_path)
    assert volume.hu.shape == (24, 26, 28)
    assert worst_hu(volume) <= 0.51


@pytest.mark.parametrize("tag", ["StackID", "TemporalPositionIndex", "AcquisitionNumber", "ConvolutionKernel"])
def test_stacks_and_phases_in_one_file_are_volumes_of_their_own(tmp_path: Path, tag: str) -> None:
    def second(world: np.ndarray) -> np.ndarray:
        return linear_hu(world) + 500

    value: dict[str, tuple[Any, Any]] = {"ConvolutionKernel": ("B30f", "B70f"), "StackID": ("1", "2")}
    first_value, second_value = value.get(tag, (1, 2))
    write_enhanced(tmp_path / "one.dcm", change=lambda k, data: setattr(data, tag, first_value))
    write_enhanced(tmp_path / "two.dcm", second, change=lambda k, data: setattr(data, tag, second_value))
    one, two = (pydicom.dcmread(tmp_path / name) for name in ("one.dcm", "two.dcm"))
    one.NumberOfFrames = 48
    one.PerFrameFunctionalGroupsSequence = [
        group for pair in zip(*(d.PerFrameFunctionalGroupsSequence for d in (one, two)), strict=True) for group in pair
    ]
    pixels = [np.frombuffer(d.PixelData, "<i2").reshape(24, -1) for d in (one, two)]
    one.PixelData = np.stack(pixels, axis=1).tobytes()
    one.save_as(tmp_path / "one.dcm")
    (tmp_path / "two.dcm").unlink()
    volumes = load(tmp_path)
    assert len(volumes) == 2
    assert [volume.num_parts for volume in volumes] == [2, 2]
    assert len({volume.part for volume in volumes}) == 2
    assert worst_hu(volumes[0]) <= 0.51
    assert worst_hu(volumes[1], second) <= 0.51


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless])
def test_compressed_frames(tmp_path: Path, syntax: str) -> None:
    write_enhanced(tmp_path / "one.dcm", order=MIXED)
    data = pydicom.dcmread(tmp_path / "one.dcm")
    compress(data, syntax, generate_instance_uid=False)
    data.save_as(tmp_path / "one.dcm")
    assert worst_hu(load(tmp_path)[0]) <= 0.51


# -- broken and odd


def drop_group(name: str, frame: int) -> Callable[[Dataset], None]:
    def change(data: Dataset) -> None:
        del data.PerFrameFunctionalGroupsSequence[frame][name]

    return change


@pytest.mark.parametrize("frame", [0, 7, 23])
def test_a_frame_without_its_position(tmp_path: Path, frame: int) -> None:
    write_enhanced(tmp_path / "one.dcm", change_file=drop_group("PlanePositionSequence", frame))
    reason, message = reason_of(tmp_path)
    assert reason == "missing_geometry"
    assert f"ImagePositionPatient in frame {frame + 1} of 24" in message


def test_no_frame_has_a_position(tmp_path: Path) -> None:
    def change(data: Dataset) -> None:
        for group in data.PerFrameFunctionalGroupsSequence:
            del group.PlanePositionSequence

    write_enhanced(tmp_path / "one.dcm", change_file=change)
    assert reason_of(tmp_path)[0] == "missing_geometry"


@pytest.mark.parametrize(
    ("group", "reason"),
    [("PixelValueTransformationSequence", "missing_rescale"), ("PlaneOrientationSequence", "missing_geometry")],
)
def test_groups_that_are_in_no_frame(tmp_path: Path, group: str, reason: str) -> None:
    def change(data: Dataset) -> None:
        for item in (*data.SharedFunctionalGroupsSequence, *data.PerFrameFunctionalGroupsSequence):
            item.pop(group, None)

    write_enhanced(tmp_path / "one.dcm", change_file=change)
    assert reason_of(tmp_path)[0] == reason


@pytest.mark.parametrize(
    ("count", "reason"), [(23, "bad_number"), (25, "bad_number"), (0, "bad_number"), ("1\\1", "bad_number")]
)
def test_counts_of_frames_that_do_not_fit(tmp_path: Path, count: object, reason: str) -> None:
    write_enhanced(tmp_path / "one.dcm", change_file=lambda data: setattr(data, "NumberOfFrames", count))
    assert facts_of(tmp_path / "one.dcm").reason == ""
    found, message = reason_of(tmp_path)
    assert found == reason
    assert "NumberOfFrames" in message


def test_frames_that_are_not_in_the_pixel_data(tmp_path: Path) -> None:
    def change(data: Dataset) -> None:
        data.PixelData = data.PixelData[: -26 * 28 * 2]

    write_enhanced(tmp_path / "one.dcm", change_file=change)
    assert reason_of(tmp_path)[0] == "unreadable_pixels"


def test_a_missing_frame_is_a_gap(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "one.dcm", order=[k for k in range(24) if k not in (9, 10)])
    assert reason_of(tmp_path)[0] == "missing_slices"


def test_old_multi_frame_images_without_positions_are_no_volume(tmp_path: Path) -> None:
    def change(data: Dataset) -> None:
        del data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.RescaleSlope, data.RescaleIntercept = [1, 1], 1, -1024

    write_enhanced(tmp_path / "one.dcm", sop_class=uid.CTImageStorage, change_file=change)
    reason, message = reason_of(tmp_path)
    assert reason == "multi_frame"
    assert "24 frames without positions" in message


@pytest.mark.parametrize(
    ("sop_class", "modality", "reason"),
    [
        (uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage, "CT", "secondary_capture"),
        (uid.EnhancedMRImageStorage, "MR", "not_ct"),
        (uid.SegmentationStorage, "SEG", "not_ct"),
        (uid.ParametricMapStorage, "CT", "not_ct"),
    ],
)
def test_multi_frame_images_of_other_classes(tmp_path: Path, sop_class: str, modality: str, reason: str) -> None:
    def change(data: Dataset) -> None:
        data.Modality = modality

    write_enhanced(tmp_path / "one.dcm", sop_class=sop_class, change_file=change)
    assert facts_of(tmp_path / "one.dcm").reason == reason


# -- real, and large


def test_a_real_legacy_converted_file_has_the_values_of_its_single_images() -> None:
    multi = SeriesImages(ScanRequest(REAL, ("multiframe/mf.dcm",), "x"), "x")
    single = SeriesImages(ScanRequest(REAL, tuple(f"image/IMG000{k}.dcm" for k in (1, 2, 3)), "x"), "x")
    assert len(multi.planes) == 3
    for one, other in zip(multi.planes, single.planes, strict=True):
        assert (one.position_mm, one.orientation, one.pixel_mm) == (
            other.position_mm,
            other.orientation,
            other.pixel_mm,
        )
        assert (one.slope, one.intercept, one.rescale_type) == (other.slope, other.intercept, other.rescale_type)
        assert np.array_equal(multi.take_pixels(one), single.take_pixels(other))


_PEAK = """
import sys
from pathlib import Path
from storage.sources.dicom import DICOM
from storage.sources.dicom_series import SeriesImages
from storage.sources.source import ScanRequest
(volume,) = DICOM.load(ScanRequest(Path(sys.argv[1]), ("one.dcm",), "1.2.3.4.5"))
peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024
print(volume.hu.shape, peak)
"""


def test_three_hundred_frames_need_less_than_a_gigabyte(tmp_path: Path) -> None:
    def change(k: int, data: Dataset) -> None:
        data.Rows = data.Columns = 512
        data.PixelData = np.full((512, 512), 24 + k, "<i2").tobytes()

    write_enhanced(tmp_path / "one.dcm", shape=(300, 8, 8), change=change)
    out = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    *shape, peak = out.stdout.replace("(", "").replace(")", "").replace(",", "").split()
    assert shape == ["300", "512", "512"]
    assert int(peak) < 900  # MiB: 150 of pixels in the file, 150 of HU, the libraries


@pytest.mark.parametrize(
    ("word", "reason"), [("EFF_ATOMIC_NUM", "other_quantity"), ("MIP", "derived_reformat"), ("LOCALIZER", "localizer")]
)
def test_frame_type_says_what_a_frame_is(tmp_path: Path, word: str, reason: str) -> None:
    """Of all frames, and of the last one alone; RescaleType is HU."""

    def typed(first: int) -> Callable[[int, Dataset], None]:
        def change(k: int, data: Dataset) -> None:
            if k >= first:
                data.ImageType = ["DERIVED", "SECONDARY", "VOLUME", word]

        return change

    write_enhanced(tmp_path / "one.dcm", change=typed(0))
    assert reason_of(tmp_path)[0] == reason
    write_enhanced(tmp_path / "one.dcm", change=typed(23))
    (found,) = load(tmp_path)
    assert found.hu.shape[0] == 23
    assert [one.reason for one in found.left_out] == [reason]


@pytest.mark.parametrize("num_files", [3, 2])
def test_files_of_a_concatenation_are_counted(tmp_path: Path, num_files: int) -> None:
    """12 slices in three files, PS3.3 C.7.6.16.2.2.4."""
    for part in range(num_files):

        def number(data: Dataset, part: int = part) -> None:
            data.ConcatenationUID, data.SOPInstanceUIDOfConcatenationSource = "1.2.9", "1.2.8"
            data.InConcatenationNumber, data.InConcatenationTotalNumber = part + 1, 3
            data.ConcatenationFrameOffsetNumber = 4 * part

        order = range(4 * part, 4 * part + 4)
        write_enhanced(tmp_path / f"{part}.dcm", order=order, change_file=number, shape=(12, 20, 24))
    if num_files == 3:
        (found,) = load(tmp_path)
        assert (found.hu.shape[0], found.completeness) == (12, "complete")
    else:
        reason, message = reason_of(tmp_path)
        assert reason == "incomplete"
        assert "2 of 3 files of a concatenation (InConcatenationNumber)" in message
