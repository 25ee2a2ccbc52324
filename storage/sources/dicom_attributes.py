"""Allow-listed attributes of a DICOM header; everything that `storage.sources.attributes` does not name stays in the source."""

import re
from typing import Any, BinaryIO

from pydicom.dataset import Dataset
from pydicom.uid import UID_dictionary

from storage.privacy import words_of
from storage.sources.attributes import NUMBER_ATTRIBUTES, TEXT_ATTRIBUTES, safe_attributes, terms
from storage.sources.dicom_errors import DECODE_ERRORS
from storage.sources.dicom_file import read_data_set
from storage.sources.dicom_values import tag_day, tag_text, tag_value, whole_years

# What identifies a patient by itself: persons, ids, dates and places, and the comments people write.
IDENTIFYING_TAGS = (
    "PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName",
    "PatientBirthDate", "PatientAddress", "PatientTelephoneNumbers", "ResponsiblePerson", "IssuerOfPatientID", "MilitaryRank",
    "EthnicGroup", "Occupation", "AccessionNumber", "StudyID", "InstitutionName", "InstitutionAddress",
    "InstitutionalDepartmentName", "DeviceSerialNumber", "ReferringPhysicianName",
    "PerformingPhysicianName", "NameOfPhysiciansReadingStudy", "PhysiciansOfRecord", "RequestingPhysician", "OperatorsName",
    "PatientComments", "ImageComments", "StudyComments", "AdditionalPatientHistory",
    "CurrentPatientLocation", "PatientInstitutionResidence", "RequestingService", "ClinicalTrialSubjectID",
)  # fmt: skip
# What `allowed_attributes` reads.
ATTRIBUTE_TAGS = (
    *TEXT_ATTRIBUTES, *NUMBER_ATTRIBUTES, "PatientAge", "PatientBirthDate", "StudyDate", "ContrastBolusAgent", *IDENTIFYING_TAGS,
)  # fmt: skip
MODALITIES = terms(
    "AR ASMT AU BDUS BI BMD CD CR CT DG DOC DX ECG EPS ES FID GM HC HD IO IOL IVOCT IVUS KER KO LEN LS MG MR M3D NM OAM OCT OP OPM "
    "OPT OPTBSV OPTENF OPV OSS OT PLAN PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTPLAN RTRECORD RTSTRUCT RWV SEG SM SMR SR SRF STAIN "
    "TG US VA XA XC XAPROTOCOL"
)


def allowed_attributes(header: Dataset) -> dict[str, Any]:
    """Allow-listed attributes of a series: tags by DICOM keyword, `age_years` and `contrast` (whether an agent is named)."""
    values = {name: tag_value(header, name) for name in (*TEXT_ATTRIBUTES, *NUMBER_ATTRIBUTES)}
    found = safe_attributes(values, identifying_words(header))
    age = age_years(header)
    if age is not None:
        found["age_years"] = age
    found["contrast"] = bool(str(tag_value(header, "ContrastBolusAgent") or "").strip())
    return found


def identifying_words(header: Dataset) -> frozenset[str]:
    """The words of a header's identifying tags, see `storage.privacy.words_of`."""
    texts = (str(tag_value(header, name) or "") for name in IDENTIFYING_TAGS)
    return frozenset(word for text in texts for word in words_of(text))


def identifying(stream: BinaryIO) -> frozenset[str]:
    """`identifying_words` of a file, see `Format.identifying`."""
    try:
        return identifying_words(read_data_set(stream, pixels=False, tags=IDENTIFYING_TAGS))
    except DECODE_ERRORS:
        return frozenset()


def shown_modality(modality: str) -> str:
    """A modality as a sentence may name it: DICOM's codes, because the tag could hold any text."""
    return f"modality {modality}" if modality in MODALITIES else "of a modality that DICOM does not list"


def shown_class(sop_class: str) -> str:
    """A SOP class as a sentence may name it: by its name in DICOM, because the tag could hold any text."""
    known = UID_dictionary.get(sop_class)
    return f"a {known[0]}" if known else "of a SOP class that DICOM does not list"


def age_years(header: Dataset) -> int | None:
    """Whole years from PatientAge, else from birth and study date; 90 stands for 90 and above. None when unknown."""
    age = tag_text(header, "PatientAge")
    if len(age) == 4 and (years := whole_years(age)) is not None:  # as PS3.5 has it
        return min(years, 90)
    birth, study = tag_day(header, "PatientBirthDate"), tag_day(header, "StudyDate")
    if re.fullmatch(r"\d{8}", birth) and re.fullmatch(r"\d{8}", study) and study >= birth:
        return min(int(study[:4]) - int(birth[:4]) - (study[4:] < birth[4:]), 90)
    return None
