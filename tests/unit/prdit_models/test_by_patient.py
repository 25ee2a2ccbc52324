"""The interval of a mean difference over patients: a case by hand, coverage by simulation, refusals."""

import numpy as np
import pytest

from prdit_models.metrics.by_patient import mean_difference


def test_by_hand() -> None:
    """Three patients with mean differences 1, 2, 3: t(0.975, 2) = 4.302653, spread 1, half-width 4.302653 / √3."""
    first = {"a1": 0.0, "a2": 0.0, "b": 5.0, "c": 1.0}
    second = {"a1": 0.0, "a2": 2.0, "b": 7.0, "c": 4.0}
    found = mean_difference(first, second, {"a1": "a", "a2": "a", "b": "b", "c": "c"})
    assert found["value"] == pytest.approx(2.0)
    assert (found["low"], found["high"]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
    assert (found["num_patients"], found["num_volumes"]) == (3, 4)
    assert found["num_needed"] == 4  # t(0.975, 3) / √4 = 1.59 < 2 < t(0.975, 2) / √3 = 2.48
    assert mean_difference(second, first, {"a1": "a", "a2": "a", "b": "b", "c": "c"})["value"] == pytest.approx(-2.0)


def test_another_level_and_no_spread() -> None:
    same = mean_difference({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, {"a": "p", "b": "q"})
    assert (same["value"], same["low"], same["high"], same["num_needed"]) == (0.0, 0.0, 0.0, None)
    wide, narrow = (
        mean_difference({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 2.0}, {"a": "p", "b": "q"}, level=level)
        for level in (0.95, 0.8)
    )
    assert wide["high"] - wide["value"] == pytest.approx(12.706205 * 0.5, rel=1e-6)
    assert narrow["high"] - narrow["value"] == pytest.approx(3.077684 * 0.5, rel=1e-6)


@pytest.mark.parametrize("num_patients", [3, 5, 10, 30])
@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_coverage(kind: str, num_patients: int) -> None:
    """Patients differ, and so do volumes of one patient; 1 to 4 volumes each. A volume-wise interval would not cover."""
    rng = np.random.default_rng(num_patients)
    draw = rng.normal if kind == "normal" else lambda loc, scale, size=None: rng.gamma(4.0, scale / 2, size) - 2 * scale
    rounds, covered, by_volume = 1000, 0, 0
    for _ in range(rounds):
        patients, second = {}, {}
        for patient in range(num_patients):
            own = draw(0.0, 1.0)
            for volume in range(int(rng.integers(1, 5))):
                patients[f"{patient}.{volume}"] = str(patient)
                second[f"{patient}.{volume}"] = float(own + rng.normal(0.0, 0.3))
        first = dict.fromkeys(second, 0.0)
        found = mean_difference(first, second, patients)
        covered += found["low"] <= 0.0 <= found["high"]
        naive = mean_difference(first, second, {name: name for name in patients}) if len(patients) > 1 else found
        by_volume += naive["low"] <= 0.0 <= naive["high"]
    assert covered / rounds >= 0.90
    assert by_volume < covered


def test_needed_is_the_fewest() -> None:
    rng = np.random.default_rng(0)
    numbers = {str(k): float(v) for k, v in enumerate(rng.normal(0.2, 1.0, 12))}
    found = mean_difference(dict.fromkeys(numbers, 0.0), numbers, {k: k for k in numbers})
    assert found["low"] < 0 < found["high"]
    assert found["num_needed"] is not None
    assert found["num_needed"] > 12


def test_refusals() -> None:
    with pytest.raises(ValueError, match="same volumes"):
        mean_difference({"a": 1.0}, {"b": 1.0}, {"a": "p", "b": "q"})
    with pytest.raises(ValueError, match="two or more"):
        mean_difference({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 1.0}, {"a": "p", "b": "p"})
    with pytest.raises(ValueError, match="finite"):
        mean_difference({"a": 1.0, "b": float("nan")}, {"a": 1.0, "b": 1.0}, {"a": "p", "b": "q"})
