"""What ImageType says that an image is, if not a slice of CT in HU."""

import re
from collections.abc import Sequence

from storage.sources.dicom_values import UNSPECIFIED_TYPES

# Made of the slices of another series. PS3.3 C.8.16 has the words of enhanced images, the others are makers'.
_REFORMATS = {
    "REFORMATTED", "MPR", "CPR", "MIP", "MAXIP", "MINIP", "AVERAGE", "AVERAGED", "AVG", "AIP", "CURVED", "RADIAL", "VRT", "VOLREN",
    "SSD", "3D", "PROJECTION", "RENDERED", "MAXIMUM", "MINIMUM", "MEAN", "STDDEVIATION", "ADDITION", "DIVISION", "MULTIPLICATION",
    "MASKED", "OVERLAY", "CAD", "SCREENSAVE", "SCREENSHOT", "DOSE",
}  # fmt: skip
_REFORMAT_PARTS = ("SUBTRACT", "BONEREMOVAL")
# Quantities other than HU, whatever else the header says, and those of derived images: named in sentences as they are here.
_QUANTITIES = {
    "ZEFF",
    "EFFZ",
    "EFFATOMICNUM",
    "EFFATOMIC",
    "MGML",
    "ELECTRONDENSITY",
    "MATSPECIFIC",
    "MATFRACTIONAL",
    "IOMAP",
}
_VAGUE_QUANTITIES = {"ED", "EDW", "OD", "PCT", "MATVALUEBASED"}  # of images that are not said to be in HU
_QUANTITY_PARTS = ("IODINE", "URICACID", "SUPPRESS", "EFFECTIVEZ", "ZEFFECTIVE", "PERFUSEDBLOOD")  # of derived images
_DERIVED_QUANTITIES = {
    "WATER", "PBV", "MD", "RHO", "PERFUSION", "CBF", "CBV", "MTT", "TTP", "TMAX", "SEGMENTATION", "MASK",
}  # fmt: skip


def no_slice(image_type: Sequence[str]) -> tuple[str, str] | None:
    """Reason and detail where an image is a localizer or derived from another series."""
    words = _words(image_type)
    if {"LOCALIZER", "TOPOGRAM", "SCOUT", "SCANOGRAM"} & words:
        return "localizer", ""
    if "DERIVED" not in words:
        return None
    if "3D" not in image_type:  # "AIDR 3D" is a way to reconstruct
        words -= {"3D"}
    found = sorted((_REFORMATS & words) | _parts_in(words, _REFORMAT_PARTS))
    return ("derived_reformat", ", ".join(found)) if found else None


def quantity(image_type: Sequence[str], rescale_type: str) -> str:
    """The quantity that an image holds instead of HU; "" where none is named. `rescale_type` in capitals."""
    words = _words(image_type)
    names = _QUANTITIES | (_VAGUE_QUANTITIES if rescale_type in UNSPECIFIED_TYPES else set())
    if "DERIVED" not in words:
        return min(names & words, default="")
    names = names | _VAGUE_QUANTITIES | _DERIVED_QUANTITIES
    return min((names & words) | _parts_in(words, _QUANTITY_PARTS), default="")


def _parts_in(words: set[str], parts: Sequence[str]) -> set[str]:
    """Which parts some word has in it: the word itself may be anything, and is not repeated."""
    return {part for part in parts if any(part in word for word in words)}


def _words(image_type: Sequence[str]) -> set[str]:
    """Values, and the words in them, in capitals and without what separates: "MIN IP" and "MIN_IP" are both MINIP."""
    values = [value.upper() for value in image_type]
    parts = [part for value in values for part in re.split(r"[^A-Z0-9_]+", value)]
    return {re.sub(r"[^A-Z0-9]", "", text) for text in (*values, *parts)} - {""}
