"""Whether a series has all its images: by a count that belongs to it, or unknown."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from storage.sources.dicom_planes import Plane
from storage.sources.dicom_stack import Stack
from storage.sources.source import ScanRequest, refuse

_ALIKE = 0.1  # of a distance


def check_complete(stacks: Sequence[Stack], planes: Sequence[Plane], request: ScanRequest, where: str) -> list[Stack]:
    """The volumes of a series, those that are known to be complete marked so.

    A multi-frame image that was written as several files has all of them. A manifest's count is of the files of the series, slices
    or not. Without one, a volume's own count decides where it has one (`own_count`).

    Args:
        stacks: volumes of the series.
        planes: all its images.
        request: with the number that a manifest gives, and how many other images there are.
        where: how sentences call the series.

    Raises: UnusableSeriesError: incomplete.
    """
    _check_concatenations(planes, where)
    if request.num_expected is not None:
        num_files = len({plane.file for plane in planes}) + request.num_no_slices
        if all(plane.frame is None for plane in planes):
            num_files -= sum(stack.num_duplicates for stack in stacks)
        if num_files < request.num_expected:
            detail = f"{num_files} of the {request.num_expected} images that a manifest of the source lists"
            refuse("incomplete", where, detail)
        return [replace(stack, completeness="complete") for stack in stacks]
    num_odd = len(planes) - sum(len(stack.planes) + stack.num_duplicates for stack in stacks)
    return [_by_own_count(stack, request.num_beside + num_odd, where) for stack in stacks]


def _check_concatenations(planes: Sequence[Plane], where: str) -> None:
    """Refuse multi-frame images of whose files some are missing: between the numbers that are there, or to the total."""
    numbers: dict[str, set[int]] = {}
    totals: dict[str, int] = {}
    for uid, number, total in filter(None, (plane.concatenation for plane in planes)):
        numbers.setdefault(uid, set()).add(number)
        totals[uid] = max(totals.get(uid, 0), total, number)
    for uid, found in numbers.items():
        if len(found) < totals[uid]:
            refuse(
                "incomplete", where, f"{len(found)} of {totals[uid]} files of a concatenation (InConcatenationNumber)"
            )


def _is_whole_concatenation(planes: Sequence[Plane]) -> bool:
    """Whether the slices of a volume are all of one concatenation whose number of files is known; the files have been counted."""
    parts = {plane.concatenation and (plane.concatenation[0], plane.concatenation[2] > 0) for plane in planes}
    return parts == {(planes[0].concatenation[0], True)} if planes[0].concatenation else False


def own_count(planes: Sequence[Plane], num_beside: int = 0) -> int | None:
    """How many slices a volume has by its own ImagesInAcquisition; None where that count may be of something else.

    The tag counts the images of an acquisition, which may have been reconstructed more than once. It is taken as the volume's where
    all its slices are of one acquisition and give one count that is met exactly, or is not met but

    - less than twice as many: two reconstructions of equal slices make it twice as many,
    - not to be met with other images of the study: another reconstruction, scouts, odd images of the series,
    - no contradiction to InstanceNumber: that is absent, or runs in steps of one along the slices, from 1 or to the count, so that
      only an end of the volume can be missing.

    Args:
        planes: slices of the volume, in their order, repeats left out.
        num_beside: as in `ScanRequest`.
    """
    count, num = planes[0].num_in_acquisition, len(planes)
    if count is None or any(
        (one.num_in_acquisition, one.acquisition) != (count, planes[0].acquisition) for one in planes
    ):
        return None
    if count == num:
        return count
    if not num + num_beside < count < 2 * num:
        return None
    numbers = [plane.number for plane in planes]
    if all(number is None for number in numbers):
        return count
    known = [number for number in numbers if number is not None]
    steps = {after - before for before, after in pairwise(known)}
    runs = len(known) == num and steps in ({1}, {-1}) and min(known) >= 1 and max(known) <= count
    return count if runs and (min(known) == 1 or max(known) == count) else None


def _by_own_count(stack: Stack, num_beside: int, where: str) -> Stack:
    if _is_whole_concatenation(stack.planes):
        return replace(stack, completeness="complete")
    count = own_count(stack.planes, num_beside)
    if count is None:
        note = _what_is_skipped(stack)
        return replace(stack, notes=(*stack.notes, note)) if note else stack
    if count > len(stack.planes):
        refuse("incomplete", where, f"{len(stack.planes)} of {count} slices (ImagesInAcquisition)")
    return replace(stack, completeness="complete")


def _what_is_skipped(stack: Stack) -> str:
    """A sentence where InstanceNumber and the slice distance of the headers say that slices in between are missing, else ""."""
    numbers = [plane.number for plane in stack.planes if plane.number is not None]
    steps = {after - before for before, after in pairwise(numbers)}
    given = {plane.slice_distance_mm for plane in stack.planes}
    if len(numbers) < len(stack.planes) or len(steps) != 1 or len(given) != 1:
        return ""
    every, distance_mm = abs(steps.pop()), abs(given.pop() or 0.0)
    if every < 2 or abs(every * distance_mm - stack.spacing_mm[2]) > _ALIKE * stack.spacing_mm[2]:
        return ""
    return (
        f"InstanceNumber goes in steps of {every}, and slices lie {stack.spacing_mm[2]:g} mm apart where their headers say "
        f"{distance_mm:g} mm (SpacingBetweenSlices or SliceThickness): slices in between may be missing"
    )
