"""Drills that kill runs, once each at their smallest size."""

from pathlib import Path

import pytest

from tests.drills import bucket_ingest, kill_ingest, kill_launcher, kill_training

pytestmark = pytest.mark.slow


def test_kill_ingest(tmp_path: Path) -> None:
    (committed,) = kill_ingest.run(tmp_path, rounds=1)["committed_after_each_kill"]
    assert committed > 0


def test_kill_ingest_into_a_bucket(tmp_path: Path) -> None:
    found = bucket_ingest.run(tmp_path, rounds=1)
    assert sum(found["broken_requests"].values()) > 0


def test_kill_training(tmp_path: Path) -> None:
    found = kill_training.run(tmp_path, rounds=1, cases=[("local", 1)], steps=300, preset="XS/4/0")
    assert found["identical"] == ["local, 1 rank(s)"]
    assert found["local, 1 rank(s)"]["kills"] == 1


def test_kill_launcher(tmp_path: Path) -> None:
    found = kill_launcher.run(tmp_path, rounds=1, steps=200, ranks=1, latest_s=0.2, preset="XS/4/0")
    assert found["launchers_killed"] == 1
    assert len(found["writes_of_each_launch"]) == 2
