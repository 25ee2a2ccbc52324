"""Which reports can be compared: equal features, input size, voxels and window; every difference is named."""

from typing import Any

import pytest

from storage.documents.checkpoint import Intensity
from storage.documents.report import Features, Report
from storage.errors import InputError
from tasks.evaluate.comparability import check_comparable, comparability
from tests.unit.tasks.reports import report as made_report


def report(**changes: Any) -> Report:
    features = {
        **{"extractor": "astra", "title": "Astra", "digest": "sha256:" + "1" * 64, "random": False, "width": 2048},
        **{"input_size": (80, 112, 112), "statement": "for all"},
    }
    window = {"lower_hu": -1000, "upper_hu": 1000, "model_lower": -1, "model_upper": 1, "mapping": "window"}
    made = {"volume_size": 32, "voxel_mm": 8.0, "intensity": Intensity(**window | changes.pop("intensity", {}))}
    return made_report({}, features=Features(**features | changes.pop("features", {})), **made | changes)


def test_equal_kinds_compare() -> None:
    check_comparable({})
    check_comparable({"a": report(), "b": report(voxel_mm=8.0 + 1e-9), "c": report()})
    assert comparability(report()) == {
        "features": "sha256:" + "1" * 64,
        "input_size": [80, 112, 112],
        "volume_size": 32,
        "voxel_mm": 8.0,
        "intensity": {"lower_hu": -1000, "upper_hu": 1000, "model_lower": -1, "model_upper": 1, "mapping": "window"},
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"features": {"digest": "sha256:" + "2" * 64}},
            r"b has other features .*: Astra, sha256:2+…; a: Astra, sha256:1+…",
        ),
        ({"features": {"input_size": None}}, r"b has other input size .*: None; a: \[80, 112, 112\]"),
        ({"volume_size": 64}, "b has other edge of the volumes in voxels: 64; a: 32"),
        ({"voxel_mm": 4.0}, r"b has other voxel distance in mm: 4\.0; a: 8\.0"),
        ({"intensity": {"upper_hu": 600}}, r"b has other Hounsfield window: .*'upper_hu': 600"),
    ],
)
def test_what_differs_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        check_comparable({"a": report(), "b": report(**changes)})
    assert str(caught.value).count("has other") == 1
