"""Each drill once, at its smallest size; `make drills` runs them longer. Kills, clusters and servers have files of their own."""

from pathlib import Path

import pytest
import torch

from tests.drills import at_once, damaged_states, memorisation, sampling, store_damage, torch_versions
from tests.parity.location import REPOSITORY

pytestmark = pytest.mark.slow


def test_store_damage(tmp_path: Path) -> None:
    found = store_damage.run(tmp_path, rounds=1)["damage"]
    assert {line["repaired"] for line in found.values()} == {1}
    assert len(found) == 13


def test_at_once(tmp_path: Path) -> None:
    assert at_once.run(tmp_path, rounds=1)["stores"] == 3


def test_damaged_states(tmp_path: Path) -> None:
    found = damaged_states.run(tmp_path, rounds=1)
    assert {what: found[what]["damages"] for what in ("truncated", "bit flipped", "lost")} == {
        "truncated": 20,
        "bit flipped": 200,
        "lost": 5,
    }


def test_sampling(tmp_path: Path) -> None:
    found = sampling.run(tmp_path, rounds=1, workers=(), num_volumes=4)
    assert found["equal"] == ["one process", "after all kills"]
    assert found["killed"]["everything"] == 1


def test_prdit_models_needs_nothing_but_torch_and_the_few_beside_it(tmp_path: Path) -> None:
    select = "test_own or test_anatomy or test_weights"  # some of what runs; all is imported
    found = torch_versions.run(tmp_path, ["installed"], select)["installed"]
    assert found["torch"] == torch.__version__
    assert found["modules"] == len(list((REPOSITORY / "prdit_models").rglob("*.py"))) - 1  # not prdit_models itself
    assert found["passed"] > 50


def test_memorisation(tmp_path: Path) -> None:
    found = memorisation.run(tmp_path, rounds=1, steps=2, patients=3)
    assert found["not memorised"]["training_patients"] == 3
    assert found["not memorised"]["figures"]["copy_rate_held_out"] == 0
