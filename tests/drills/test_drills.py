"""Each drill once, at its smallest size; `make drills` runs them longer."""

from pathlib import Path

import pytest

from tests.drills import kill_ingest, kill_training

pytestmark = pytest.mark.slow


def test_kill_ingest(tmp_path: Path) -> None:
    assert len(kill_ingest.run(tmp_path, rounds=1)["committed_after_each_kill"]) == 1


def test_kill_training(tmp_path: Path) -> None:
    assert kill_training.run(tmp_path, rounds=1)["rounds"] == 1
