"""Whose images those of a DICOM series are: one person's, of one study."""

from collections.abc import Collection, Sequence

from storage.sources.dicom_mixed import PERSON_TAGS
from storage.sources.dicom_planes import Plane
from storage.sources.source import refuse

_FOR_ONE = "where they are one, write one value into all images"


def check_one(planes: Sequence[Plane], tag: str, reason: str, what: str, where: str) -> None:
    """One value of a tag in all images; an absent one is a value of its own, for nothing says that it would be the same.

    Only of images with a fault, which may have no header at all, an absent one is not counted.
    """
    count = len(_values(planes, tag))
    if count > 1:
        refuse(reason, where, f"{count} {what}")


def check_person(planes: Sequence[Plane], where: str) -> None:
    """One PatientID, as `check_one`; and one person and day of the study in all images that say so, for tools drop such tags.

    PatientID is never taken for another that is written differently: patient keys are made of it as it is. Among images of one
    PatientID, a name may lack its last components, and a birth date its last parts.

    Raises: UnusableSeriesError: several_patients or several_studies.
    """
    ids = _values(planes, "patient_id")
    if len(ids) > 1:
        alike = len({"".join(one.split()).casefold().lstrip("0") for one in ids}) == 1
        detail = f"differs in blanks, case or leading zeros; {_FOR_ONE}" if alike else "differs"
        refuse("several_patients", where, f"{len(ids)} patients (PatientID {detail})")
    people = [plane.person for plane in planes if plane.person]
    found = {tag: {one[k] for one in people} - {""} for k, tag in enumerate(PERSON_TAGS)}
    if "" not in ids:
        found["PatientName"] = _longest_name(found["PatientName"])
        found["PatientBirthDate"] = _longest_date(found["PatientBirthDate"])
    differing = [tag for tag, values in found.items() if len(values) > 1]
    if differing:
        refuse("several_patients", where, f"several patients ({', '.join(differing)} differs; {_FOR_ONE})")
    if (count := len({plane.study_day for plane in planes} - {""})) > 1:
        refuse("several_studies", where, f"{count} studies (StudyDate differs)")


def _values(planes: Sequence[Plane], tag: str) -> set[str]:
    return {value for plane in planes if (value := getattr(plane, tag)) or not plane.fault}


def _longest_name(names: Collection[str]) -> set[str]:
    """The longest name alone where all others are its first words, at least two; else all."""
    longest = max(names, key=len, default="")
    words = {name: name.split() for name in names}
    first = all(len(one) > 1 and words[longest][: len(one)] == one for one in words.values())
    return {longest} if names and first else set(names)


def _longest_date(dates: Collection[str]) -> set[str]:
    """The most precise date alone where all others are its year, or year and month, or unknown; else all. Zeros are unknown."""
    known = set()
    for date in ("".join(one.split()) for one in dates):
        year, month, day = date[:4], date[4:6], date[6:]
        parts = [year] if year.strip("0") else []
        parts += [month] if parts and month.strip("0") else []
        parts += [day] if len(parts) > 1 and day.strip("0") else []
        known.add("".join(parts))
    longest = max(known, key=len, default="")
    return {longest} if all(longest.startswith(one) for one in known) else known
