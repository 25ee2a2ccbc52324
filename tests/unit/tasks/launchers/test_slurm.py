"""The launcher `slurm` on a real Slurm of two nodes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.run.launchers.config import LauncherConfig
from tasks.run.launchers.launcher import LAUNCHERS, LauncherError, run_job
from tests.slurm import Slurm, skip_without_slurm, slurm_cluster
from tests.unit.tasks.launchers.jobs import Toys


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    skip_without_slurm()
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture
def toys(tmp_path: Path) -> Toys:
    return Toys(tmp_path)


def config(nodes: int = 2, **settings: Any) -> LauncherConfig:
    return LauncherConfig(name="slurm", nodes=nodes, timeout_s=20, settings={"partition": "p", **settings})


def test_a_job_over_two_nodes_saves_when_it_is_stopped(slurm: Slurm, toys: Toys) -> None:
    def watch() -> None:
        if toys.step() >= 3:
            raise KeyboardInterrupt

    LAUNCHERS["slurm"].check(config())
    with pytest.raises(KeyboardInterrupt):
        run_job(toys.job(100_000), config(), watch)
    saved = toys.marks("saved")
    assert sorted(saved) == ["saved-0", "saved-1"]
    assert slurm.jobs() == []
    assert "node 1 of 2" in toys.log(1)
    assert not toys.pids()
    assert not (toys.work / "slurm-job").exists()


def test_scancel_has_the_ranks_save_and_ends_the_run(slurm: Slurm, toys: Toys) -> None:
    """The job is on one node of the two."""

    def watch() -> None:
        if toys.step() >= 3 and not (toys.root / "cancelled").exists():
            slurm.command("scancel", json.loads((toys.work / "slurm-job").read_text())["job"])
            (toys.root / "cancelled").touch()

    with pytest.raises(LauncherError, match=r"^Slurm job \d+ was ended by somebody else \(CANCELLED\)\. Its ranks had"):
        run_job(toys.job(100_000), config(1), watch)
    assert toys.marks("saved")["saved-0"] >= 3
    assert not toys.pids()


@pytest.mark.usefixtures("slurm")
def test_what_slurm_refuses_is_refused_before_a_job_is_written(toys: Toys) -> None:
    launcher = LAUNCHERS["slurm"]
    with pytest.raises(
        LauncherError, match=r"^Slurm does not take the job: invalid partition specified: nowhere .*sinfo"
    ):
        launcher.check(config(partition="nowhere"))
    with pytest.raises(LauncherError, match=r"^Slurm does not take the job: .*[Nn]ode"):
        launcher.check(config(3))
    with pytest.raises(LauncherError, match=r"ranks_per_node is 8, but a node of launcher\.settings has 4 GPUs"):
        launcher.check(config(gpus_per_node=4).model_copy(update={"ranks_per_node": 8}))
    assert config(gpus_per_node=4).world == (8, 8)


def test_a_job_that_is_held_or_can_never_start_is_cancelled_with_the_reason(slurm: Slurm, toys: Toys) -> None:
    with pytest.raises(LauncherError, match=r"^Slurm job \d+ will not start: JobHeldUser\."):
        run_job(toys.job(1), config(options=["--hold"]), lambda: None)
    with pytest.raises(LauncherError, match=r"^Slurm job \d+ will not start: Partition(TimeLimit|Config)\."):
        run_job(toys.job(1, token=2), config(time_limit="1-00:00:00"), lambda: None)
    assert slurm.jobs() == []


@pytest.mark.usefixtures("slurm")
def test_a_job_that_fails_before_a_node_process_starts_says_what_its_log_says(toys: Toys) -> None:
    with pytest.raises(
        LauncherError,
        match=r"(?s)ended \(FAILED\) before a node process started\. .*slurm-\d+\.log ends with:"
        r"\n.*module: command not found",
    ):
        run_job(toys.job(1), config(setup=["set -e", "module load cuda"]), lambda: None)


def test_a_job_that_a_killed_launcher_left_is_ended_first(slurm: Slurm, toys: Toys) -> None:
    held = slurm.command("sbatch", "--parsable", "--hold", "--chdir", str(toys.root), "--wrap", "sleep 100").strip()
    (toys.work / "slurm-job").write_text(json.dumps({"job": held, "token": 1}))
    run_job(toys.job(3, token=2), config(1), lambda: None)
    assert toys.marks("done") == {"done-0": [3, 1]}
    assert f"JobId={held} " in slurm.command("scontrol", "-o", "show", "job", held)
    assert "JobState=CANCELLED" in slurm.command("scontrol", "-o", "show", "job", held)


def test_a_machine_without_slurm_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LauncherError, match=r"^sbatch, squeue, scancel, scontrol are not on PATH\. Run this where"):
        LAUNCHERS["slurm"].check(config())
    (tmp_path / "squeue").touch(mode=0o755)
    with pytest.raises(LauncherError, match=r"^sbatch, scancel, scontrol are not on PATH\."):
        LAUNCHERS["slurm"].check(config())
