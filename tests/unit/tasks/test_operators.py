"""Operators as users write them: settings are checked like a family's, and the examples of the page are operators."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from prdit_models.inverse.grid import Grid3
from prdit_models.inverse.operator import OPERATORS, operator_from_dict
from tasks.run.settings import settings_of
from tests.unit.prdit_models.inverse.cases import CASES, GRID


@pytest.mark.parametrize("case", CASES)
def test_settings_are_checked_like_a_familys(case: str) -> None:
    operator = operator_from_dict(CASES[case], GRID)
    settings = operator.to_dict()
    kind: Any = OPERATORS[settings.pop("name")]
    assert settings_of(kind, {**settings, "grid": GRID}) == operator


def test_the_documented_examples_are_operators(repository: Path) -> None:
    section = (repository / "docs" / "guided.md").read_text(encoding="utf-8").partition("## Operators\n")[2]
    examples = [
        yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    ]
    made = [operator_from_dict(example, Grid3((64, 64, 64), (4.0, 4.0, 4.0))) for example in examples]
    assert [operator.name for operator in made] == ["thick-slices", "mask", "projection", "sparse-view"]
    assert [operator.noise_std for operator in made] == [10, 0, 2, 0]
