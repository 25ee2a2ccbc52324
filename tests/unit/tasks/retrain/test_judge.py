"""Judgements: a table of evidence and what is decided of it, with the words that a person looks for."""

from dataclasses import replace
from typing import Any

import pytest

from prdit_models.metrics.by_patient import MeanDifference
from prdit_models.metrics.paired import share_difference
from tasks.retrain.judge import Distance, Evidence, Share, judge
from tasks.retrain.policy import RetrainPolicy


def loss(value: float, half: float, **changes: Any) -> MeanDifference:
    found: Any = {
        "value": value,
        "low": value - half,
        "high": value + half,
        "level": 0.95,
        "num_patients": 8,
        "num_volumes": 9,
        "num_needed": 40,
        "method": "t",
    }
    return found | changes


def share(count: int, total: int, other: tuple[int, int] | None = None) -> Share:
    from prdit_models.metrics.spread import share_interval

    own = share_interval(count, total)
    first, second = (
        ([True] * yes + [False] * (of - yes) if of else []) for yes, of in (other or (0, 0), (count, total))
    )
    difference = share_difference(first, second, paired=False) if other else None
    return Share(count / total, own["low"], own["high"], difference)


GOOD = Evidence(
    champion=3,
    loss=loss(-0.02, 0.01),
    losses=(0.30, 0.28),
    reference=2,
    reference_volumes=9,
    anatomy=share(30, 40, (30, 40)),
    copies=share(1, 40, (1, 40)),
    patients=(20, 25),
)
NOT_WORSE: dict[str, Any] = {"promote": "not_worse_with_more_patients", "margin": 0.1}
UNSURE = loss(-0.001, 0.005)


@pytest.mark.parametrize(
    ("settings", "changes", "promote", "says"),
    [
        ({}, {}, True, "better than the champion beyond noise"),
        ({}, {"loss": loss(0.02, 0.01)}, False, "worse than the champion beyond noise"),
        ({}, {"loss": UNSURE}, False, "about 40 held-out patients"),
        ({}, {"loss": loss(0.0, 0.0, num_needed=None)}, False, "not better than the champion"),
        ({}, {"loss": None, "lost": "Its files are gone."}, False, "Held. Its files are gone."),
        ({"min_reference_volumes": 10}, {}, False, "reference has 9 held-out volume(s), and the policy asks for 10"),
        (NOT_WORSE, {"loss": UNSURE}, True, "trained on more patients (25, the champion on 20)"),
        (NOT_WORSE, {"loss": UNSURE, "patients": (25, 25)}, False, "not trained on more patients (25"),
        (NOT_WORSE, {"loss": UNSURE, "patients": (None, 25)}, False, "the champion on an unknown number"),
        (NOT_WORSE, {"loss": loss(0.01, 0.025)}, False, "worse by more than the margin of 0.03"),
        (NOT_WORSE, {"loss": loss(0.01, 0.005)}, False, "worse than the champion beyond noise"),
        ({}, {"unmet": ("local ended at 0.9",)}, False, "gate of the configuration is not met: local ended at 0.9"),
        ({}, {"refused": "a patient was forgotten"}, False, "must not be promoted: a patient was forgotten"),
        ({}, {"copies": share(20, 40, (1, 40))}, False, "memorises more than the champion"),
        ({}, {"copies": share(3, 40, (1, 40))}, True, "Samples called copies: 8%"),
        ({"max_copy_rate": 0.3}, {"copies": share(20, 40)}, False, "max_copy_rate is 0.3"),
        ({"max_copy_rate": 0.3}, {"copies": share(1, 2)}, True, "better"),
        ({"max_copy_rate": None}, {"copies": share(40, 40)}, True, "better"),
        ({}, {"copies": Share(note="it is switched off")}, False, "copy rate is not known (it is switched off)"),
        ({}, {"anatomy": share(10, 40, (35, 40))}, False, "Fewer of its samples could be a chest"),
        ({}, {"anatomy": Share(note="no whole chest")}, True, "not known (no whole chest)"),
    ],
)
def test_beside_a_champion(settings: dict[str, Any], changes: dict[str, Any], promote: bool, says: str) -> None:
    found = judge(RetrainPolicy(**settings), replace(GOOD, **changes))
    assert found.promote is promote, found.reason
    assert says in found.reason
    assert found.reason.startswith("Promoted" if promote else "Held")


@pytest.mark.parametrize(
    ("changes", "promote", "says"),
    [
        ({}, True, "no champion yet"),
        ({"anatomy": share(0, 20)}, False, "a first champion needs 50%"),
        ({"anatomy": share(0, 2)}, True, "no champion yet"),
        ({"unmet": ("global ended at 0.9",)}, False, "gate"),
        ({"copies": share(20, 20)}, False, "max_copy_rate"),
    ],
)
def test_the_first(changes: dict[str, Any], promote: bool, says: str) -> None:
    alone = Evidence(None, why_none="there is no champion yet.", anatomy=share(15, 20), copies=share(1, 20))
    found = judge(RetrainPolicy(), replace(alone, **changes))
    assert found.promote is promote, found.reason
    assert says in found.reason


@pytest.mark.parametrize(
    ("distances", "promote", "says"),
    [
        ([("fid", True), ("kid", None)], True, "beyond noise in fid"),
        ([("fid", True), ("kid", False)], False, "beyond noise in kid"),
        ([("fid", None)], False, "in no distance better"),
        ([], False, "The reports do not compare: another extractor."),
    ],
)
def test_across_families_the_distances_decide(
    distances: list[tuple[str, bool | None]], promote: bool, says: str
) -> None:
    rows = tuple(Distance(name, -1.0, -2.0, 0.5, better) for name, better in distances)
    evidence = replace(
        GOOD, loss=None, why_no_loss="family global and refiner.", distances=rows, why_no_distances="another extractor."
    )
    found = judge(RetrainPolicy(), evidence)
    assert found.promote is promote, found.reason
    assert says in found.reason
    assert "family global and refiner" in found.reason


def test_with_too_small_a_reference_distances_do_not_promote_either() -> None:
    rows = (Distance("fid", -1.0, -2.0, -0.5, True),)
    evidence = replace(GOOD, loss=None, why_no_loss="family global and refiner.", distances=rows)
    assert judge(RetrainPolicy(min_reference_volumes=9), evidence).promote
    found = judge(RetrainPolicy(min_reference_volumes=10), evidence)
    assert not found.promote
    assert "reference has 9 held-out volume(s), and the policy asks for 10 (min_reference_volumes)" in found.reason
    assert "family global and refiner" in found.reason


def test_figures_have_what_the_decision_rests_on_and_nothing_unknown() -> None:
    figures = judge(RetrainPolicy(), GOOD).figures
    assert figures["held_out_loss_champion"] == 0.30
    assert figures["held_out_loss_difference"] == -0.02
    assert figures["patients_needed"] == 40
    assert figures["reference"] == 2
    assert figures["patients_challenger"] == 25
    assert None not in judge(RetrainPolicy(), Evidence(None, copies=share(0, 4))).figures.values()
