"""Policies of retraining by name and by file, and those that are refused."""

from pathlib import Path

import pytest
import yaml

from flows.named_files import policy_names
from flows.policy import load_policy
from storage.errors import ConfigError


def written(folder: Path, **values: object) -> str:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_every_named_policy_can_be_loaded_and_they_differ_in_what_they_say() -> None:
    assert policy_names() == ["cautious", "default", "eager"]
    cautious, default, eager = (load_policy(name) for name in policy_names())
    assert eager.min_new_volumes == 1 < (default.min_new_volumes or 0) < (cautious.min_new_volumes or 0)
    assert (cautious.start, default.start, eager.start) == ("scratch", "champion", "champion")
    assert eager.window_hours == 0 < default.window_hours < cautious.window_hours
    assert default.min_new_share == 0.1
    assert eager.min_new_share is None


def test_an_own_file(tmp_path: Path) -> None:
    assert load_policy(written(tmp_path, min_new_volumes=3)).min_new_volumes == 3


def test_a_name_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'bold' is not a policy of prdit; there are cautious, default, eager"):
        load_policy("bold")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_policy(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"min_new_volumes": None, "min_new_share": None, "max_days": None}, "can never fire"),
        ({"promote": "not_worse_with_more_patients"}, "margin is None"),
        ({"margin": 0.1}, "says nothing otherwise"),
        ({"start": "scratch", "warm_steps_share": 0.5}, "no training starts warm"),
        ({"min_new_volumes": 0}, "min_new_volumes: Input should be greater than or equal to 1, got 0"),
        (
            {"min_new_volumes": None, "min_new_share": 1.5, "max_days": None},
            "min_new_share: .* less than or equal to 1",
        ),
        ({"window_hours": 1e12}, "window_hours: .* less than or equal to 8784"),
        ({"max_days": float("inf")}, "max_days"),
        ({"min_volumes": 3}, r"min_volumes: unknown key. Known here: .*min_new_volumes"),
        ({"drift": {"nothing": 3}}, r"drift.nothing: unknown key"),
    ],
)
def test_what_is_refused(tmp_path: Path, values: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_policy(written(tmp_path, **values))
