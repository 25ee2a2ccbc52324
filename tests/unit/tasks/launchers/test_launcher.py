"""Configuration, the table of launchers, and what a rank is told."""

import importlib.metadata
import os
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prdit_models import registry
from prdit_models.registry import Registry
from tasks.run.launchers import config as module
from tasks.run.launchers import launcher
from tasks.run.launchers.config import LauncherConfig
from tasks.run.launchers.dask import DaskSettings
from tasks.run.launchers.launcher import LAUNCHERS, Job, LauncherError, run_job
from tasks.run.launchers.local import LocalSettings
from tasks.run.launchers.rank import Rank, parent_pid, this_rank
from tasks.run.launchers.slurm import SlurmSettings


class Elsewhere:
    """An outsider's launcher: it runs nothing, and tells what it was asked."""

    settings = LocalSettings
    asked: tuple[Job, LauncherConfig] | None = None
    beats: int = 0

    def ranks(self, config: LauncherConfig) -> int:
        return 3

    def check(self, config: LauncherConfig) -> None:
        raise LauncherError("the moon is down.", "Wait.")

    def run(self, job: Job, config: LauncherConfig, watch: Callable[[], None]) -> None:
        self.asked = (job, config)
        self.beats = len(list(job.folder.glob("beat-7")))
        watch()


ELSEWHERE = Elsewhere()


def test_an_outsiders_launcher_is_one_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    point = EntryPoint("moon", f"{__name__}:ELSEWHERE", "prdit.launchers")
    assert registry.entry_points is importlib.metadata.entry_points
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "prdit.launchers" else [])
    table: Registry[Any] = Registry("launcher", "prdit.launchers", LAUNCHERS._rows, LAUNCHERS._needs)
    for place in (launcher, module):
        monkeypatch.setattr(place, "LAUNCHERS", table)
    config = LauncherConfig(name="moon", nodes=2)
    assert config.world == (6, 6)
    watched: list[int] = []
    job = Job("toy", "toy", (), tmp_path, 7)
    run_job(job, config, lambda: watched.append(1))
    assert ELSEWHERE.asked == (job, config)
    assert (watched, ELSEWHERE.beats) == ([1], 1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(LauncherError, match=r"^the moon is down\. Wait\.$"):
        table["moon"].check(config)


def test_settings_are_those_of_the_launcher() -> None:
    assert LauncherConfig().settings == LocalSettings()
    dask = LauncherConfig(name="dask", nodes=2, settings={"scheduler": "tcp://10.0.0.1:8786"})
    assert dask.settings == DaskSettings("tcp://10.0.0.1:8786")
    assert dask.world == (2, 2)
    slurm = LauncherConfig.model_validate(
        {
            "name": "slurm",
            "nodes": 4,
            "min_nodes": 2,
            "settings": {"gpus_per_node": 8, "options": ["--constraint=a100"]},
        }
    )
    assert slurm.settings == SlurmSettings(gpus_per_node=8, options=("--constraint=a100",))
    assert slurm.world == (16, 32)
    assert LauncherConfig.model_validate(slurm.model_dump(mode="json")) == slurm


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "moon"}, r"Unknown launcher 'moon'; there are local, dask, slurm"),
        ({"name": "dask"}, r"settings\.scheduler: Field required|settings\.scheduler: .*required"),
        ({"name": "dask", "settings": {"scheduler": "10.0.0.1"}}, r"scheduler is '10\.0\.0\.1'; expected the address"),
        ({"name": "dask", "settings": {"scheduler": "tcp://a:b"}}, r"scheduler is 'tcp://a:b'; expected the address"),
        ({"name": "slurm", "settings": {"queue": "p"}}, r"settings\.queue: unknown key\. Known here: .*partition"),
        ({"name": "slurm", "settings": {"options": ["-p", "x"]}}, r"options has 'x'; expected options of sbatch"),
        ({"name": "slurm", "settings": {"gpus_per_node": -1}}, r"gpus_per_node is -1"),
        ({"nodes": 2}, r"nodes is 2, but the launcher local uses this machine alone"),
        ({"name": "slurm", "nodes": 2, "min_nodes": 3}, r"min_nodes is 3, more than nodes \(2\)"),
        ({"settings": {"gpus": 1}}, r"settings\.gpus: unknown key"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LauncherConfig.model_validate(values)


def environment(world: int, asked: str) -> dict[str, str]:
    values = {"RANK": "1", "WORLD_SIZE": str(world), "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    return values | {"PRDIT_WORLD": asked, "PRDIT_COLLECTIVE_TIMEOUT_S": "60.0"}


def test_a_rank_knows_its_place_and_refuses_another_world() -> None:
    assert this_rank(environment(4, "4-4")) == Rank(1, 4, 1, 2, 60.0)
    assert this_rank(environment(4, "2-8")).world == 4
    with pytest.raises(
        LauncherError, match=r"^the world has 2 ranks, but 4 were asked for \(launcher\.nodes, min_nodes"
    ):
        this_rank(environment(2, "4-4"))
    with pytest.raises(LauncherError, match=r"^the world has 1 rank, but 2 to 8 were asked for"):
        this_rank(environment(1, "2-8"))


def test_a_rank_knows_its_node_process_also_when_that_has_ended() -> None:
    assert parent_pid({"PRDIT_NODE_PID": "7"}) == 7
    assert parent_pid({}) == os.getppid()
