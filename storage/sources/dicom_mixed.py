"""Whether the slices of a stack that is in order are of one acquisition of one person, by what else their headers say.

Two acquisitions that lie half a step apart are one even stack by their positions. Nothing here splits them: no tag that is compared
is meant to number acquisitions, so a stack that is mixed is refused.
"""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
from pydicom.dataset import Dataset

from storage.sources.dicom_values import tag_day, tag_text, whole_years
from storage.sources.source import refuse

# A stack has one value of each, or values that change once along it. Two that alternate are two acquisitions.
ALTERNATING_TAGS = (
    "SeriesNumber", "SeriesDescription", "SeriesDate", "SeriesTime", "ProtocolName", "AcquisitionDate", "AcquisitionTime",
    "AcquisitionDateTime", "IrradiationEventUID", "ImageType", "KVP", "FilterType", "SliceThickness", "ReconstructionDiameter",
    "DataCollectionDiameter", "ReconstructionAlgorithm", "PatientPosition", "BodyPartExamined", "ContrastBolusAgent",
    "ScanOptions", "Manufacturer", "ManufacturerModelName", "StationName", "DeviceSerialNumber",
)  # fmt: skip
# One in all slices of a stack that have it: nobody is moved to another scanner, or turned round, within a scan.
SCANNER_TAGS = ("DeviceSerialNumber", "ManufacturerModelName", "PatientPosition")
# Worth a note where the slices of a stack have two or three of them.
NOTED_TAGS = (
    "SeriesNumber", "SeriesDescription", "SeriesDate", "ImageType", "KVP", "FilterType", "SliceThickness", "ReconstructionDiameter",
    "ReconstructionAlgorithm", "ContrastBolusAgent", "Manufacturer", "StationName",
)  # fmt: skip
# One in all images that have it. They are compared in memory, and their values are never written.
PERSON_TAGS = ("PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "IssuerOfPatientID")
MIXED_TAGS = (*ALTERNATING_TAGS, *PERSON_TAGS, "StudyDate")

_MIN_GROUP = 3  # so many slices with a value of their own, and
_MIN_SHARE = 0.1  # this share of the stack, are a group; fewer are odd ones
_MAX_INSIDE = 0.5  # of a group's slices may lie between those of another
_MAX_INTERLEAVED = 6  # sets of InstanceNumber
_MAX_PAUSE = timedelta(hours=1)  # between slices of one scan
_DAY = timedelta(days=1)


def alternating_values(header: Dataset) -> tuple[str, ...]:
    """Values of `ALTERNATING_TAGS`: letters and digits without case, numbers and dates in one form; "" where absent, or 0."""
    return tuple(_one_form(_text(header, name)) for name in ALTERNATING_TAGS)


def differing_tags(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """Names of the tags in which the values of two images differ, but times, which differ between any two."""
    pairs = zip(ALTERNATING_TAGS, one, other, strict=True) if one and other else ()
    return [name for name, here, there in pairs if here and there and here != there and not name.endswith("Time")]


def person(header: Dataset) -> tuple[str, ...]:
    """Values of `PERSON_TAGS`, without case, punctuation and leading zeros; "" where absent."""
    return tuple(
        re.sub(r"[\W_]+", " ", _text(header, name).split("=")[0].casefold()).strip().lstrip("0") for name in PERSON_TAGS
    )


def acquired_at(header: Dataset) -> datetime | None:
    """When an image was acquired; on the first day of the calendar where only the time is known, None where that is not."""
    joined = tag_text(header, "AcquisitionDateTime")
    day, time = tag_day(header, "AcquisitionDate") or joined[:8], tag_text(header, "AcquisitionTime") or joined[8:]
    match = re.match(r"(\d{2})(\d{2})(\d{2})(\.\d{1,6})?", time)
    try:
        start = datetime.strptime(day, "%Y%m%d") if day else datetime.min
        if not match:
            return None
        hours, minutes, seconds = (int(part) for part in match.groups()[:3])
        return start + timedelta(hours=hours, minutes=minutes, seconds=seconds + float(match[4] or 0))
    except (ValueError, OverflowError):
        return None


def acquisition_day(header: Dataset) -> str:
    """Day on which an image was acquired, as text; "" where unknown."""
    return tag_day(header, "AcquisitionDate") or tag_text(header, "AcquisitionDateTime")[:8]


def check_times(days: Sequence[str], times: Sequence[datetime | None], where: str) -> None:
    """Refuse slices of several days, or with a long pause between them: a scan that is taken step by step takes minutes.

    Where all are of one day, or of none that is known, times may run over midnight.

    Args:
        days, times: `acquisition_day` and `acquired_at` of each slice of a volume.
        where: how sentences call the series.
    Raises: UnusableSeriesError: several_acquisitions.
    """
    num_days = len({day for day in days if day})
    known = sorted(time for time in times if time is not None)
    if len(known) < max(2, len(days)):
        if num_days > 1:
            refuse("several_acquisitions", where, f"images of {num_days} days (AcquisitionDate)")
        return
    pauses = [after - before for before, after in pairwise(known)]
    if num_days < 2:
        pauses = sorted([*pauses, known[0] + _DAY - known[-1]])[:-1]
    if max(pauses) > _MAX_PAUSE:
        detail = f"images of {num_days} days (AcquisitionDate)," if num_days > 1 else "images taken"
        apart = timedelta(seconds=round(max(pauses).total_seconds()))
        refuse("several_acquisitions", where, f"{detail} {apart} apart (AcquisitionTime)")


def check_scanner(values: Sequence[Sequence[str]], where: str) -> None:
    """Refuse slices of several scanners or positions of the patient. Args: as for `check_alternating`."""
    columns = _columns(values)
    differing = [name for name in SCANNER_TAGS if len({*columns.get(name, ())} - {""}) > 1]
    if differing:
        refuse("several_acquisitions", where, f"images of several scans, which differ in {' and '.join(differing)}")


def what_changes(values: Sequence[Sequence[str]]) -> str:
    """A sentence about tags of which slices have two or three values; "" where there is none. Args: as for `check_alternating`."""
    columns = _columns(values)
    found = [name for name in NOTED_TAGS if 2 <= len({*columns.get(name, ())} - {""}) <= 3]
    return f"{', '.join(found)}: not the same in all slices" if found else ""


def _columns(values: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The values of all slices by tag; {} where slices have none, as those that were not read from headers."""
    return dict(zip(ALTERNATING_TAGS, zip(*values, strict=True), strict=True)) if values and values[0] else {}


def check_alternating(
    values: Sequence[Sequence[str]],
    times: Sequence[datetime | None],
    numbers: Sequence[int | None],
    where: str,
) -> None:
    """Refuse a stack of which slices with different values lie between each other.

    Values that change along the stack (a time that grows, a tube voltage that differs for the abdomen) are no evidence, nor is one
    of its own for every slice, nor that a slice has none, which tools do. Times are split where they are farthest apart.
    InstanceNumber is evidence where every second (third, …) slice counts for itself, as two series have it that were put together.

    Args:
        values: `alternating_values` of each slice, in their order.
        times: `acquired_at` of each slice.
        numbers: InstanceNumber of each slice; all None for frames of one file, which share it.
        where: how sentences call the series.
    Raises: UnusableSeriesError: several_acquisitions.
    """
    found = [name for name, column in _columns(values).items() if _alternates(column)]
    if not found and _alternates(_early_and_late(times)):
        found = ["AcquisitionTime"]
    if found:
        refuse("several_acquisitions", where, f"slices that alternate in {', '.join(found)}")
    if (sets := _interleaved_numbers(numbers)) > 1:
        refuse(
            "several_acquisitions", where, f"{sets} sets of slices that alternate, each with InstanceNumber of its own"
        )


def _alternates(labels: Sequence[Hashable]) -> bool:
    """Whether most slices of a group lie between slices of another one; a label of "" is none."""
    least = max(_MIN_GROUP, _MIN_SHARE * len(labels))
    groups = [label for label, count in Counter(labels).items() if count >= least and label != ""]
    at = {label: np.asarray([k for k, one in enumerate(labels) if one == label]) for label in groups}
    return any(
        np.mean((at[one] > at[other][0]) & (at[one] < at[other][-1])) > _MAX_INSIDE
        for one in groups
        for other in groups
        if one != other
    )


def _early_and_late(times: Sequence[datetime | None]) -> list[bool]:
    """Which slices were acquired after the longest pause; none where a time is unknown."""
    known = sorted(time for time in times if time is not None)
    if len(known) < max(2, len(times)):
        return [False] * len(times)
    pauses = [after - before for before, after in pairwise(known)]
    start = known[pauses.index(max(pauses)) + 1]
    return [time is not None and time >= start for time in times]


def _interleaved_numbers(numbers: Sequence[int | None]) -> int:
    """Of how many sets of slices in turn each has numbers in steps of one; 1 where they are one set, or of no order."""
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers) or _counts(known):
        return 1
    for sets in range(2, _MAX_INTERLEAVED + 1):
        if len(known) >= sets * _MIN_GROUP and all(_counts(known[start::sets]) for start in range(sets)):
            return sets
    return 1


def _counts(numbers: Sequence[int]) -> bool:
    return {after - before for before, after in pairwise(numbers)} in ({1}, {-1})


def _text(header: Dataset, name: str) -> str:
    if name == "PatientAge":
        years = whole_years(tag_text(header, name))
        return "" if years is None else str(years)
    return tag_day(header, name) if name.endswith("Date") else tag_text(header, name)


def _one_form(text: str) -> str:
    try:
        return str(round(float(text), 3) or "")
    except ValueError:
        return re.sub(r"[\W_]+", "", text.casefold())
