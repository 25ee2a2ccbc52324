"""The launcher `local` and the node process: real processes, really killed."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tasks.run.launchers import local
from tasks.run.launchers.config import LauncherConfig
from tasks.run.launchers.launcher import LAUNCHERS, LauncherError, request_stop, run_job, write_order
from tasks.run.launchers.process import node_command, node_environment
from tests.processes import PATIENCE_S, alive, wait_for
from tests.unit.tasks.launchers.jobs import TOY, Toys


class Cancelled(BaseException):
    """As Prefect's TerminationSignal, no Exception."""


@pytest.fixture
def toys(tmp_path: Path) -> Toys:
    return Toys(tmp_path)


def test_two_ranks_one_is_killed_and_the_group_starts_again(toys: Toys, capfd: pytest.CaptureFixture[str]) -> None:
    """They write more than a pipe holds, and find the end of standard input, as in sbatch and pods."""
    killed: list[tuple[int, int]] = []

    def watch() -> None:
        if toys.step() >= 5 and not killed:
            pid = next(pid for pid, shown in toys.started().items() if shown["RANK"] == "1")
            os.kill(pid, signal.SIGKILL)
            killed.append((pid, toys.step()))

    job = toys.job(40, talk=10_000)
    run_job(job, LauncherConfig(ranks_per_node=2, timeout_s=20), watch)
    ((victim, step),) = killed
    started = toys.started()
    assert [shown["RANK"] for shown in started.values()].count("0") == 2
    assert len(started) == 4
    assert victim in started
    assert toys.marks("done") == {"done-0": [40, 2], "done-1": [40, 2]}
    assert 5 <= step < 40
    shown = next(iter(started.values()))
    assert (shown["WORLD_SIZE"], shown["PRDIT_WORLD"]) == ("2", "2-2")
    assert (shown["PRDIT_COLLECTIVE_TIMEOUT_S"], shown["stdin"]) == ("20.0", "empty")
    assert not toys.pids()
    log = toys.log()
    assert log.count("x") > 40 * 10_000
    assert "started again (2 of 3 restarts left" in log
    assert sorted(path.name for path in toys.work.iterdir()) == ["node-0.log"]
    assert capfd.readouterr().out == ""


def test_what_watch_raises_stops_the_ranks_which_save_first(toys: Toys) -> None:
    def watch() -> None:
        if toys.step() >= 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        run_job(toys.job(100_000), LauncherConfig(ranks_per_node=2), watch)
    saved = toys.marks("saved")
    assert sorted(saved) == ["saved-0", "saved-1"]
    assert len(set(saved.values())) == 1
    assert not toys.pids()


def test_the_stop_file_stops_the_job(toys: Toys) -> None:
    job = toys.job(100_000)

    def watch() -> None:
        if toys.step() >= 3:
            request_stop(job)

    run_job(job, LauncherConfig(ranks_per_node=1), watch)
    assert toys.marks("saved")["saved-0"] >= 3
    assert not toys.marks("done")
    assert not toys.pids()
    assert "stop file" in toys.log()


def test_a_signal_to_the_node_process_is_one_to_its_ranks(toys: Toys) -> None:
    """Such as USR1 of a batch system, which would end a process that does not expect it."""

    def watch() -> None:
        if toys.step() >= 3:
            (shown,) = toys.started().values()
            os.kill(shown["parent"], signal.SIGUSR1)

    run_job(toys.job(100_000), LauncherConfig(ranks_per_node=1), watch)
    assert toys.marks("saved")["saved-0"] >= 3
    assert "stopped by SIGUSR1" in toys.log()
    assert not toys.pids()


def test_ranks_that_always_crash_end_the_job(toys: Toys) -> None:
    broken = toys.job(0)
    broken = type(broken)("toy", "tests.unit.tasks.launchers.no_such_module", (), broken.folder, 1)
    run_job(broken, LauncherConfig(ranks_per_node=1, max_restarts=1), lambda: None)
    assert toys.log().count("No module named tests.unit.tasks.launchers.no_such_module") == 2
    assert "ended with exit code 1" in toys.log()


LAUNCH = """
    import sys
    from pathlib import Path
    from tasks.run.launchers.config import LauncherConfig
    from tasks.run.launchers.launcher import Job, run_job
    root = Path(sys.argv[1])
    job = Job("toy", sys.argv[2], (str(root), "100000"), root / "work", 1)
    run_job(job, LauncherConfig(ranks_per_node=1), lambda: None)
"""


def test_nothing_outlives_a_launcher_that_is_killed(toys: Toys) -> None:
    assert toys.work.is_dir()
    launcher = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LAUNCH), str(toys.root), TOY], env=node_environment()
    )
    try:
        wait_for(lambda: toys.step() >= 3)
        assert len(toys.pids()) == 2
        launcher.kill()
        launcher.wait()
        wait_for(lambda: not toys.pids())
    finally:
        launcher.kill()
        launcher.wait()
    assert toys.marks("saved")["saved-0"] >= 3
    assert f"the launcher (pid {launcher.pid}) has ended" in toys.log()


def test_a_node_process_that_hears_nothing_of_its_launcher_stops(toys: Toys) -> None:
    path = write_order(toys.job(100_000), LauncherConfig(ranks_per_node=1), 1)
    path.write_text(path.read_text().replace('"beat_s": 60.0', '"beat_s": 4.0'))
    beat = toys.work / "beat-1"
    beat.touch()
    command = node_command(path, node=0, host="127.0.0.1")
    node = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=node_environment())
    try:

        def counts() -> bool:
            os.utime(beat)
            return toys.step() >= 1

        wait_for(counts)
        assert node.wait(PATIENCE_S) == 143
    finally:
        node.kill()
        node.wait()
    assert "the launcher has not been heard of for 4 s" in toys.log()
    assert toys.marks("saved")["saved-0"] >= 1
    assert not toys.pids()


def test_a_new_launch_stops_what_an_older_one_left(toys: Toys) -> None:
    old = toys.job(100_000, token=1)
    path = write_order(old, LauncherConfig(ranks_per_node=1), 1)
    (toys.work / "beat-1").touch()
    command = node_command(path, node=0, host="127.0.0.1")
    node = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=node_environment())
    try:
        wait_for(lambda: toys.step() >= 2)
        orphan = next(iter(toys.started()))
        run_job(
            toys.job(toys.step(), token=2),
            LauncherConfig(ranks_per_node=1),
            lambda: wait_for(lambda: not alive(orphan)),
        )
        assert node.wait(PATIENCE_S) == 143
    finally:
        node.kill()
        node.wait()
    assert toys.marks("saved")
    assert not list(toys.work.glob("*-[12]"))


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_num_gpus", lambda: 2)
    launcher = LAUNCHERS["local"]
    with pytest.raises(LauncherError, match=r"ranks_per_node is 3, but this machine has 2 GPUs\. Set it to 2 or less"):
        launcher.check(LauncherConfig(ranks_per_node=3))
    launcher.check(LauncherConfig(ranks_per_node=2))
    assert LauncherConfig().world == (2, 2)
    monkeypatch.setattr(local, "_num_gpus", lambda: 0)
    launcher.check(LauncherConfig(ranks_per_node=3))
    assert LauncherConfig().world == (1, 1)
