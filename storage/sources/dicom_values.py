"""Values of DICOM tags, whatever was written into them: nothing here raises but `need_numbers` and what calls it.

A value that cannot be parsed is None, or "" for text: whoever needs the tag gives the verdict, and who does not goes on without.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from pydicom import config
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from storage.sources.attributes import is_uid
from storage.sources.dicom_errors import DECODE_ERRORS, DicomFault
from storage.sources.source import FARTHEST_MM

# pydicom warns and logs with the value of a tag, which may be a patient's; what a value is good for is decided here.
config.settings.reading_validation_mode = config.IGNORE
_PLAIN_NUMBERS = re.compile(r"[-+0-9.,eE\\ ]{1,32}|[-+]?(nan|inf|infinity)", re.IGNORECASE)
UNSPECIFIED_TYPES = {"", "US"}  # RescaleType of values that are judged by what they are
_GEOMETRY = {"ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"}


def tag_value(data: Dataset, name: str | int) -> Any:
    """The parsed value of a tag by its DICOM keyword or number; None where it is missing or malformed."""
    try:
        return data.get(name)
    except DECODE_ERRORS:
        return None


def tag_present(data: Dataset, name: str) -> bool:
    """Whether a tag has a value, be it malformed."""
    try:
        return name in data and data.get(name) not in (None, "")
    except DECODE_ERRORS:
        return True


def tag_text(data: Dataset, name: str) -> str:
    """A tag as text, several values joined by a backslash, without outer spaces; "" where it is missing or malformed."""
    return "\\".join(tag_words(data, name))


def tag_words(data: Dataset, name: str | int) -> tuple[str, ...]:
    """The values of a tag as text without outer spaces; () where it is missing or malformed."""
    value = tag_value(data, name)
    if value is None or isinstance(value, bytes):
        return ()
    values = value if isinstance(value, list | tuple | MultiValue) else [value]
    try:
        words = tuple(str(one).strip(" \0\t\r\n") for one in values)
    except DECODE_ERRORS:
        return ()
    return words if any(words) else ()


def tag_numbers(data: Dataset, name: str | int, count: int) -> tuple[float, ...] | None:
    """The finite numbers of a tag; None where it is missing or malformed, has another count of values, or is beyond FARTHEST_MM."""
    words = tag_words(data, name)
    if len(words) != count:
        return None
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        return None
    highest = FARTHEST_MM if name in _GEOMETRY else math.inf
    return numbers if all(math.isfinite(number) and abs(number) <= highest for number in numbers) else None


def tag_number(data: Dataset, name: str | int) -> float | None:
    """The one finite number of a tag; None where it is missing, malformed, or has several values."""
    numbers = tag_numbers(data, name, 1)
    return None if numbers is None else numbers[0]


def tag_integer(data: Dataset, name: str | int) -> int | None:
    """The one whole number of a tag; None where it is missing, malformed, or has several values."""
    number = tag_number(data, name)
    return int(number) if number is not None and number.is_integer() else None


def tag_day(data: Dataset, name: str) -> str:
    """A date as text, without the points that older editions of the standard had in it; "" where it is missing or malformed."""
    return tag_text(data, name).replace(".", "")


def whole_years(age: str) -> int | None:
    """Whole years of an age as DICOM writes it ("060Y", "018M"); None where it is none."""
    match = re.fullmatch(r"(\d+)([DWMY])", age)
    return int(match[1]) // {"D": 365, "W": 52, "M": 12, "Y": 1}[match[2]] if match else None


def last_digits(data: Dataset, name: str) -> tuple[float, ...]:
    """Value of the last digit that is written of each number in a tag ("-12.50" -> 0.01); () of binary numbers."""
    value = tag_value(data, name)
    values: Sequence[Any] = value if isinstance(value, list | tuple | MultiValue) else [value]
    units = []
    for one in values:
        text = getattr(one, "original_string", None)
        if text is None:
            return ()
        try:
            exponent = Decimal(str(text).strip()).as_tuple().exponent
        except InvalidOperation:
            return ()
        if not isinstance(exponent, int):
            return ()
        units.append(10.0**exponent)
    return tuple(units)


def need_numbers(data: Dataset, name: str, count: int = 1) -> tuple[float, ...]:
    """`count` finite numbers that the volume depends on.

    Raises: DicomFault: bad_number, without the value where that is no number and may be anything; missing_geometry or bad_number
        where the tag is absent or empty.
    """
    numbers = tag_numbers(data, name, count)
    if numbers is not None:
        return numbers
    shown = tag_text(data, name) or _raw_text(data, name)
    if not shown.strip("\\ "):
        raise DicomFault("missing_geometry", name) if name in _GEOMETRY else DicomFault("bad_number", f"no {name}")
    got = f"“{shown}”" if _PLAIN_NUMBERS.fullmatch(shown) else "text"
    expected = "a number" if count == 1 else f"{count} numbers"
    if name in _GEOMETRY:
        expected += f" of at most {FARTHEST_MM:g}"
    raise DicomFault("bad_number", f"{name} of {got} instead of {expected}")


def need_integer(data: Dataset, name: str) -> int:
    """One whole number that the volume depends on. Raises: DicomFault: as `need_numbers`."""
    (number,) = need_numbers(data, name)
    if not number.is_integer():
        raise DicomFault("bad_number", f"{name} of {number:g} instead of a whole number")
    return int(number)


def need_count(data: Dataset, name: str) -> int:
    """One whole number of at least 1 that the volume depends on. Raises: DicomFault: as `need_numbers`."""
    number = need_integer(data, name)
    if number < 1:
        raise DicomFault("bad_number", f"{name} of {number} instead of a count")
    return number


def scan_id(data: Dataset) -> str:
    """SeriesInstanceUID as the id of a scan; "" where absent.

    What is no UID may be a name that somebody wrote there: its place is taken by a hash.
    """
    uid = tag_text(data, "SeriesInstanceUID") or _raw_text(data, "SeriesInstanceUID")
    if not uid or is_uid(uid):
        return uid
    return f"series-{hashlib.sha256(uid.encode('utf-8', 'backslashreplace')).hexdigest()[:16]}"


def _raw_text(data: Dataset, name: str) -> str:
    """A tag as it is written, where it cannot be parsed."""
    try:
        value = getattr(data.get_item(name), "value", None)
    except DECODE_ERRORS:
        return ""
    return value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else ""
