"""When a retraining is due: a table of facts and decisions."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.retrain.due import Facts, Last, due
from tasks.retrain.policy import RetrainPolicy

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
FACTS = Facts(
    snapshot="sha256:new",
    num_volumes=110,
    num_patients=60,
    new_volumes=10,
    new_patients=4,
    last=Last("sha256:old", 100, NOW - timedelta(days=3)),
    refused="",
    now=NOW,
)


def policy(**changes: Any) -> RetrainPolicy:
    return RetrainPolicy(**{"min_new_volumes": None, "min_new_share": None, "max_days": 365.0} | changes)


@pytest.mark.parametrize(
    ("settings", "facts", "state", "says"),
    [
        ({"min_new_volumes": 10}, {}, "train", "min_new_volumes is 10"),
        ({"min_new_volumes": 11}, {}, "wait", "10 volume(s) that the last training did not have, of 4 new patient(s)"),
        ({"min_new_share": 0.1}, {}, "train", "they are 0.1"),
        ({"min_new_share": 0.11}, {}, "wait", "min_new_share is 0.11"),
        ({"max_days": 3}, {}, "train", "3.0 days ago"),
        ({"max_days": 4}, {}, "wait", "max_days is 4"),
        ({"max_days": 3, "window_hours": 73}, {}, "wait", "2027-03-01 13:00 UTC"),
        ({"max_days": 3, "window_hours": 72}, {}, "train", "Due"),
        ({"min_new_volumes": 1}, {"snapshot": "sha256:old"}, "nothing", "same 110 volumes"),
        ({"max_days": 1}, {"new_volumes": 0}, "nothing", "every volume"),
        ({"min_new_volumes": 1}, {"snapshot": "", "num_volumes": 0}, "nothing", "no volume"),
        ({"min_new_volumes": 1}, {"num_patients": 1, "last": None}, "wait", "two patients"),
        ({"min_new_volumes": 10}, {"last": None}, "train", "no training has had yet"),
        ({"min_new_volumes": 11, "min_new_share": 0.01}, {"last": None}, "wait", "min_new_volumes is 11"),
        ({}, {"last": None}, "train", "the first training"),
        ({}, {"new_volumes": 0, "refused": "a patient was forgotten"}, "train", "a patient was forgotten"),
        ({"window_hours": 100}, {"refused": "a patient was forgotten"}, "wait", "window_hours"),
        ({}, {"snapshot": "sha256:old", "refused": "a patient was forgotten"}, "nothing", "Nothing new"),
    ],
)
def test_decisions(settings: dict[str, Any], facts: dict[str, Any], state: str, says: str) -> None:
    found = due(policy(**settings), replace(FACTS, **facts))
    assert found.state == state, found.reason
    assert says in found.reason
    assert found.train == (state == "train")


def test_a_champion_whose_beginning_is_not_known_is_old_by_no_rule() -> None:
    facts = replace(FACTS, last=Last("sha256:old", 100, None))
    assert due(policy(max_days=1, window_hours=1000, min_new_volumes=11), facts).state == "wait"
