"""Reason codes: their sentences, what they depend on, and their table in docs/ingestion.md."""

import re
from pathlib import Path

import pytest
from pydicom.datadict import tag_for_keyword

from storage.sources import files
from storage.verdicts import BEHIND, REASONS, counted, sentence
from tasks.ingest.config import IngestConfig
from tests.reasons_table import PAGE, page_with_table


def test_the_table_in_the_documentation_is_that_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page_with_table(text), "run python -m tests.reasons_table"


def test_the_limits_in_the_documentation_are_the_defaults() -> None:
    rows = re.findall(r"\| `ingest\.(\w+)` \| ([^|]*) \|", PAGE.read_text(encoding="utf-8"))
    config = IngestConfig()
    assert {name for name, _ in rows} == set(IngestConfig.model_fields) & {
        "max_hu", "min_slices", "min_length_mm", "min_width_mm", "max_slice_mm", "max_jitter", "excluded_body_parts", "nan",
        "synthetic",
    }  # fmt: skip
    for name, shown in rows:
        if name != "excluded_body_parts":
            value = getattr(config, name)
            assert shown.split()[0] == (value if isinstance(value, str) else f"{value:g}")


@pytest.mark.parametrize("code", list(REASONS))
def test_a_sentence_says_what_where_and_what_to_do(code: str) -> None:
    text = sentence(code, "Scan 1.2", "a detail")
    assert "Scan 1.2" in text or "scan 1.2" in text
    assert text.endswith(".")
    assert "{" not in text


def test_what_verdicts_depend_on_exists() -> None:
    assert BEHIND.keys() <= REASONS.keys()
    for names in BEHIND.values():
        for name in names:
            if name.startswith("ingest."):
                assert name.removeprefix("ingest.") in IngestConfig.model_fields
            else:
                assert tag_for_keyword(name) is not None, name


def test_a_setting_that_a_sentence_names_is_behind_it() -> None:
    for code, reason in REASONS.items():
        named = set(re.findall(r"ingest\.(?!csv)\w+", reason.sentence))
        assert named <= set(BEHIND.get(code, ())), code


_OF_EVERY_FORMAT = (
    "single_file", "nifti", "nrrd", "metaimage", "npz", "plausible", "plane_checks", "formats", "files", "index"
)  # fmt: skip


@pytest.mark.parametrize("module", _OF_EVERY_FORMAT)
def test_advice_that_other_formats_get_names_nothing_of_dicom(module: str) -> None:
    code = (Path(files.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
    reasons = set(re.findall(rf'"({"|".join(REASONS)})"', code))
    assert reasons, module
    for reason in reasons:
        words = re.findall(r"\w+", REASONS[reason].sentence)
        assert not [word for word in words if word[0].isupper() and tag_for_keyword(word)], reason
        assert not {"series", "tag"} & set(words), reason


def test_plurals() -> None:
    assert [counted(number, "repeated file") for number in (0, 1, 2)] == [
        "0 repeated files", "1 repeated file", "2 repeated files"
    ]  # fmt: skip
