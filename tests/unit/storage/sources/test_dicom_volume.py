"""Which volumes the images of a series make: every condition, by itself and with its neighbours. No slice limit below 8."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from storage.errors import UnusableSeriesError
from storage.sources.dicom_mixed import ALTERNATING_TAGS
from storage.sources.dicom_planes import Plane
from storage.sources.dicom_stack import Stack
from storage.sources.dicom_volume import check_planes
from storage.sources.source import Limits
from storage.verdicts import counted
from tests.unit.storage.sources.dicom_plane_lists import LIMITS, changed, planes, request

CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def volumes(
    series: list[Plane],
    *,
    limits: Limits = LIMITS,
    same: bool = False,
    expected: int | None = None,
    num_beside: int = 0,
) -> list[Stack]:
    return check_planes(series, request(limits, expected, num_beside), lambda one, other: same)


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


NAMES = ("doe john", "19500101", "m", "60y", "")


@pytest.mark.parametrize(
    ("other", "one"),
    [
        (("doe john dr", *NAMES[1:]), True),
        (("doe john paul", *NAMES[1:]), True),
        (("doe", *NAMES[1:]), False),
        (("doe jane", *NAMES[1:]), False),
        (("doe johnny", *NAMES[1:]), False),
        ((NAMES[0], "00000000", *NAMES[2:]), True),
        ((NAMES[0], "19500000", *NAMES[2:]), True),
        ((NAMES[0], "19500100", *NAMES[2:]), True),
        ((NAMES[0], "1950", *NAMES[2:]), True),
        ((NAMES[0], "19510000", *NAMES[2:]), False),
        ((NAMES[0], "19500001", *NAMES[2:]), True),
        ((NAMES[0], "19500102", *NAMES[2:]), False),
        ((*NAMES[:2], "f", "60y", ""), False),
        ((*NAMES[:3], "30y", ""), False),
    ],
)
def test_names_and_birth_dates_may_lack_their_last_parts(other: tuple[str, ...], one: bool) -> None:
    series = changed(planes(person=NAMES), *range(0, 24, 2), person=other)
    if one:
        assert len(volumes(series)[0].planes) == 24
        without_id = [replace(plane, patient_id="") for plane in series]  # then the name is all that there is
        assert reason_of(without_id) == "several_patients"
    else:
        assert reason_of(series) == "several_patients"


@pytest.mark.parametrize(("other", "alike"), [("p", True), ("P ", True), ("00P", True), ("Q", False), ("", False)])
def test_a_patient_id_in_several_spellings_says_how_to_go_on(other: str, alike: bool) -> None:
    with pytest.raises(UnusableSeriesError) as error:
        volumes(changed(planes(), 3, 7, patient_id=other))
    assert error.value.reason == "several_patients"
    assert ("write one value into all images" in str(error.value)) == alike


@pytest.mark.parametrize("shift", [1.25, 0.4, 0.0, 62.5])
@pytest.mark.parametrize(
    ("tag", "name"), [("acquisition", "acquisition"), ("stack_id", "stack"), ("temporal_position", "phase")]
)
def test_whole_acquisitions_are_volumes_of_their_own(shift: float, tag: str, name: str) -> None:
    """Half a step apart, less than that, at the same places, with a gap between them: 24 slices each, 8 are needed."""
    series = [*planes(**{tag: "1"}), *planes(first_mm=-30 + shift, name="b", **{tag: "2"})]
    found = volumes(series)
    assert [stack.part for stack in found] == [f"{name} 1", f"{name} 2"]
    assert [stack.num_parts for stack in found] == [2, 2]
    assert places(found[0]) == [-30 + 2.5 * k for k in range(24)]
    assert places(found[1]) == pytest.approx([-30 + shift + 2.5 * k for k in range(24)])
    assert all(stack.spacing_mm[2] == pytest.approx(2.5) for stack in found)


KVP = ALTERNATING_TAGS.index("KVP")
VALUES = ("",) * len(ALTERNATING_TAGS)


@pytest.mark.parametrize(
    ("what", "changes", "num_volumes"),
    [
        ("the next acquisition", {"acquisition": "2"}, 1),
        ("the next stack", {"stack_id": "2"}, 1),
        ("a phase", {"temporal_position": "2"}, 2),
        ("a kernel", {"kernel": "B70f"}, 2),
        ("another day", {"acquisition": "2", "acquisition_day": "20200102", "acquired_at": datetime(2020, 1, 2, 9)}, 2),
        ("a pause", {"acquisition": "2", "acquired_at": datetime(2020, 1, 1, 12)}, 2),
        ("another tube voltage", {"acquisition": "2", "values": (*VALUES[:KVP], "80.0", *VALUES[KVP + 1 :])}, 2),
        ("another distance", {"acquisition": "2", "first_mm": 30.2}, 2),
        ("beside it", {"acquisition": "2", "aside_mm": 0.5}, 2),
    ],
)  # fmt: skip
def test_whole_acquisitions_that_abut_are_one_volume(what: str, changes: dict[str, Any], num_volumes: int) -> None:
    """24 slices each, 8 are needed."""
    first_mm, aside_mm = changes.pop("first_mm", 30.0), changes.pop("aside_mm", 0.0)
    first = {
        "acquisition_day": "20200101",
        "acquired_at": datetime(2020, 1, 1, 9),
        "temporal_position": "1",
        "stack_id": "1",
    }
    first |= {"values": (*VALUES[:KVP], "120.0", *VALUES[KVP + 1 :])}
    second = [
        replace(plane, position_mm=(plane.position_mm[0] + aside_mm, *plane.position_mm[1:]))
        for plane in planes(first_mm=first_mm, name="b", **(first | changes))
    ]
    found = volumes([*planes(**first), *second])
    assert [len(stack.planes) for stack in found] == [48 // num_volumes] * num_volumes
    assert ("2 acquisitions that follow each other are one volume" in found[0].notes) == (
        what == "the next acquisition"
    )


def test_acquisitions_that_abut_beside_one_that_overlaps_them() -> None:
    """Two halves of 24 slices and the whole again; where both halves were taken twice, none is known to go with another."""
    halves = [*planes(acquisition="1"), *planes(first_mm=30.0, name="b", acquisition="2")]
    whole = planes(48, first_mm=-30.5, name="c", acquisition="3")
    assert [(len(stack.planes), stack.part) for stack in volumes([*halves, *whole])] == [
        (48, "acquisition 1"),
        (48, "acquisition 3"),
    ]
    again = [replace(plane, file=f"d{plane.file}", acquisition=f"{plane.acquisition}1") for plane in halves]
    assert [len(stack.planes) for stack in volumes([*halves, *again])] == [24, 24, 24, 24]


def test_blocks_may_change_places_by_one_slice() -> None:
    series = [replace(plane, acquisition="2" if k in (11, 13) or k > 13 else "1") for k, plane in enumerate(planes())]
    (stack,) = volumes(series, limits=replace(LIMITS, min_slices=16))
    assert len(stack.planes) == 24
    two = changed(series, 9, 10, acquisition="2")
    assert reason_of(two, limits=replace(LIMITS, min_slices=16)) == "several_acquisitions"


@pytest.mark.parametrize("every", [2, 3, 4])
@pytest.mark.parametrize("tag", ["acquisition", "kernel", "temporal_position", "stack_id"])
def test_slices_that_lack_what_the_others_have_are_of_one_volume(tag: str, every: int) -> None:
    for place in (0, 1):
        series = changed(planes(**{tag: "1"}), *range(place, 24, every), **{tag: ""})
        (stack,) = volumes(series)
        assert (len(stack.planes), stack.part, stack.notes) == (24, "", ())
        (stack,) = volumes(changed(planes(**{tag: "1"}), *range(12), **{tag: ""}))
        assert (len(stack.planes), stack.part) == (24, "")


@pytest.mark.parametrize("numbers", ["again", "none", "behind", "no order"])
def test_an_acquisition_without_a_number_is_one_where_instance_numbers_say_so(numbers: str) -> None:
    """Half a step higher: counted from 1 again, not at all, or behind the first."""
    second = [
        replace(plane, number={"again": k + 1, "none": None, "behind": k + 25, "no order": 25 + k * 7 % 24}[numbers])
        for k, plane in enumerate(planes(first_mm=-28.75, name="b", acquisition=""))
    ]
    assert [stack.spacing_mm[2] for stack in volumes([*planes(), *second])] == [2.5, 2.5]


def test_a_split_into_thick_slices_names_the_split() -> None:
    series = [replace(plane, acquisition=str(k % 3)) for k, plane in enumerate(planes(48, step_mm=4.0))]
    with pytest.raises(UnusableSeriesError, match="3 acquisitions that overlap, the largest of 16") as error:
        volumes(series)
    assert error.value.reason == "several_acquisitions"


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


@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize("depth_mm", [-17.1, -20.0, -17.5, -30.0, 27.5])
@pytest.mark.parametrize(
    "changes",
    [{"acquisition": "7"}, {"kernel": "B70f"}, {"image_type": ("ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 MONI")}],
)
def test_images_at_one_place_that_time_a_contrast_agent(changes: dict[str, Any], depth_mm: float, num: int) -> None:
    extra = planes(num, first_mm=depth_mm, step_mm=0.0, name="bolus", **changes)
    (stack,) = volumes([*extra, *planes()])
    assert places(stack) == [-30 + 2.5 * k for k in range(24)]
    assert [(one.file, one.reason) for one in stack.left_out] == [(plane.file, "single_image") for plane in extra]


@pytest.mark.parametrize(
    ("depth_mm", "tag", "reason"),
    [
        (30.0, "acquisition", ""),  # the next slice of step and shoot
        (-20.0, "file", "duplicate_slices"),  # nothing says that it is something else
    ],
)
def test_single_images_that_may_be_slices(depth_mm: float, tag: str, reason: str) -> None:
    series = [*planes(), *planes(1, first_mm=depth_mm, name="b", **({} if tag == "file" else {tag: "7"}))]
    if reason:
        assert reason_of(series) == reason
    else:
        (stack,) = volumes(series)
        assert len(stack.planes) == 25


@pytest.mark.parametrize("num", [2, 5, 7, 20])
@pytest.mark.parametrize(("tag", "reason"), [("acquisition", "several_acquisitions"), ("kernel", "several_kernels")])
def test_part_of_an_acquisition_or_kernel_beside_a_whole_one(num: int, tag: str, reason: str) -> None:
    """A part of an acquisition is left out where it is at most a fifth; what differs in the kernel alone is the same scan."""
    extra = planes(num, first_mm=-17.1, name="b", **{tag: "7"})
    limits = replace(LIMITS, min_slices=21)
    if num > 5 or tag == "kernel":
        assert reason_of([*planes(), *extra], limits=limits) == reason
    else:
        (stack,) = volumes([*planes(), *extra], limits=limits)
        assert len(stack.planes) == 24
        assert [(one.file, one.reason) for one in stack.left_out] == [(plane.file, reason) for plane in extra]


@pytest.mark.parametrize("num", [1, 3, 5])
@pytest.mark.parametrize("first_mm", [60.0, -80.0, -30.0, 30.0])
@pytest.mark.parametrize("numbers", ["again", "behind", "with the gap"])
def test_few_images_of_another_acquisition_are_left_out_unless_slices_are_missing(
    num: int, first_mm: float, numbers: str
) -> None:
    start = {"again": 1, "behind": 25, "with the gap": round((first_mm + 30) / 2.5) + 1}[numbers]
    extra = [
        replace(plane, number=start + k)
        for k, plane in enumerate(planes(num, first_mm=first_mm, name="b", acquisition="2"))
    ]
    if first_mm == 30.0:  # the next slices
        assert len(volumes([*planes(), *extra])[0].planes) == 24 + num
    elif numbers == "with the gap" and first_mm != -30.0:
        assert reason_of([*planes(), *extra]) == "several_acquisitions"
    else:
        (stack,) = volumes([*planes(), *extra])
        assert [one.file for one in stack.left_out] == [plane.file for plane in extra]


def test_few_images_of_another_acquisition_that_continue_the_stack_are_a_part_of_it() -> None:
    """Of another day, so that they cannot be joined: the others are not the whole scan."""
    extra = planes(3, first_mm=30.0, name="b", acquisition="2", acquisition_day="20200102")
    assert reason_of([*planes(acquisition_day="20200101"), *extra]) == "several_acquisitions"


@pytest.mark.parametrize("num", [16, 40])
@pytest.mark.parametrize("each", ["one acquisition", "an acquisition each"])
@pytest.mark.parametrize("depth_mm", [-20.0, 70.0])
def test_images_at_one_place_are_no_volume_however_many(num: int, each: str, depth_mm: float) -> None:
    extra = planes(num, first_mm=depth_mm, step_mm=0.0, name="bolus", acquisition="7")
    if each != "one acquisition":
        extra = [replace(plane, acquisition=str(100 + k)) for k, plane in enumerate(extra)]
    (stack,) = volumes([*extra, *planes()])
    assert places(stack) == [-30 + 2.5 * k for k in range(24)]
    assert [(one.file, one.reason) for one in stack.left_out] == [(plane.file, "single_image") for plane in extra]


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


@pytest.mark.parametrize("places_", [range(33, 40), range(7), [39], [0]])
@pytest.mark.parametrize(
    "reason", ["inconsistent_orientation", "inconsistent_spacing", "inconsistent_shape", "bad_number"]
)
def test_odd_images_that_continue_the_stack_are_a_part_of_it(reason: str, places_: Sequence[int]) -> None:
    """The others are even without them, but not the whole scan."""
    series = changed(planes(40), *places_, **ODD[reason])
    with pytest.raises(UnusableSeriesError) as error:
        volumes(series)
    assert error.value.reason == reason
    assert error.value.file in (f"a{places_[0]:03d}", f"a{places_[-1]:03d}")


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("reason", ODD)
def test_a_few_odd_images_are_left_out_by_name(reason: str, num: int) -> None:
    """At most a fifth of the images: 3 of 27 are."""
    odd = planes(num, first_mm=-5.0, name="odd", **ODD[reason])
    (stack,) = volumes([*odd, *planes()])
    assert places(stack) == [-30 + 2.5 * k for k in range(24)]
    assert [(one.file, one.reason) for one in stack.left_out] == [(plane.file, reason) for plane in odd]
    assert any(f"{counted(num, 'image')} of the series left out" in note and reason in note for note in stack.notes)


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


def moved(series: list[Plane], off_mm: float, unit_mm: float, name: str = "b") -> list[Plane]:
    """A copy of images, with the same UIDs, at other places."""
    return [
        replace(
            plane,
            file=f"{name}{k}",
            position_mm=(*plane.position_mm[:2], plane.position_mm[2] + off_mm),
            position_unit_mm=(unit_mm,) * 3,
        )
        for k, plane in enumerate(series)
    ]


@pytest.mark.parametrize("off_mm", [0.04, -0.2, 0.25])
@pytest.mark.parametrize("copied", [range(24), range(3, 9), [5]])
@pytest.mark.parametrize(("name", "unit_mm"), [("b", 0.01), ("0", 0.01), ("b", 1e-6)])
def test_a_copy_of_the_same_images_beside_them_counts_once(
    off_mm: float, copied: Sequence[int], name: str, unit_mm: float
) -> None:
    """What is written more exactly stays, whichever is first by name; of equals the first."""
    again = moved([planes()[k] for k in copied], off_mm, unit_mm, name)
    (stack,) = volumes([*planes(), *again], same=True)
    assert places(stack) == [-30 + 2.5 * k for k in range(24)]
    assert stack.num_duplicates == len(copied)
    assert stack.notes == (
        f"{len(copied)} images are there again (SOPInstanceUID), up to {abs(off_mm):.3f} mm away: they count once",
    )


@pytest.mark.parametrize("off_mm", [0.3, 1.0, 1.25, 7.5])
def test_a_copy_of_the_same_images_far_from_them_is_named(off_mm: float) -> None:
    with pytest.raises(UnusableSeriesError, match=r"24 images are there again \(SOPInstanceUID\).*two copies") as error:
        volumes([*planes(), *moved(planes(), off_mm, 1e-6)], same=True)
    assert error.value.reason == "inconsistent_position"


def test_one_uid_for_all_images_tells_nothing() -> None:
    (stack,) = volumes([replace(plane, instance_uid="1.9") for plane in planes()], same=True)
    assert len(stack.planes) == 24


@pytest.mark.parametrize(
    ("every", "distance_mm", "noted"),
    [(2, 1.25, True), (-2, 1.25, True), (3, 0.83, True), (2, 2.5, False), (1, 2.5, False), (2, None, False)],
)
def test_numbers_and_distances_that_skip_slices_are_noted(every: int, distance_mm: float | None, noted: bool) -> None:
    series = [replace(plane, number=100 + every * k, slice_distance_mm=distance_mm) for k, plane in enumerate(planes())]
    (stack,) = volumes(series)
    assert stack.completeness == "unknown"
    assert any(f"steps of {abs(every)}" in note and "may be missing" in note for note in stack.notes) == noted
    assert volumes(changed(series, 5, number=None))[0].notes == ()
    assert volumes(series, expected=24)[0].notes == ()


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


@pytest.mark.parametrize(("num_beside", "refused"), [(0, True), (2, True), (6, False), (40, False)])
def test_images_in_acquisition_may_count_other_scans_of_the_study(num_beside: int, refused: bool) -> None:
    series = [replace(plane, number=k + 1) for k, plane in enumerate(planes(num_in_acquisition=30))]
    if refused:
        assert reason_of(series, num_beside=num_beside) == "incomplete"
    else:
        assert volumes(series, num_beside=num_beside)[0].completeness == "unknown"


@pytest.mark.parametrize(
    ("numbers", "total", "completeness"),
    [
        ((1, 2, 3), 3, "complete"),
        ((1, 2, 3), 0, "unknown"),  # of how many is not said
        ((1, 2), 3, "incomplete"),
        ((2, 3), 3, "incomplete"),
        ((1, 3), 0, "incomplete"),
        ((1, 2), 4, "incomplete"),
    ],
)
def test_a_concatenation_has_all_its_files(numbers: tuple[int, ...], total: int, completeness: str) -> None:
    series = [
        replace(plane, frame=k % 8, file=f"part{k // 8}", concatenation=("1.9", numbers[k // 8], total))
        for k, plane in enumerate(planes(8 * len(numbers)))
    ]
    if completeness == "incomplete":
        with pytest.raises(UnusableSeriesError, match=f"2 of {total or 3} files of a concatenation") as error:
            volumes(series)
        assert error.value.reason == "incomplete"
    else:
        assert volumes(series)[0].completeness == completeness
    assert volumes([replace(plane, concatenation=None) for plane in series])[0].completeness == "unknown"


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
