"""Images of one DICOM series -> the volumes they make, from their headers alone, or the reason why they make none."""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NoReturn

import numpy as np

from storage.errors import UnusableSeriesError
from storage.sources.dicom_completeness import check_complete
from storage.sources.dicom_planes import Plane
from storage.sources.dicom_positions import SAME_MM, fit_line
from storage.sources.dicom_stack import SamePixels, Stack, axes, is_repeat, lay_out
from storage.sources.plausible import extent_mm
from storage.sources.source import LeftOut, Limits, ScanRequest, SourceVolume, refuse
from storage.verdicts import REASONS

MAX_ODD_SHARE = 0.2  # of a series' images: so many may be left out of it
COSINE_TOLERANCE = 1e-3 * (1 + 1e-6)  # of the orientation: what rounding to three decimals gives
PIXEL_TOLERANCE_MM = 1e-3 * (1 + 1e-6)
# What tells volumes of one geometry apart: how parts are called, and the attribute of a plane.
_TOLD_BY = {
    "stack": "stack_id",
    "phase": "temporal_position",
    "acquisition": "acquisition",
    "kernel": "kernel",
}
_NO_PLACE = {
    "missing_slices",
    "too_few_slices",
    "inconsistent_spacing",
}  # an image without a place may be what is missing


@dataclass(frozen=True)
class _Odd:
    """Why an image is not part of the volume that most images of its series make."""

    plane: Plane
    reason: str
    detail: str


def check_planes(planes: Sequence[Plane], request: ScanRequest, same_pixels: SamePixels) -> list[Stack]:
    """The volumes that the images of a series make, sorted by part.

    One patient, one study and, among images of one geometry, one frame of reference are never split: a series that mixes them is
    refused. Images that differ in stack, phase, acquisition or kernel become volumes of their own where each of those is whole
    (slices, evenness, extents). Acquisitions that follow each other along the slices, and are not each whole, are one volume where
    they are evenly spaced together (step and shoot). Images of another matrix, orientation or pixel distance, and those that can be
    part of no volume, are left out where they are few (`MAX_ODD_SHARE`) and the others are whole without them. Everything else is
    refused by what differs.

    Args:
        planes: all images of the series.
        request: the series, with the limits and the expected number of its images.
        same_pixels: whether two images have the same stored pixels; asked only of images at one position.
    Returns: at least one stack; images that are left out are on the first.
    Raises: UnusableSeriesError: they make none, or one that is broken.
    """
    where = f"Series {request.scan_id}"
    _check_body_part(planes, request.limits, where)
    _check_one(planes, "patient_id", "several_patients", "patients (PatientID differs)", where)
    _check_one(planes, "study_uid", "several_studies", "studies (StudyInstanceUID differs)", where)
    odd = [_Odd(plane, *plane.fault) for plane in planes if plane.fault]
    kinds = _geometries([plane for plane in planes if not plane.fault])
    if not kinds:
        _blame(odd, where, whole=True)
    main, *others = kinds
    _check_one(main, "frame_of_reference", "several_frames_of_reference", "frames of reference", where)
    series = _Series(request, same_pixels, where)
    for kind in others:
        odd += [_differing(plane, main[0]) for plane in kind]
    try:
        stacks = series.volumes(main, of_series=True)
    except UnusableSeriesError as error:
        if (
            odd
            and not error.reason.startswith("several_")
            and _explained(main, odd, len(planes), error.reason, request)
        ):
            _blame(odd, where)
        raise
    for kind in others:
        try:
            stacks += series.volumes(kind, of_series=False)
        except UnusableSeriesError:
            continue
        odd = [one for one in odd if one.plane not in kind]
    broken = [one for one in odd if REASONS[one.reason].verdict == "quarantined"]
    if len(broken) > max(1, MAX_ODD_SHARE * len(planes)):
        _blame(broken, where)
    used = [plane for stack in stacks for plane in stack.planes]
    _check_one(used, "frame_of_reference", "several_frames_of_reference", "frames of reference", where)
    return check_complete(_named(stacks, odd), planes, request, where)


class _Series:
    """Makes volumes of images of one geometry."""

    def __init__(self, request: ScanRequest, same_pixels: SamePixels, where: str) -> None:
        self._request = request
        self._same_pixels = same_pixels
        self._where = where

    def volumes(self, planes: Sequence[Plane], *, of_series: bool) -> list[Stack]:
        """The volumes of planes of one geometry.

        Args:
            of_series: these are most of the series: a single volume may be shorter than the limits, which has a verdict of its own.
        Raises: UnusableSeriesError.
        """
        groups, num_repeats = self._without_repeats(_grouped(planes, _told_apart))
        if len(groups) == 1:
            stack = self._lay_out(groups[0])
            if not of_series and not self._whole(stack):
                refuse("too_short", self._where, "a part of its images")
            return [replace(stack, num_duplicates=stack.num_duplicates + num_repeats)]
        stacks = [self._try(group) for group in groups]
        found = [stack for stack in stacks if stack is not None]
        if len(found) < len(stacks):
            kernels = _grouped([plane for group in groups for plane in group], lambda plane: plane.kernel)
            found = [self._joined(kernel, alone=of_series and len(kernels) == 1) for kernel in kernels]
        return [replace(found[0], num_duplicates=found[0].num_duplicates + num_repeats), *found[1:]]

    def _joined(self, planes: Sequence[Plane], *, alone: bool) -> Stack:
        """One volume of the acquisitions of one kernel, which follow each other."""
        groups = _grouped(planes, _told_apart)
        if len(groups) == 1:
            stack = self._try(groups[0])
            if stack is None:
                refuse("several_kernels", self._where, "images of several kernels")
            return stack
        depths = sorted(_depths(group, planes) for group in groups)
        follow = all(before[-1] < after[0] for before, after in pairwise(depths))
        names = _what_differs(planes)
        if not follow:
            refuse("several_acquisitions", self._where, f"images of {names} that overlap")
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
        return bool(length >= limits.min_length_mm and min(width, depth) >= limits.min_width_mm)

    def _lay_out(self, planes: Sequence[Plane]) -> Stack:
        return lay_out(planes, self._request, self._same_pixels, self._where)


def _told_apart(plane: Plane) -> tuple[str, ...]:
    return tuple(getattr(plane, name) for name in _TOLD_BY.values())


def _grouped(planes: Iterable[Plane], key: Callable[[Plane], Hashable]) -> list[list[Plane]]:
    groups: dict[Hashable, list[Plane]] = {}
    for plane in planes:
        groups.setdefault(key(plane), []).append(plane)
    return list(groups.values())


def _geometries(planes: Sequence[Plane]) -> list[list[Plane]]:
    """Planes by matrix, orientation and pixel distance, within the tolerances; most first."""
    kinds: list[list[Plane]] = []
    exact = _grouped(planes, lambda plane: (plane.shape, plane.orientation, plane.pixel_mm))
    for group in sorted(exact, key=len, reverse=True):
        for kind in kinds:
            if _difference(group[0], kind[0]) is None:
                kind += group
                break
        else:
            kinds.append(group)
    return sorted(kinds, key=len, reverse=True)


def _difference(plane: Plane, other: Plane) -> tuple[str, str] | None:
    """Reason and detail of the first property of their geometry in which planes differ."""
    if plane.shape != other.shape:
        return "inconsistent_shape", f"{_size(other.shape)} and {_size(plane.shape)}"
    off = float(np.abs(np.subtract(plane.orientation, other.orientation)).max())
    if off > COSINE_TOLERANCE:
        return "inconsistent_orientation", f"direction cosines differ by {off:.4f}, the limit is {COSINE_TOLERANCE:.3g}"
    off = float(np.abs(np.subtract(plane.pixel_mm, other.pixel_mm)).max())
    if off > PIXEL_TOLERANCE_MM:
        return (
            "inconsistent_spacing",
            f"pixel spacing differs by {off:.4f} mm, the limit is {PIXEL_TOLERANCE_MM:.3g} mm",
        )
    return None


def _differing(plane: Plane, main: Plane) -> _Odd:
    difference = _difference(plane, main)
    return _Odd(plane, *(difference or ("inconsistent_orientation", "direction cosines differ")))


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _depths(planes: Sequence[Plane], of: Sequence[Plane]) -> list[float]:
    """Positions along the normal of a geometry, sorted."""
    normal = axes(of)[2]
    return sorted(float(np.dot(plane.position_mm, normal)) for plane in planes)


def _what_differs(planes: Sequence[Plane]) -> str:
    """Such as "3 acquisitions"; values themselves may be free text and are not named."""
    counts = {name: len({getattr(plane, tag) for plane in planes}) for name, tag in _TOLD_BY.items()}
    return " and ".join(f"{count} {name}s" for name, count in counts.items() if count > 1)


def _explained(main: Sequence[Plane], odd: list[_Odd], num_all: int, reason: str, request: ScanRequest) -> bool:
    """Whether what is wrong with most images of a series is that the odd ones do not fit them."""
    if len(odd) > MAX_ODD_SHARE * num_all:
        return True
    placed = [one.plane for one in odd if len(one.plane.position_mm) == 3]
    if len(placed) < len(odd):
        return reason in _NO_PLACE
    normal = axes(main)[2]
    planes = sorted([*main, *placed], key=lambda plane: float(np.dot(plane.position_mm, normal)))
    positions = np.asarray([plane.position_mm for plane in planes])
    if len(planes) < request.limits.min_slices or float(np.diff(positions @ normal).min()) < SAME_MM:
        return False
    try:
        fit_line(positions, normal, [plane.position_unit_mm for plane in planes], request.limits.max_jitter, "")
    except UnusableSeriesError:
        return False
    return True


def _blame(odd: Sequence[_Odd], where: str, *, whole: bool = False) -> NoReturn:
    """Refuse a series for the most frequent reason among its odd images."""
    reason = Counter(one.reason for one in odd).most_common(1)[0][0]
    first = next(one for one in odd if one.reason == reason)
    if whole and len({(one.reason, one.detail) for one in odd}) == 1:  # nothing is special about one file
        refuse(reason, where, first.detail)
    refuse(reason, f"{where}, file {first.plane.name}", first.detail, first.plane.file)


def _check_one(planes: Sequence[Plane], tag: str, reason: str, what: str, where: str) -> None:
    """One value of a tag in all images; an absent one is a value of its own, for nothing says that it would be the same.

    Only of images with a fault, which may have no header at all, an absent one is not counted.
    """
    count = len({value for plane in planes if (value := getattr(plane, tag)) or not plane.fault})
    if count > 1:
        refuse(reason, where, f"{count} {what}")


def _check_body_part(planes: Sequence[Plane], limits: Limits, where: str) -> None:
    """Refuse a series all of whose images are of excluded body parts."""
    found = {_letters(plane.body_part) for plane in planes}
    names = [_letters(part) for part in limits.excluded_body_parts]
    if not names or not planes:
        return
    several = re.compile(
        f"(?:LEFT|RIGHT|BOTH|AND|THE)*(?:(?:{'|'.join(map(re.escape, names))})S?(?:LEFT|RIGHT|BOTH|AND|THE)*)+"
    )
    if all(several.fullmatch(part) for part in found):
        refuse("other_body_part", where, " and ".join(sorted(found)))


def _letters(text: str) -> str:
    return re.sub(r"[^A-Z]", "", text.upper())


def _named(stacks: list[Stack], odd: list[_Odd]) -> list[Stack]:
    """Stacks sorted and called by what tells them apart; the first has the images that were left out."""
    stacks = sorted(stacks, key=lambda stack: (*map(_natural, _told_apart(stack.planes[0])), stack.planes[0].name))
    names: list[list[str]] = [[] for _ in stacks]
    for name, tag in _TOLD_BY.items():
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
    notes = [f"{count} image(s) of the series are left out ({reason})" for reason, count in sorted(counts.items())]
    named = [replace(stack, part=part, num_parts=len(stacks)) for stack, part in zip(stacks, parts, strict=True)]
    return [replace(named[0], left_out=left_out, notes=(*named[0].notes, *notes)), *named[1:]]


def _natural(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdecimal() else (-1, text)
