"""Doctor's findings on launchers and work folders."""

import json
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.config import load_config
from flows.doctor_cluster import check_cluster, check_launcher, check_shared
from tasks.run import clusters
from tasks.run.launchers import local
from tasks.run.launchers.config import LauncherConfig

Partition = namedtuple("Partition", ["mountpoint", "fstype"])


def config(**values: Any) -> LauncherConfig:
    return LauncherConfig.model_validate(values)


def test_what_could_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_num_gpus", lambda: 0)
    finding = check_launcher(config())
    assert (finding.name, finding.status, finding.detail) == ("launcher local", "ok", "could start 1 rank on 1 node")
    monkeypatch.setattr(local, "_num_gpus", lambda: 4)
    assert check_launcher(config()).detail == "could start 4 ranks on 1 node"
    finding = check_launcher(config(ranks_per_node=8))
    assert finding.status == "fail"
    assert finding.detail == "launcher.ranks_per_node is 8, but this machine has 4 GPUs."
    assert finding.remedy.startswith("Set it to 4 or less")


def test_a_program_or_a_scheduler_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = check_launcher(config(name="slurm", nodes=2))
    assert finding.status == "fail"
    assert finding.detail == "sbatch, squeue, scancel, scontrol are not on PATH."
    assert "login node" in finding.remedy
    monkeypatch.setattr(clusters, "_CONNECT_S", 0.5)
    finding = check_launcher(config(name="dask", settings={"scheduler": "tcp://127.0.0.1:1"}))
    assert finding.status == "fail"
    assert finding.detail.startswith("no Dask scheduler answers at tcp://127.0.0.1:1 (launcher.settings.scheduler; ")
    assert "dask scheduler" in finding.remedy


@pytest.mark.parametrize(("kind", "status"), [("nfs4", "ok"), ("lustre", "ok"), ("ext4", "warn"), ("tmpfs", "warn")])
def test_the_work_folder_of_several_nodes(
    kind: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [Partition("/", "xfs"), Partition(str(tmp_path), kind), Partition(f"{tmp_path}-not", "xfs")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    finding = check_shared(tmp_path / "not" / "yet")
    assert (finding.status, finding.remedy == "") == (status, status == "ok")
    assert finding.detail.startswith(f"{tmp_path} is on a file system of type {kind}")


def test_the_folder_is_asked_for_where_there_are_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.doctor_cluster.LAUNCHERS", {"slurm": SimpleNamespace(check=lambda config: None)})
    several = load_config("tiny", {"launcher": {"name": "slurm", "nodes": 4, "min_nodes": 2}})
    launcher, _, folder = check_cluster(several)
    assert (launcher.name, launcher.detail) == ("launcher slurm", "could start 2 to 4 ranks on 4 nodes")
    assert folder.name == "shared folder"
    assert len(check_cluster(load_config("tiny", {"launcher": {"ranks_per_node": 1, "name": "slurm"}}))) == 2


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "_num_gpus", lambda: 2)
    words = ["doctor", "--config", "tiny", "--set", "launcher.ranks_per_node=3", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    (finding,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "launcher local"]
    assert finding["status"] == "fail"
    done = CliRunner().invoke(app, ["doctor", "--set", "launcher.ranks_per_node=3"])
    assert done.exit_code == 1
    assert "--config" in done.stderr


def test_a_runner_that_cannot_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    loaded = load_config("tiny", {"runner": {"name": "slurm", "memory_gb": 4}})
    finding = {check.name: check for check in check_cluster(loaded)}["runner slurm"]
    assert finding.status == "fail"
    assert "sbatch" in finding.detail
    finding = {check.name: check for check in check_cluster(load_config("tiny"))}["runner local"]
    assert (finding.status, finding.detail) == ("ok", "could start")
