"""Each drill once, at its smallest size; `make drills` runs them longer."""

import os
from pathlib import Path

import pytest
import torch

from tests.drills import (
    at_once,
    browser,
    damaged_states,
    kill_ingest,
    kill_launcher,
    kill_training,
    lost_hosts,
    memorisation,
    sampling,
    slurm_losses,
    slurm_pipeline,
    store_damage,
    torch_versions,
    tracking_away,
)
from tests.namespaces import skip_without_namespaces
from tests.parity.location import REPOSITORY
from tests.slurm import skip_without_slurm

pytestmark = pytest.mark.slow


def test_kill_ingest(tmp_path: Path) -> None:
    (committed,) = kill_ingest.run(tmp_path, rounds=1)["committed_after_each_kill"]
    assert committed > 0


def test_store_damage(tmp_path: Path) -> None:
    found = store_damage.run(tmp_path, rounds=1)["damage"]
    assert {line["repaired"] for line in found.values()} == {1}
    assert len(found) == 13


def test_at_once(tmp_path: Path) -> None:
    assert at_once.run(tmp_path, rounds=1)["stores"] == 3


def test_kill_training(tmp_path: Path) -> None:
    found = kill_training.run(tmp_path, rounds=1, cases=[("local", 1)], steps=60)
    assert found["identical"] == ["local, 1 rank(s)"]
    assert found["local, 1 rank(s)"]["kills"] == 1


def test_kill_launcher(tmp_path: Path) -> None:
    found = kill_launcher.run(tmp_path, rounds=1, steps=40)
    assert found["launchers_killed"] == 1
    assert len(found["writes_of_each_launch"]) == 2


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


def test_tracking_away(tmp_path: Path) -> None:
    figures = tracking_away.run(tmp_path, seconds_away=1.0)
    assert figures.pop("seconds_away") == 1.0
    assert {name: found["status"] for name, found in figures.items()} == {
        "start": "FINISHED",
        "middle": "FINISHED",
        "end": "FINISHED",
        "for_ever": "KILLED",
    }
    for found in figures.values():
        assert found["steps"] > 10
        assert (found["steps_lost"], found["points_twice"]) == (0, 0)
        assert found["points_on_server"] == found["steps"]
        assert found["connections"] == 0  # of the training's thread: that of the sender waits for servers
        assert found["longest_stall_s"] <= 5.0  # a busy machine's; a client of MLflow that waits does so for minutes


def test_prdit_models_needs_nothing_but_torch_and_the_few_beside_it(tmp_path: Path) -> None:
    select = "test_own or test_anatomy or test_weights"  # some of what runs; all is imported
    found = torch_versions.run(tmp_path, ["installed"], select)["installed"]
    assert found["torch"] == torch.__version__
    assert found["modules"] == len(list((REPOSITORY / "prdit_models").rglob("*.py"))) - 1  # not prdit_models itself
    assert found["passed"] > 50


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_browser(tmp_path: Path) -> None:
    if packages := browser.missing():
        reason = f"not on PATH: {', '.join(packages)} (Debian packages)"
        if os.environ.get("PRDIT_REQUIRE_BROWSER") == "1":
            pytest.fail(f"PRDIT_REQUIRE_BROWSER=1 but {reason}")
        pytest.skip(reason)
    seen = browser.run(tmp_path, rounds=1)
    assert seen["runs"] == 2
    assert seen["mlflow_compare"]["differing"] == [browser.CHANGED]
    assert seen["report"]["pictures"] > 0
    assert {"prefect-form-0.png", "prefect-run.png", "mlflow-runs.png", "mlflow-compare.png", "report.png"} <= set(
        seen["shots"]
    )


def test_memorisation(tmp_path: Path) -> None:
    found = memorisation.run(tmp_path, rounds=1, steps=2, patients=3)
    assert found["not memorised"]["training_patients"] == 3
    assert found["not memorised"]["figures"]["copy_rate_held_out"] == 0
