"""Which values of allow-listed tags may enter the store, and which texts about a scan."""

import re

import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from storage.errors import UnusableSeriesError
from storage.privacy import PATH, REMOVED, Hidden, opaque_id, shown, with_placeholder, without_folder, words_of
from storage.sources.attributes import safe_attributes
from storage.sources.dicom_attributes import ATTRIBUTE_TAGS, allowed_attributes, shown_class, shown_modality
from storage.sources.source import refuse, short

KEPT = [
    ("ConvolutionKernel", "B30f", "B30f"),
    ("ConvolutionKernel", ["I30f", "3"], "I30f\\3"),
    ("ConvolutionKernel", ["Br40d", "3"], "Br40d\\3"),
    ("ConvolutionKernel", "FC51", "FC51"),
    ("ConvolutionKernel", "STANDARD", "STANDARD"),
    ("ConvolutionKernel", "BONEPLUS", "BONEPLUS"),
    ("ConvolutionKernel", "YA", "YA"),
    ("ConvolutionKernel", "Zqplant", None),
    ("ConvolutionKernel", "Doe^John", None),
    ("ConvolutionKernel", "B30f Doe", None),
    ("ConvolutionKernel", "19510203", None),
    ("Manufacturer", "SIEMENS", "SIEMENS"),
    ("Manufacturer", "Siemens Healthineers, Doe", "SIEMENS"),
    ("Manufacturer", "GE MEDICAL SYSTEMS", "GE MEDICAL SYSTEMS"),
    ("Manufacturer", "Philips", "Philips"),
    ("Manufacturer", "Doe and Sons", "other"),
    ("Manufacturer", "General Electric Company", "GE MEDICAL SYSTEMS"),
    ("ManufacturerModelName", "LightSpeed Plus", "LightSpeed Plus"),
    ("ManufacturerModelName", "Brilliance16", "Brilliance16"),
    ("ManufacturerModelName", "SOMATOM Definition AS+", "SOMATOM Definition AS+"),
    ("ManufacturerModelName", "Aquilion ONE", "Aquilion ONE"),
    ("ManufacturerModelName", "Doe 16", None),
    ("ManufacturerModelName", "Sensation 19510203", None),
    ("ScanOptions", "HELICAL MODE", "HELICAL MODE"),
    ("ScanOptions", "HELIX", "HELIX"),
    ("ScanOptions", "DOE", None),
    ("BodyPartExamined", "chest", "CHEST"),
    ("BodyPartExamined", "DOE", None),
    ("PatientPosition", "HFS", "HFS"),
    ("PatientPosition", "DOE", None),
    ("PatientSex", "F", "F"),
    ("PatientSex", "Doe", None),
    ("StudyInstanceUID", "1.2.840.113619.2", "1.2.840.113619.2"),
    ("StudyInstanceUID", "1.2.Doe", None),
    ("StudyInstanceUID", "19510203", None),
    ("SeriesInstanceUID", "Doe", None),
    ("SeriesInstanceUID", "1." + "2" * 64, None),
    ("KVP", "120", 120.0),
    ("KVP", "19510203", None),
    ("KVP", "nan", None),
    ("SliceThickness", -1.0, None),
    ("PatientName", "Doe^John", None),
]


@pytest.mark.parametrize(("name", "value", "kept"), KEPT)
def test_a_value_is_kept_or_dropped(name: str, value: object, kept: object) -> None:
    assert safe_attributes({name: value}, frozenset()).get(name) == kept


@pytest.mark.parametrize(
    "tag",
    [
        "PatientName",
        "PatientID",
        "OtherPatientIDs",
        "AccessionNumber",
        "InstitutionName",
        "ReferringPhysicianName",
        "PatientComments",
        "OperatorsName",
    ],
)
def test_what_shares_a_word_with_an_identifying_tag_is_dropped(tag: str) -> None:
    """A patient, a hospital or a physician that is called like a model: the model goes, what has a list of values stays."""
    header = Dataset()
    header.Manufacturer, header.ManufacturerModelName, header.ConvolutionKernel = "SIEMENS", "Sensation 16", "Abc12"
    assert allowed_attributes(header)["ManufacturerModelName"] == "Sensation 16"
    setattr(header, tag, "sensation siemens ABC12")
    found = allowed_attributes(header)
    assert "ManufacturerModelName" not in found
    assert "ConvolutionKernel" not in found
    assert found["Manufacturer"] == "SIEMENS"


def test_every_tag_that_is_read_exists() -> None:
    assert [name for name in ATTRIBUTE_TAGS if tag_for_keyword(name) is None] == []


def test_modality_and_class_are_named_only_where_dicom_lists_them() -> None:
    assert shown_modality("MR") == "modality MR"
    assert "DOE" not in shown_modality("DOE")
    assert shown_class("1.2.840.10008.5.1.4.1.1.4") == "a MR Image Storage"
    assert "1.2" not in shown_class("1.2.doe")


def test_opaque_ids_need_the_key() -> None:
    one, other = (opaque_id(bytes([k]) * 32, "file", "Doe/a.dcm") for k in (1, 2))
    assert re.fullmatch(r"file-[0-9a-f]{12}", one)
    assert one != other
    assert one == opaque_id(b"\1" * 32, "file", "Doe/a.dcm") != opaque_id(b"\1" * 32, "store", "Doe/a.dcm")


def test_a_refusal_names_its_file_by_the_placeholder() -> None:
    with pytest.raises(UnusableSeriesError) as caught:
        refuse("missing_rescale", "Series 1.2.3, file Doe/1", "slope None in Doe/1", "Doe/1")
    text = str(caught.value)
    assert "Doe" not in text
    assert text.count(PATH) == 2
    assert shown(text, "Doe/1").startswith("Series 1.2.3, file Doe/1 has no usable")
    assert with_placeholder("Series 1.2.3, file 1 of 0.1", "1") == f"Series 1.2.3, file {PATH} of 0.1"


def test_texts_lose_names_words_and_quoted_values() -> None:
    hidden = Hidden("/data/DOE_JOHN", ("DOE_A/series/0001.dcm",), words_of("Doe^Johnny 7712345"))
    for text, expected in {
        "No such file: '/data/DOE_JOHN/DOE_A/x.dcm'": f"No such file: {REMOVED}",
        "kernels doe and B30f": f"kernels {REMOVED} and B30f",
        "in 0001.dcm of 24 series, 0.0001 mm": f"in {REMOVED} of 24 series, 0.0001 mm",
        "slope 'Anything', intercept '-1024'": f"slope {REMOVED}, intercept '-1024'",
        "id 7712345": f"id {REMOVED}",
        "40 slices, at least 16 are needed": "40 slices, at least 16 are needed",
    }.items():
        assert hidden.out_of(text) == expected


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            ValueError("could not convert string to float: 'Doe^John'"),
            f"ValueError: could not convert string to float: {REMOVED}",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "/data/doe"),
            "FileNotFoundError: No such file or directory",
        ),
        (
            RuntimeError('reading /data/doe/1.dcm of "O\'Doe" failed'),
            f"RuntimeError: reading {REMOVED} of {REMOVED} failed",
        ),
        (
            ValueError("The number of bytes is 100, expected 336"),
            "ValueError: The number of bytes is 100, expected 336",
        ),
        (KeyError(), "KeyError"),
    ],
)
def test_errors_are_named_without_what_they_quote(error: Exception, text: str) -> None:
    assert short(error) == text


def test_a_folder_leaves_a_text_with_all_that_lies_in_it() -> None:
    text = "No CT in /data/Doe J: 3. '/data/Doe J/a b/c.dcm' is not /data/Doe Jx"
    assert without_folder(text, "/data/Doe J") == f"No CT in {REMOVED}: 3. '{REMOVED}' is not /data/Doe Jx"


def test_texts_keep_uids_and_sizes_that_folders_are_named_by() -> None:
    """Downloads have a folder per SeriesInstanceUID: a sentence still says which series it is about, and how long it is."""
    uid = "1.3.6.1.4.1.14519.5.2.1.99.1071.5550001"
    hidden = Hidden("/data", (f"{uid}/0001.dcm", "144.0/19510203/1.dcm"), words_of("DOE 14519"))
    assert hidden.out_of(f"Series {uid} is 144.0 mm long") == f"Series {uid} is 144.0 mm long"
    assert hidden.out_of(f"Series {uid}: 5 slices.") == f"Series {uid}: 5 slices."
    assert uid not in hidden.out_of(f"{uid}/0001.dcm cannot be read")
    assert hidden.out_of("of 19510203 and 14519") == "of … and …"
