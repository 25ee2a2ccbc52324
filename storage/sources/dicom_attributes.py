"""Allow-listed attributes of a DICOM header; everything that `storage.sources.attributes` does not name stays in the source."""

import math
import re
from typing import Any

from pydicom.dataset import Dataset

from storage.sources.attributes import NUMBER_ATTRIBUTES, TEXT_ATTRIBUTES, safe_text
from storage.sources.dicom_errors import DECODE_ERRORS

ATTRIBUTE_TAGS = (
    *TEXT_ATTRIBUTES, *NUMBER_ATTRIBUTES, "PatientAge", "PatientBirthDate", "StudyDate", "ContrastBolusAgent",
)  # fmt: skip


def allowed_attributes(header: Dataset) -> dict[str, Any]:
    """Allow-listed attributes of a series: tags by DICOM keyword, `age_years` and `contrast` (whether an agent is named)."""
    found: dict[str, Any] = {}
    for name in TEXT_ATTRIBUTES:
        value = _value(header, name)
        if value not in (None, ""):
            found[name] = safe_text(str(value) if isinstance(value, str) else "\\".join(str(v) for v in value))
    for name in NUMBER_ATTRIBUTES:
        try:
            number = float(_value(header, name))
        except (TypeError, ValueError):
            continue
        if math.isfinite(number):
            found[name] = number
    if found.get("PatientSex") not in {"F", "M", "O"}:
        found.pop("PatientSex", None)
    age = age_years(header)
    if age is not None:
        found["age_years"] = age
    found["contrast"] = bool(str(_value(header, "ContrastBolusAgent") or "").strip())
    return found


def age_years(header: Dataset) -> int | None:
    """Whole years from PatientAge, else from birth and study date; 90 stands for 90 and above. None when unknown."""
    match = re.fullmatch(r"(\d{3})([DWMY])", str(_value(header, "PatientAge") or "").strip())
    if match:
        years = int(match[1]) // {"D": 365, "W": 52, "M": 12, "Y": 1}[match[2]]
        return min(years, 90)
    birth, study = str(_value(header, "PatientBirthDate") or ""), str(_value(header, "StudyDate") or "")
    if re.fullmatch(r"\d{8}", birth) and re.fullmatch(r"\d{8}", study) and study >= birth:
        return min(int(study[:4]) - int(birth[:4]) - (study[4:] < birth[4:]), 90)
    return None


def _value(header: Dataset, name: str) -> Any:
    """A tag's value; None where it is missing or malformed, because a volume does not depend on it."""
    try:
        return header.get(name)
    except DECODE_ERRORS:
        return None
