"""The allow-list: which attributes of a scan may enter the store, whatever its format. docs/data-model.md has the same table."""

import re

TEXT_ATTRIBUTES = (
    "StudyInstanceUID", "SeriesInstanceUID", "Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "ScanOptions",
    "BodyPartExamined", "PatientPosition", "PatientSex",
)  # fmt: skip
NUMBER_ATTRIBUTES = ("KVP", "SliceThickness", "XRayTubeCurrent", "ReconstructionDiameter")
# Names a label cannot have: the attributes', and those of a volume's other properties.
RESERVED_NAMES = frozenset(
    {
        *TEXT_ATTRIBUTES,
        *NUMBER_ATTRIBUTES,
        "age_years",
        "contrast",
        "patient_key",
        "patient_known",
        "volume_id",
        "shape",
    }
)
# Free text could hold anything: only these characters, and only this many of them, are kept.
_UNSAFE = re.compile(r"[^A-Za-z0-9 ._+/\\()-]")
MAX_TEXT = 64


def safe_text(text: str) -> str:
    """Text as it may enter the store: at most `MAX_TEXT` letters, digits, spaces and `._+/\\()-`."""
    return _UNSAFE.sub("", text)[:MAX_TEXT]
