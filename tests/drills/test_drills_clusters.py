"""Drills on hosts that get lost and on a real Slurm, once each at their smallest size."""

from pathlib import Path

import pytest

from tests.drills import lost_hosts, slurm_losses, slurm_pipeline
from tests.namespaces import skip_without_namespaces
from tests.slurm import skip_without_slurm

pytestmark = pytest.mark.slow


def test_lost_hosts(tmp_path: Path) -> None:
    skip_without_namespaces()
    patience_s = (
        3 * lost_hosts.BACK_S
    )  # other tests share the cores: `make drills` has the machine for itself, and the bound
    (found,) = lost_hosts.run(tmp_path, rounds=1, both=False, back_s=patience_s)["rounds"]
    assert {"rank_killed_s", "host_cut_s", "host_back_s"} == found.keys()


def test_slurm_losses(tmp_path: Path) -> None:
    skip_without_slurm()
    assert slurm_losses.run(tmp_path, ["node_down"])["node_down"]["starts"] == 2


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_slurm_pipeline(tmp_path: Path) -> None:
    skip_without_slurm()
    found = slurm_pipeline.run(tmp_path, steps=2, one_rank=False)
    assert set(found["jobs"].values()) == {2}  # every kind of job ran on both nodes
    assert found["same_ranks"]["figures"] > 20
    assert found["same_ranks"]["differ"] == {}
