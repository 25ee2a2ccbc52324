"""Images of one geometry in a DICOM series -> the volumes they make: what tells these apart, and how they are called."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from storage.errors import UnusableSeriesError
from storage.sources.dicom_geometries import grouped
from storage.sources.dicom_mixed import check_alternating, check_scanner, check_times, what_changes
from storage.sources.dicom_planes import Plane
from storage.sources.dicom_positions import SAME_MM
from storage.sources.dicom_stack import (
    SamePixels,
    Stack,
    axes,
    continues,
    counts_on,
    depths,
    is_next,
    is_repeat,
    lay_out,
)
from storage.sources.plausible import extent_mm
from storage.sources.source import LeftOut, ScanRequest, SourceVolume, refuse
from storage.verdicts import counted

MAX_ODD_SHARE = 0.2  # of a series' images: so many may be left out of it
COARSEST_UNIT_MM = 0.1  # of positions, by which acquisitions that abut may be off: "-81.0" may be exact
MIN_BLOCK = 4  # slices of an acquisition of which one may lie behind the first of the next

# What tells volumes of one geometry apart: how parts are called, and the attribute of a plane.
TOLD_BY = {
    "stack": "stack_id",
    "phase": "temporal_position",
    "acquisition": "acquisition",
    "kernel": "kernel",
}


@dataclass(frozen=True)
class Odd:
    """Why an image is not part of the volume that most images of its series make."""

    plane: Plane
    reason: str
    detail: str


def told_apart(plane: Plane) -> tuple[str, ...]:
    """The values of `TOLD_BY` of a plane."""
    return tuple(getattr(plane, name) for name in TOLD_BY.values())


def what_differs(planes: Sequence[Plane]) -> str:
    """Such as "3 acquisitions"; values themselves may be free text and are not named."""
    counts = {name: len({getattr(plane, tag) for plane in planes}) for name, tag in TOLD_BY.items()}
    return " and ".join(f"{count} {name}s" for name, count in counts.items() if count > 1)


def named(stacks: list[Stack], odd: list[Odd]) -> list[Stack]:
    """Stacks sorted and called by what tells them apart; the first has the images that were left out."""
    stacks = sorted(stacks, key=lambda stack: (*map(_natural, told_apart(stack.planes[0])), stack.planes[0].name))
    names: list[list[str]] = [[] for _ in stacks]
    for name, tag in TOLD_BY.items():
        values = [getattr(stack.planes[0], tag) for stack in stacks]
        ranks = sorted(set(values), key=_natural)
        if len(ranks) > 1:
            by_number = all(re.fullmatch(r"\d{1,6}", value) for value in ranks)  # anything else may be free text
            for place, value in enumerate(values):
                names[place].append(f"{name} {int(value) if by_number else ranks.index(value) + 1}")
    parts = [", ".join(one) for one in names]
    if len(set(parts)) < len(parts):
        parts = [f"{part}, geometry {place + 1}".removeprefix(", ") for place, part in enumerate(parts)]
    left_out = tuple(LeftOut(one.plane.file, one.reason, one.detail) for one in odd)
    counts = Counter(one.reason for one in odd)
    notes = [f"{counted(count, 'image')} of the series left out ({reason})" for reason, count in sorted(counts.items())]
    called = [replace(stack, part=part, num_parts=len(stacks)) for stack, part in zip(stacks, parts, strict=True)]
    return [replace(called[0], left_out=left_out, notes=(*called[0].notes, *notes)), *called[1:]]


def _natural(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdecimal() else (-1, text)


class Parts:
    """Makes volumes of images of one geometry."""

    def __init__(self, request: ScanRequest, same_pixels: SamePixels, where: str) -> None:
        """Args: as for `storage.sources.dicom_volume.check_planes`; `where` is how sentences call the series."""
        self._request = request
        self._same_pixels = same_pixels
        self._where = where

    def completed(self, planes: Sequence[Plane]) -> list[Plane]:
        """Planes of one geometry; those that lack what tells volumes apart, where the others have one value, have that value.

        That few lack it says nothing: tools drop tags. Many may be an acquisition of their own. They are not where all together are
        one even stack along which InstanceNumber grows, or falls.
        """
        planes = list(planes)
        for tag in TOLD_BY.values():
            values = {getattr(plane, tag) for plane in planes} - {""}
            num_without = sum(not getattr(plane, tag) for plane in planes)
            if len(values) == 1 and num_without:
                told = dict.fromkeys([tag], values.pop())
                same = [plane if getattr(plane, tag) else replace(plane, **told) for plane in planes]
                if num_without <= MAX_ODD_SHARE * len(planes) or self._is_one_stack(same):
                    planes = same
        return planes

    def without_single(self, planes: Sequence[Plane]) -> tuple[list[Plane], list[Plane]]:
        """Planes, and those that are no slices: of an acquisition or ImageType of their own that has one place, beside a stack.

        Scanners follow a contrast agent at one place before they scan. Several images that have one place together are no volume,
        however many they are. Else few are taken for that, and only between the first and the last slice of a stack that is even
        without them: elsewhere one may be a part of it.
        """
        groups = grouped(planes, lambda plane: (told_apart(plane), plane.image_type))
        single = [plane for group in groups if _at_one_place(group) for plane in group]
        together = len(single) > 1 and _at_one_place(single)
        few = len(single) <= max(1, MAX_ODD_SHARE * len(planes))
        if not single or len(single) == len(planes) or not (together or few):
            return list(planes), []
        among = {plane.name for plane in single}
        rest = [plane for plane in planes if plane.name not in among]
        try:
            stack = self._lay_out(max(grouped(rest, told_apart), key=len))
        except UnusableSeriesError:
            return list(planes), []
        places = np.asarray([plane.position_mm for plane in rest])
        single = [plane for plane in single if not self._is_among(plane, rest, places)]
        if not (together and len(single) > 1 and not continues(stack, single[0])):
            single = [plane for plane in single if stack.contains(plane)]
        strays = {plane.name for plane in single}
        return [plane for plane in planes if plane.name not in strays], single

    def without_few(self, planes: Sequence[Plane]) -> tuple[list[Plane], list[Plane]]:
        """Planes of whole acquisitions, and few of others that make no volume; all and none where it is not so.

        Where InstanceNumber goes on over the distance between them, slices in between are missing: none is left out.
        """
        groups = grouped(planes, lambda plane: plane.acquisition)
        stacks = [self._try(group) for group in groups]
        whole = [stack for stack in stacks if stack is not None]
        few = [plane for group, stack in zip(groups, stacks, strict=True) if stack is None for plane in group]
        if not whole or not few or len(few) > max(1, MAX_ODD_SHARE * len(planes)):
            return list(planes), []
        if any(counts_on(stack, plane) for stack in whole for plane in few):
            return list(planes), []
        names = {plane.name for plane in few}
        return [plane for plane in planes if plane.name not in names], few

    def volumes(self, planes: Sequence[Plane], *, of_series: bool) -> list[Stack]:
        """The volumes of planes of one geometry.

        Args:
            of_series: these are most of the series: a single volume may be shorter than the limits, which has a verdict of its own.
        Raises: UnusableSeriesError.
        """
        groups, num_repeats = self._without_repeats(grouped(planes, told_apart))
        if len(groups) == 1:
            stack = self._lay_out(groups[0])
            if not of_series and not self._whole(stack):
                refuse("too_short", self._where, "a part of its images")
            return [replace(stack, num_duplicates=stack.num_duplicates + num_repeats)]
        kernels = grouped([plane for group in groups for plane in group], lambda plane: plane.kernel)
        stacks = [self._try(group) for group in groups]
        found = [stack for stack in stacks if stack is not None]
        if len(found) < len(stacks):
            found = [self._joined(kernel, alone=of_series and len(kernels) == 1) for kernel in kernels]
        else:
            found = [joined for chain in _chains(found) for joined in self._abutting(chain)]
        return [replace(found[0], num_duplicates=found[0].num_duplicates + num_repeats), *found[1:]]

    def _joined(self, planes: Sequence[Plane], *, alone: bool) -> Stack:
        """One volume of the acquisitions of one kernel, which follow each other."""
        groups = grouped(planes, told_apart)
        if len(groups) == 1:
            stack = self._try(groups[0])
            if stack is None:
                refuse("several_kernels", self._where, "images of several kernels")
            return stack
        normal = axes(planes)[2]
        ordered = sorted(depths(group, normal).tolist() for group in groups)
        names = what_differs(planes)
        if not all(_follows(before, after) for before, after in pairwise(ordered)):
            most = max(len(group) for group in groups)
            refuse(
                "several_acquisitions",
                self._where,
                f"images of {names} that overlap, the largest of {counted(most, 'image')}",
            )
        phases = grouped(planes, lambda plane: plane.temporal_position)
        if 1 < len(phases) < len(planes):  # a phase is a chest at a time; one per slice is a number of slices
            refuse("several_acquisitions", self._where, f"images of {len(phases)} phases, of which none is whole")
        try:
            stack = self._lay_out(planes)
        except UnusableSeriesError as error:
            if len(groups) > 2:  # step and shoot: what is wrong is wrong with the whole
                raise
            refuse(
                "several_acquisitions", self._where, f"images of {names} ({error.reason} where they are put together)"
            )
        if not alone and not self._whole(stack):
            refuse("several_kernels", self._where, "images of several kernels")
        return replace(stack, notes=(*stack.notes, f"{names} that follow each other are one volume"))

    def _abutting(self, stacks: list[Stack]) -> list[Stack]:
        """One volume of whole acquisitions that follow each other at the slice distance; each where something else differs."""
        if len(stacks) == 1:
            return stacks
        try:
            joined = self._joined([plane for stack in stacks for plane in stack.planes], alone=True)
        except UnusableSeriesError:
            return stacks
        step = joined.direction[:, 2] * joined.spacing_mm[2]
        steps = [
            np.subtract(after.planes[0].position_mm, one.planes[-1].position_mm) for one, after in pairwise(stacks)
        ]
        unit = max((unit for plane in joined.planes for unit in plane.position_unit_mm), default=0.0)
        limit = SAME_MM + min(unit, COARSEST_UNIT_MM)
        exact = max(float(np.linalg.norm(distance - step)) for distance in steps) <= limit
        if not exact or what_changes([plane.values for plane in joined.planes]):
            return stacks
        return [replace(joined, num_duplicates=sum(stack.num_duplicates for stack in stacks))]

    def _without_repeats(self, groups: list[list[Plane]]) -> tuple[list[list[Plane]], int]:
        """Groups of which some image is in no larger group, and the number of images in the others."""
        kept: list[list[Plane]] = []
        num_repeats = 0
        for group in sorted(groups, key=len, reverse=True):
            places = np.asarray([plane.position_mm for other in kept for plane in other]).reshape(-1, 3)
            before = [plane for other in kept for plane in other]
            if before and all(self._is_among(plane, before, places) for plane in group):
                num_repeats += len(group)
            else:
                kept.append(group)
        return kept, num_repeats

    def _is_among(self, plane: Plane, others: list[Plane], places: np.ndarray) -> bool:
        near = np.flatnonzero(np.linalg.norm(places - plane.position_mm, axis=1) < SAME_MM)
        return any(is_repeat(plane, others[k], self._same_pixels) for k in near)

    def _is_one_stack(self, planes: Sequence[Plane]) -> bool:
        try:
            stack = self._lay_out(planes)
        except UnusableSeriesError:
            return False
        numbers = [plane.number for plane in stack.planes if plane.frame is None and plane.number is not None]
        grows = {after > before for before, after in pairwise(numbers) if after != before}
        return stack.slice_mm is None and len(set(numbers)) == len(stack.planes) and len(grows) == 1

    def _try(self, planes: Sequence[Plane]) -> Stack | None:
        """The stack of planes, None where they are not whole."""
        try:
            stack = self._lay_out(planes)
        except UnusableSeriesError:
            return None
        return stack if self._whole(stack) else None

    def _whole(self, stack: Stack) -> bool:
        """Whether a part of a series could be a volume of its own: what `plausible` asks of the extents of every volume."""
        without_pixels = np.broadcast_to(np.int16(0), stack.shape)
        shape = SourceVolume(without_pixels, stack.spacing_mm, stack.origin_mm, stack.direction, {}, "")
        width, depth, length = extent_mm(shape) + SAME_MM
        limits = self._request.limits
        large = length >= limits.min_length_mm and min(width, depth) >= limits.min_width_mm
        return bool(large and stack.spacing_mm[2] <= limits.max_slice_mm + SAME_MM)

    def _lay_out(self, planes: Sequence[Plane]) -> Stack:
        stack = lay_out(planes, self._request, self._same_pixels, self._where)
        times = [plane.acquired_at for plane in stack.planes]
        numbers = [plane.number if plane.frame is None else None for plane in stack.planes]
        values = [plane.values for plane in stack.planes]
        check_alternating(values, times, numbers, self._where)
        check_scanner(values, self._where)
        check_times([plane.acquisition_day for plane in stack.planes], times, self._where)
        note = what_changes(values)
        return replace(stack, notes=(*stack.notes, note)) if note else stack


def _chains(stacks: Sequence[Stack]) -> list[list[Stack]]:
    """Stacks of one kernel in the order in which they continue each other, where one alone continues each; else by themselves."""

    def after(one: Stack) -> list[int]:
        kernel = one.planes[0].kernel
        behind = (
            number for number, other in enumerate(stacks) if other is not one and other.planes[0].kernel == kernel
        )
        return [number for number in behind if is_next(one, stacks[number].planes[0])]

    followers = [after(stack) for stack in stacks]
    times = Counter(number for found in followers for number in found)
    follower = {k: found[0] for k, found in enumerate(followers) if len(found) == 1 and times[found[0]] == 1}
    chains = []
    for start in sorted(set(range(len(stacks))) - set(follower.values())):
        chain = [start]
        while chain[-1] in follower:
            chain.append(follower[chain[-1]])
        chains.append([stacks[number] for number in chain])
    return chains


def _follows(before: list[float], after: list[float]) -> bool:
    """Whether depths follow others, but for one of each that change places, as where two blocks are acquired in turn."""
    if before[-1] < after[0]:
        return True
    num_above = sum(depth > after[0] for depth in before)
    num_below = sum(depth < before[-1] for depth in after)
    return num_above == num_below == 1 and min(len(before), len(after)) >= MIN_BLOCK


def _at_one_place(planes: Sequence[Plane]) -> bool:
    positions = np.asarray([plane.position_mm for plane in planes])
    return bool(np.ptp(positions, axis=0).max() < SAME_MM)
