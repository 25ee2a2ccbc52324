"""The launcher `dask` on real workers: two addresses of this machine are two hosts."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tasks.run.launchers import dask
from tasks.run.launchers.config import LauncherConfig
from tasks.run.launchers.launcher import LAUNCHERS, LauncherError, run_job
from tests.processes import wait_for
from tests.unit.tasks.launchers.dask_processes import Cluster, dask_cluster
from tests.unit.tasks.launchers.jobs import Toys

HOSTS = ("127.0.0.1", "127.0.0.2")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with dask_cluster(tmp_path_factory.mktemp("dask"), HOSTS) as found:
        yield found


@pytest.fixture
def toys(tmp_path: Path) -> Toys:
    return Toys(tmp_path)


def config(address: str, **values: Any) -> LauncherConfig:
    given = {"name": "dask", "nodes": 2, "timeout_s": 20, "settings": {"scheduler": address, "wait_s": 0.5}}
    return LauncherConfig.model_validate(given | values)


def test_one_node_process_per_host(cluster: Cluster, toys: Toys) -> None:
    """They meet, and the last one to hear of the stop saves with the first."""
    two = config(cluster.address)
    run_job(toys.job(10), two, lambda: None)
    assert toys.marks("done") == {"done-0": [10, 2], "done-1": [10, 2]}
    assert {shown["LOCAL_RANK"] for shown in toys.started().values()} == {"0"}
    for node in (0, 1):
        assert f"node {node} of 2" in toys.log(node)
        assert f"node {node} ends with exit code 0" in toys.log(node)
    (toys.root / "step").unlink()

    def watch() -> None:
        if toys.step() >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(toys.job(100_000, token=2), two, watch)
    assert sorted(toys.marks("saved")) == ["saved-0", "saved-1"]
    assert not toys.pids()


def test_what_cannot_run_is_refused(cluster: Cluster, toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = LAUNCHERS["dask"]
    three = (
        r"asks for 3 nodes, but the workers .* are on 2 hosts \(127\.0\.0\.1, 127\.0\.0\.2\)\. Start a worker on each"
    )
    with pytest.raises(LauncherError, match=three):
        launcher.check(config(cluster.address, nodes=3))
    launcher.check(config(cluster.address, nodes=3, min_nodes=2))
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        nobody = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(
        LauncherError, match=rf"no Dask scheduler answers at {nobody} \(launcher\.settings\.scheduler; \w+Error"
    ):
        launcher.check(config(nobody))
    monkeypatch.setattr(dask, "_num_gpus", lambda: 4)  # pickled by value
    with pytest.raises(LauncherError, match=r"ranks_per_node is 8, but host 127\.0\.0\.1 has 4 GPUs"):
        launcher.check(config(cluster.address, ranks_per_node=8))

    def lacks_the_module() -> int:
        raise ModuleNotFoundError("No module named 'tasks'")

    monkeypatch.setattr(dask, "_num_gpus", lacks_the_module)
    with pytest.raises(
        LauncherError, match=r"the Dask worker on 127\.0\.0\.1 cannot be used \(ModuleNotFoundError: No module"
    ):
        launcher.check(config(cluster.address))


def test_a_folder_that_a_host_does_not_see_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        LauncherError, match=rf"does not see {tmp_path}/gone\. Put workdir on a file system that all hosts"
    ):
        dask.run_node(str(tmp_path / "gone" / "order-1"), 1, "127.0.0.1")


def test_a_worker_that_is_killed_takes_its_ranks_with_it_and_the_others_stop(tmp_path: Path, toys: Toys) -> None:
    (tmp_path / "dask").mkdir()
    with dask_cluster(tmp_path / "dask", HOSTS) as cluster:
        killed: list[int] = []

        def watch() -> None:
            if toys.step() >= 3 and not killed:
                os.kill(cluster.workers[HOSTS[1]].pid, signal.SIGKILL)
                killed.append(toys.step())

        run_job(toys.job(100_000), config(cluster.address), watch)
    assert len(killed) == 1
    assert "has ended: ranks are stopped" in toys.log(1)
    assert not toys.marks("done")
    wait_for(lambda: not toys.pids())
