"""Images of one DICOM series -> the volumes they make, from their headers alone, or the reason why they make none."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from storage.errors import UnusableSeriesError
from storage.sources.dicom_completeness import check_complete
from storage.sources.dicom_geometries import difference, geometries, is_slice_without_place
from storage.sources.dicom_identity import check_one, check_person
from storage.sources.dicom_parts import MAX_ODD_SHARE, Odd, Parts, named
from storage.sources.dicom_planes import Plane
from storage.sources.dicom_positions import SAME_MM, fit_line
from storage.sources.dicom_stack import SamePixels, Stack, axes, continues
from storage.sources.source import Limits, ScanRequest, check_synthetic, refuse
from storage.verdicts import REASONS

_NO_PLACE = {
    "missing_slices",
    "too_few_slices",
    "inconsistent_spacing",
}  # an image without a place may be what is missing


def check_planes(planes: Sequence[Plane], request: ScanRequest, same_pixels: SamePixels) -> list[Stack]:
    """The volumes that the images of a series make, sorted by part.

    One patient, one study (by what `check_person` compares too) and, among images of one geometry, one frame of reference are
    never split: a series that mixes them is refused. Images that differ in stack, phase, acquisition or kernel become volumes of
    their own where each of those is whole (slices, evenness, extents). Acquisitions that follow each other along the slices, and
    are not each whole, are one volume where they are evenly spaced together (step and shoot); phases and days of acquisition never
    are, nor are slices that alternate in other tags (`storage.sources.dicom_mixed`). Images of another matrix, orientation or pixel
    distance, and those that can be part of no volume, are left out where they are few (`MAX_ODD_SHARE`), the others are whole
    without them, and none lies where the next slice would be. Everything else is refused by what differs.

    Args:
        planes: all images of the series.
        request: the series, with the limits and the expected number of its images.
        same_pixels: whether two images have the same HU; asked only of images at one position.
    Returns: at least one stack; images that are left out are on the first.
    Raises: UnusableSeriesError: they make none, or one that is broken.
    """
    where = f"Series {request.scan_id}"
    if num_synthetic := sum(plane.synthetic for plane in planes):
        check_synthetic(request.limits, where, f"SyntheticData is YES in {num_synthetic} of {len(planes)} images")
    _check_body_part(planes, request.limits, where)
    check_person(planes, where)
    check_one(planes, "study_uid", "several_studies", "studies (StudyInstanceUID differs)", where)
    odd = [Odd(plane, *plane.fault) for plane in planes if plane.fault]
    series = Parts(request, same_pixels, where)
    kinds = [series.completed(kind) for kind in geometries([plane for plane in planes if not plane.fault])]
    if not kinds:
        _blame(odd, where, whole=True)
    main, *others = kinds
    check_one(main, "frame_of_reference", "several_frames_of_reference", "frames of reference", where)
    for kind in others:
        odd += [_differing(plane, main[0]) for plane in kind]
    main, single = series.without_single(main)
    odd += [Odd(plane, "single_image", "an image of another acquisition or kind at one place") for plane in single]
    try:
        stacks, few = _without_few(series, main)
        odd += few
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
    parts = [one for one in broken if is_slice_without_place(one.plane, main[0])]
    if parts := parts or [one for one in broken if any(continues(stack, one.plane) for stack in stacks)]:
        _blame(parts, where)  # it is not whole without them
    used = [plane for stack in stacks for plane in stack.planes]
    check_one(used, "frame_of_reference", "several_frames_of_reference", "frames of reference", where)
    return check_complete(named(stacks, odd), planes, request, where)


def _without_few(series: Parts, main: Sequence[Plane]) -> tuple[list[Stack], list[Odd]]:
    """The volumes of most images of a series, and the few images of other acquisitions without which these are whole."""
    try:
        return series.volumes(main, of_series=True), []
    except UnusableSeriesError:
        rest, few = series.without_few(main)
        stacks = series.volumes(rest, of_series=True) if few else []
        if not stacks or any(continues(stack, plane) for stack in stacks for plane in few):
            raise
    detail = "images of another acquisition (AcquisitionNumber) that makes no volume"
    return stacks, [Odd(plane, "several_acquisitions", detail) for plane in few]


def _differing(plane: Plane, main: Plane) -> Odd:
    return Odd(plane, *(difference(plane, main) or ("inconsistent_orientation", "direction cosines differ")))


def _explained(main: Sequence[Plane], odd: list[Odd], num_all: int, reason: str, request: ScanRequest) -> bool:
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


def _blame(odd: Sequence[Odd], where: str, *, whole: bool = False) -> NoReturn:
    """Refuse a series for the most frequent reason among its odd images."""
    reason = Counter(one.reason for one in odd).most_common(1)[0][0]
    first = next(one for one in odd if one.reason == reason)
    if whole and len({(one.reason, one.detail) for one in odd}) == 1:  # nothing is special about one file
        refuse(reason, where, first.detail)
    refuse(reason, f"{where}, file {first.plane.name}", first.detail, first.plane.file)


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
