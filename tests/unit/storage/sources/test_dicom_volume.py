"""Which volumes the images of a series make: every condition, by itself and with its neighbours. No slice limit below 8."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from storage.errors import UnusableSeriesError
from storage.sources.dicom_planes import Plane
from storage.sources.dicom_stack import Stack
from storage.sources.dicom_volume import check_planes
from storage.sources.source import Limits
from tests.unit.storage.sources.dicom_plane_lists import LIMITS, changed, planes, request

CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def volumes(
    series: list[Plane], *, limits: Limits = LIMITS, same: bool = False, expected: int | None = None
) -> list[Stack]:
    return check_planes(series, request(limits, expected), lambda one, other: same)


def reason_of(series: list[Plane], **how: Any) -> str:
    with pytest.raises(UnusableSeriesError) as error:
        volumes(series, **how)
    return error.value.reason


def places(stack: Stack) -> list[float]:
    return [plane.position_mm[2] for plane in stack.planes]


@pytest.mark.parametrize("order", ["as is", "reversed", "shuffled"])
def test_slices_are_sorted_by_place_whatever_their_files_are_called(order: str) -> None:
    series = planes()
    if order == "reversed":
        series = series[::-1]
    elif order == "shuffled":
        series = [series[k] for k in np.random.default_rng(3).permutation(24)]
    (stack,) = volumes(series)
    assert places(stack) == [-30 + 2.5 * k for k in range(24)]
    assert stack.spacing_mm == (2.0, 1.5, 2.5)
    assert stack.origin_mm == (-30, -15, -30)
    assert stack.direction.tolist() == np.eye(3).tolist()
    assert (stack.part, stack.num_parts, stack.notes, stack.completeness) == ("", 1, (), "unknown")


@pytest.mark.parametrize("places_", [(8,), (0,), (23,), tuple(range(0, 24, 2)), tuple(range(12))])
@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("patient_id", "several_patients"),
        ("study_uid", "several_studies"),
        ("frame_of_reference", "several_frames_of_reference"),
    ],
)
def test_patients_studies_and_spaces_are_never_split(tag: str, reason: str, places_: tuple[int, ...]) -> None:
    for other in ("9.9", ""):
        assert reason_of(changed(planes(), *places_, **{tag: other})) == reason


def test_a_refusal_does_not_name_the_patients() -> None:
    with pytest.raises(UnusableSeriesError) as error:
        volumes(changed(planes(), 3, patient_id="SMITH"))
    assert "2 patients" in str(error.value)
    assert "SMITH" not in str(error.value)


@pytest.mark.parametrize("shift", [1.25, 0.4, 0.0, 60.0])
@pytest.mark.parametrize(
    ("tag", "name"), [("acquisition", "acquisition"), ("stack_id", "stack"), ("temporal_position", "phase")]
)
def test_whole_acquisitions_are_volumes_of_their_own(shift: float, tag: str, name: str) -> None:
    """Half a step apart, less than that, at the same places, one after the other: 24 slices each, 8 are needed."""
    series = [*planes(**{tag: "1"}), *planes(first_mm=-30 + shift, name="b", **{tag: "2"})]
    found = volumes(series)
    assert [stack.part for stack in found] == [f"{name} 1", f"{name} 2"]
    assert [stack.num_parts for stack in found] == [2, 2]
    assert places(found[0]) == [-30 + 2.5 * k for k in range(24)]
    assert places(found[1]) == pytest.approx([-30 + shift + 2.5 * k for k in range(24)])
    assert all(stack.spacing_mm[2] == pytest.approx(2.5) for stack in found)


def test_acquisitions_that_interleave_are_never_one_volume() -> None:
    """Together they are even: 12 slices each, where 16 are needed."""
    series = [*planes(12, step_mm=5.0), *planes(12, first_mm=-27.5, step_mm=5.0, name="b", acquisition="2")]
    limits = replace(LIMITS, min_slices=16)
    assert reason_of(series, limits=limits) == "several_acquisitions"
    assert reason_of(changed(planes(), *range(0, 24, 2), acquisition="2"), limits=limits) == "several_acquisitions"


@pytest.mark.parametrize("each", [1, 4, 5, 12])
def test_acquisitions_that_follow_each_other_are_one_volume(each: int) -> None:
    """Step and shoot: none has the 16 slices that are needed."""
    series = [replace(plane, acquisition=str(k // each)) for k, plane in enumerate(planes())]
    (stack,) = volumes(series, limits=replace(LIMITS, min_slices=16))
    assert len(stack.planes) == 24
    assert any("acquisitions" in note for note in stack.notes)


def test_a_gap_between_many_acquisitions_is_a_gap() -> None:
    series = [replace(plane, acquisition=str(k)) for k, plane in enumerate(planes()) if k != 9]
    assert reason_of(series) == "missing_slices"


@pytest.mark.parametrize("num", [1, 5, 7, 20])
@pytest.mark.parametrize(("tag", "reason"), [("acquisition", "several_acquisitions"), ("kernel", "several_kernels")])
def test_part_of_an_acquisition_or_kernel_beside_a_whole_one(num: int, tag: str, reason: str) -> None:
    series = [*planes(), *planes(num, first_mm=-17.1, name="b", **{tag: "7"})]
    assert reason_of(series, limits=replace(LIMITS, min_slices=21)) == reason


def test_whole_is_a_matter_of_extents_too() -> None:
    """24 slices of 60 mm are whole where 50 mm are asked for, and not where 70 are."""
    series = [*planes(), *planes(first_mm=-29.0, name="b", acquisition="2")]
    assert len(volumes(series, limits=replace(LIMITS, min_length_mm=50.0))) == 2
    assert reason_of(series, limits=replace(LIMITS, min_length_mm=70.0)) == "several_acquisitions"
    assert reason_of(series, limits=replace(LIMITS, min_width_mm=70.0)) == "several_acquisitions"


def test_kernels_are_volumes_or_refused() -> None:
    series = [*planes(), *planes(name="b", kernel="B70f")]
    found = volumes(series)
    assert [stack.part for stack in found] == ["kernel 1", "kernel 2"]  # by their order: a kernel's name is free text
    assert [{plane.kernel for plane in stack.planes} for stack in found] == [{"B30f"}, {"B70f"}]
    half = changed(planes(), *range(12), kernel="B70f")
    assert reason_of(half, limits=replace(LIMITS, min_slices=16)) == "several_kernels"


def test_kernels_and_acquisitions_at_once() -> None:
    series = [
        plane
        for n, (kernel, acquisition) in enumerate([("A", "1"), ("A", "2"), ("B", "1"), ("B", "2")])
        for plane in planes(name=str(n), kernel=kernel, acquisition=acquisition)
    ]
    assert sorted(stack.part for stack in volumes(series)) == [
        "acquisition 1, kernel 1", "acquisition 1, kernel 2", "acquisition 2, kernel 1", "acquisition 2, kernel 2",
    ]  # fmt: skip


ODD: dict[str, dict[str, Any]] = {
    "inconsistent_orientation": {"orientation": CORONAL},
    "inconsistent_shape": {"shape": (20, 20)},
    "inconsistent_spacing": {"pixel_mm": (0.75, 1.0)},
    "missing_geometry": {"orientation": (), "fault": ("missing_geometry", "ImageOrientationPatient")},
    "bad_number": {"pixel_mm": (), "fault": ("bad_number", "PixelSpacing")},
    "unreadable_file": {"patient_id": "", "study_uid": "", "orientation": (), "fault": ("unreadable_file", "EOFError")},
    "other_quantity": {"fault": ("other_quantity", "Z_EFF by its RescaleType")},
}


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("reason", ODD)
def test_a_few_odd_images_are_left_out_by_name(reason: str, num: int) -> None:
    """At most a fifth of the images: 3 of 27 are."""
    odd = planes(num, first_mm=-5.0, name="odd", **ODD[reason])
    (stack,) = volumes([*odd, *planes()])
    assert places(stack) == [-30 + 2.5 * k for k in range(24)]
    assert [(one.file, one.reason) for one in stack.left_out] == [(plane.file, reason) for plane in odd]
    assert any(f"{num} image(s)" in note and reason in note for note in stack.notes)


@pytest.mark.parametrize("reason", ODD)
def test_what_an_odd_image_breaks_is_called_by_its_reason(reason: str) -> None:
    """Without slice 9 there is a gap: it is not missing, it is odd."""
    series = changed(planes(), 9, **ODD[reason])
    with pytest.raises(UnusableSeriesError) as error:
        volumes(series)
    assert error.value.reason == reason
    assert error.value.file == "a009"


@pytest.mark.parametrize(
    "reason", ["inconsistent_orientation", "inconsistent_shape", "inconsistent_spacing", "bad_number"]
)
def test_many_odd_images_refuse_the_series(reason: str) -> None:
    """7 of 31 images are more than a fifth."""
    assert reason_of([*planes(), *planes(7, first_mm=-5.0, name="odd", **ODD[reason])]) == reason


def test_a_gap_beside_an_odd_image_that_does_not_fill_it() -> None:
    series = [plane for k, plane in enumerate(planes()) if k not in (9, 10)]
    odd = planes(1, first_mm=90.0, name="odd", orientation=CORONAL)
    assert reason_of([*series, *odd]) == "missing_slices"


def test_two_whole_orientations_are_two_volumes() -> None:
    coronal = [
        replace(plane, orientation=CORONAL, position_mm=(-30.0, -15.0 + 2.5 * k, 20.0))
        for k, plane in enumerate(planes(20, name="c"))
    ]
    found = volumes([*planes(), *coronal])
    assert sorted(len(stack.planes) for stack in found) == [20, 24]
    assert len({stack.part for stack in found}) == 2
    assert all(stack.left_out == () for stack in found)


@pytest.mark.parametrize("off", [0.001, 0.0005])
def test_cosines_within_a_thousandth_are_one_orientation(off: float) -> None:
    turned = (1.0, off, 0.0, -off, 1.0, 0.0)
    (stack,) = volumes(changed(planes(), *range(0, 24, 2), orientation=turned))
    assert len(stack.planes) == 24
    assert np.abs(stack.direction[:, 0] - [1, off / 2, 0]).max() < 1e-6
    more = changed(planes(), *range(0, 24, 2), orientation=(1.0, 0.0025, 0.0, -0.0025, 1.0, 0.0))
    assert reason_of(more, limits=replace(LIMITS, min_slices=16)) == "inconsistent_orientation"


def test_repeats_count_once_and_other_pixels_at_a_place_are_refused() -> None:
    again = [replace(plane, file=f"again{k}", instance_uid=f"again.{k}") for k, plane in enumerate(planes()[4:7])]
    (stack,) = volumes([*planes(), *again], same=True)
    assert (len(stack.planes), stack.num_duplicates) == (24, 3)
    assert [plane.file for plane in stack.planes] == [f"a{k:03d}" for k in range(24)]
    assert reason_of([*planes(), *again], same=False) == "duplicate_slices"
    darker = [replace(plane, intercept=-1000.0) for plane in again]  # the same stored pixels are other HU
    assert reason_of([*planes(), *darker], same=True) == "duplicate_slices"


def test_a_repeat_under_another_acquisition_is_a_repeat() -> None:
    again = [replace(plane, file=f"0again{k}", acquisition="2") for k, plane in enumerate(planes()[4:7])]
    (stack,) = volumes([*again, *planes()], same=True)
    assert (len(stack.planes), stack.num_duplicates, stack.part) == (24, 3, "")
    assert {plane.acquisition for plane in stack.planes} == {"1"}


@pytest.mark.parametrize("part", ["HEAD", "Head ", "HEAD AND NECK", "HEADNECK", "left knee", "R-KNEE", "HIPS"])
def test_excluded_body_parts(part: str) -> None:
    limits = replace(LIMITS, excluded_body_parts=("HEAD", "NECK", "KNEE", "HIP"))
    if part == "R-KNEE":  # no word of the list
        assert len(volumes(planes(body_part=part), limits=limits)) == 1
    else:
        assert reason_of(planes(body_part=part), limits=limits) == "other_body_part"
        assert len(volumes(planes(body_part=part), limits=replace(limits, excluded_body_parts=("FOOT",)))) == 1


@pytest.mark.parametrize("part", ["CHEST", "", "CHESTABDPELVIS", "NECKCHEST", "WHOLEBODY", "FOREARM"])
def test_body_parts_that_may_show_a_chest(part: str) -> None:
    limits = replace(LIMITS, excluded_body_parts=("HEAD", "NECK", "PELVIS", "ARM"))
    assert len(volumes(planes(body_part=part), limits=limits)) == 1


def test_absent_and_unspecified_rescale_types_are_noted() -> None:
    for given in ("", "US"):
        (stack,) = volumes(changed(planes(), 1, 2, rescale_type=given))
        assert stack.notes == ("no RescaleType in 2 of 24 images: values are taken as HU",)


@pytest.mark.parametrize("given", [24, 25, 30, 23])
def test_a_manifest_says_how_many_there_are(given: int) -> None:
    if given > 24:
        with pytest.raises(UnusableSeriesError, match=f"24 of the {given}") as error:
            volumes(planes(), expected=given)
        assert error.value.reason == "incomplete"
    else:
        assert volumes(planes(), expected=given)[0].completeness == "complete"


def test_repeats_do_not_complete_a_series() -> None:
    again = [replace(plane, file=f"again{k}") for k, plane in enumerate(planes()[4:10])]
    assert reason_of([*planes(), *again], same=True, expected=30) == "incomplete"


@pytest.mark.parametrize(
    ("count", "numbers", "completeness"),
    [
        (24, range(1, 25), "complete"),
        (24, range(24, 0, -1), "complete"),
        (24, [None] * 24, "complete"),
        (30, range(1, 25), "incomplete"),  # the tail is missing
        (30, range(24, 0, -1), "incomplete"),
        (30, range(7, 31), "incomplete"),  # the head is missing
        (30, [None] * 24, "incomplete"),
        (48, range(1, 25), "unknown"),  # two reconstructions
        (48, range(25, 49), "unknown"),
        (72, [None] * 24, "unknown"),
        (30, range(3, 27), "unknown"),  # both ends cannot be told from a part of something else
        (30, range(101, 125), "unknown"),
        (30, [1] * 24, "unknown"),
        (10, range(1, 25), "unknown"),
        (None, range(1, 25), "unknown"),
    ],
)  # fmt: skip
def test_images_in_acquisition_count_where_they_are_of_the_series(
    count: int | None, numbers: Any, completeness: str
) -> None:
    series = [
        replace(plane, number=number) for plane, number in zip(planes(num_in_acquisition=count), numbers, strict=True)
    ]
    if completeness == "incomplete":
        assert reason_of(series) == "incomplete"
    else:
        assert volumes(series)[0].completeness == completeness


def test_a_count_that_differs_between_slices_says_nothing() -> None:
    assert volumes(changed(planes(num_in_acquisition=30), 5, num_in_acquisition=24))[0].completeness == "unknown"


def test_too_few_slices_and_their_limit() -> None:
    assert len(volumes(planes(8))) == 1
    assert reason_of(planes(7)) == "too_few_slices"
    assert reason_of(planes(1), limits=replace(LIMITS, min_slices=2)) == "too_few_slices"


def test_what_is_made_does_not_depend_on_the_order_of_files() -> None:
    series = [
        *planes(),
        *planes(first_mm=-29.0, name="b", acquisition="2"),
        *planes(2, name="odd", orientation=CORONAL),
    ]
    expected = volumes(series)
    for seed in range(5):
        mixed = [series[k] for k in np.random.default_rng(seed).permutation(len(series))]
        found = volumes(mixed)
        assert [stack.planes for stack in found] == [stack.planes for stack in expected]
        assert Counter(found[0].left_out) == Counter(expected[0].left_out)
