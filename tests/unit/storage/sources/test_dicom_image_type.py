"""ImageType: words of makers for what is no slice in HU, whatever separates or follows them."""

import pytest

from storage.sources.dicom_image_type import no_slice, quantity

DERIVED = ("DERIVED", "SECONDARY", "AXIAL")


@pytest.mark.parametrize(
    "word",
    [
        "IODINE_NO_WATER", "IODINE MAP", "Z EFFECTIVE", "EFFECTIVE_Z", "PBV", "CALCIUM_SUPPRESSION", "URIC ACID", "WATER(IODINE)",
        "EFF_ATOMIC_NUM", "MD",
    ],
)  # fmt: skip
def test_maps_of_other_quantities(word: str) -> None:
    assert quantity((*DERIVED, word), "HU")
    assert no_slice((*DERIVED, word)) is None


@pytest.mark.parametrize(
    "word",
    [
        "SUBTRACTED",
        "BONE REMOVAL",
        "CPR",
        "RADIAL",
        "VOLREN",
        "MAX_IP",
        "MIN IP",
        "OVERLAY",
        "SCREEN SAVE",
        "3D",
        "DOSE",
    ],
)
def test_images_made_of_others(word: str) -> None:
    assert (no_slice((*DERIVED, word)) or ("", ""))[0] == "derived_reformat"
    assert no_slice(("ORIGINAL", "PRIMARY", "AXIAL", word)) is None


@pytest.mark.parametrize("word", ["LOCALIZER", "TOPOGRAM", "SCOUT"])
@pytest.mark.parametrize("first", ["ORIGINAL", "DERIVED"])
def test_scouts(word: str, first: str) -> None:
    assert no_slice((first, "PRIMARY", word)) == ("localizer", "")


@pytest.mark.parametrize(
    "word",
    ["AIDR 3D", "AIDR 3D STD", "MONOENERGETIC", "GSI MONO", "E70", "VNC", "CT_SOM7 SPI DUAL", "RESAMPLED", "iDose (3)"],
)
def test_derived_images_in_hu(word: str) -> None:
    assert no_slice((*DERIVED, word)) is None
    assert quantity((*DERIVED, word), "HU") == quantity((*DERIVED, word), "") == ""


def test_words_of_makers_are_not_repeated() -> None:
    assert quantity((*DERIVED, "SMITH_IODINE_JOHN"), "HU") == "IODINE"
    assert no_slice((*DERIVED, "SMITH_SUBTRACTED_JOHN")) == ("derived_reformat", "SUBTRACT")
