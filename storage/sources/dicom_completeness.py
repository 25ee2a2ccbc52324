"""Whether a series has all its images: by a count that belongs to it, or unknown."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from storage.sources.dicom_planes import Plane
from storage.sources.dicom_stack import Stack
from storage.sources.source import ScanRequest, refuse


def check_complete(stacks: Sequence[Stack], planes: Sequence[Plane], request: ScanRequest, where: str) -> list[Stack]:
    """The volumes of a series, those that are known to be complete marked so.

    A manifest's count is of the files of the series. Without one, a volume's own count decides where it has one (`own_count`).

    Args:
        stacks: volumes of the series.
        planes: all its images.
        request: with the number that a manifest gives.
        where: how sentences call the series.

    Raises: UnusableSeriesError: incomplete.
    """
    if request.num_expected is not None:
        num_files = len({plane.file for plane in planes})
        if all(plane.frame is None for plane in planes):
            num_files -= sum(stack.num_duplicates for stack in stacks)
        if num_files < request.num_expected:
            detail = f"{num_files} of the {request.num_expected} images that a manifest of the source lists"
            refuse("incomplete", where, detail)
        return [replace(stack, completeness="complete") for stack in stacks]
    return [_by_own_count(stack, where) for stack in stacks]


def own_count(planes: Sequence[Plane]) -> int | None:
    """How many slices a volume has by its own ImagesInAcquisition; None where that count may be of something else.

    The tag counts the images of an acquisition, which may have been reconstructed more than once. It is taken as the volume's where
    all its slices are of one acquisition and give one count that is met exactly, or is not met but less than twice as many (several
    reconstructions of one acquisition make it at least about twice as many) and does not contradict InstanceNumber: that is absent,
    or runs in steps of one along the slices, from 1 or to the count, so that only an end of the volume can be missing.

    Args:
        planes: slices of the volume, in their order, repeats left out.
    """
    count, num = planes[0].num_in_acquisition, len(planes)
    if count is None or any(
        (one.num_in_acquisition, one.acquisition) != (count, planes[0].acquisition) for one in planes
    ):
        return None
    if count == num:
        return count
    if not num < count < 2 * num:
        return None
    numbers = [plane.number for plane in planes]
    if all(number is None for number in numbers):
        return count
    known = [number for number in numbers if number is not None]
    steps = {after - before for before, after in pairwise(known)}
    runs = len(known) == num and steps in ({1}, {-1}) and min(known) >= 1 and max(known) <= count
    return count if runs and (min(known) == 1 or max(known) == count) else None


def _by_own_count(stack: Stack, where: str) -> Stack:
    count = own_count(stack.planes)
    if count is None:
        return stack
    if count > len(stack.planes):
        refuse("incomplete", where, f"{len(stack.planes)} of {count} slices (ImagesInAcquisition)")
    return replace(stack, completeness="complete")
