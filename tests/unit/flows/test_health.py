"""The health checker's decisions, on a clock of the test's own. Real hanging services: tests/drills/services.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.health import Checker, answers
from flows.services import ServiceError, Services
from tasks.run.heartbeat import VARIABLE, beat


class World:
    """Services that answer or not, and what the checker did to them."""

    def __init__(self) -> None:
        self.silent: set[str] = set()
        self.killed: list[int] = []
        self.revived: list[str] = []
        self.checker = Checker(
            120, 300, lambda name, pid: name not in self.silent, self.killed.append, self.revived.append
        )

    def at(self, now: float, **processes: tuple[str, int]) -> None:
        self.checker.check(processes, now)


def test_one_that_falls_silent_is_killed_after_the_patience_and_once() -> None:
    world = World()
    world.at(0, prefect=("RUNNING", 10), mlflow=("RUNNING", 20))
    world.silent.add("prefect")
    for now in (10, 60, 129):
        world.at(now, prefect=("RUNNING", 10), mlflow=("RUNNING", 20))
    assert world.killed == []
    world.at(130, prefect=("RUNNING", 10), mlflow=("RUNNING", 20))
    assert world.killed == [10]
    world.at(140, prefect=("STARTING", 11), mlflow=("RUNNING", 20))
    world.at(269, prefect=("STARTING", 11), mlflow=("RUNNING", 20))
    assert world.killed == [10]


def test_an_answer_in_between_starts_the_patience_anew() -> None:
    world = World()
    world.at(0, worker=("RUNNING", 10))
    for now in range(10, 1000, 10):
        world.silent = {"worker"} if now % 120 else set()
        world.at(now, worker=("RUNNING", 10))
    assert world.killed == []


def test_one_that_starts_has_longer() -> None:
    world = World()
    world.silent.add("mlflow")
    world.at(0, mlflow=("STARTING", 10))
    world.at(299, mlflow=("STARTING", 10))
    assert world.killed == []
    world.at(300, mlflow=("STARTING", 10))
    assert world.killed == [10]


def test_what_was_given_up_is_tried_again_and_again() -> None:
    world = World()
    for now in range(0, 400, 10):
        world.at(now, watcher=("FATAL", 0), listener=("BACKOFF", 0))
    assert world.revived == ["watcher"] * 3
    assert world.killed == []


def test_one_that_cannot_be_started_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    killed: list[int] = []

    def revive(name: str) -> None:
        raise ServiceError(f"{name} cannot be started")

    checker = Checker(120, 120, lambda name, pid: False, killed.append, revive)
    for now in (0, 120, 240):
        checker.check({"watcher": ("FATAL", 0), "worker": ("RUNNING", 20)}, now)
    assert killed == [20]
    assert "watcher: watcher cannot be started" in caplog.text


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return Services(state_dir=tmp_path, prefect_ui_url="http://127.0.0.1:1", mlflow_url="http://127.0.0.1:1")


def test_a_watcher_lives_by_its_file_and_not_when_it_stands_still(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert answers(services, "watcher", process.pid)  # it gives no signs at all
        sign = services.state_dir / "alive" / "watcher"
        monkeypatch.setenv(VARIABLE, str(sign))
        beat()
        assert answers(services, "watcher", process.pid)
        for wrong in (-3700, 3700):
            os.utime(sign, (time.time() + wrong,) * 2)
            assert not answers(services, "watcher", process.pid)
        beat()
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 20
        while answers(services, "watcher", process.pid):
            assert time.monotonic() < deadline
        assert not answers(services, "prefect", process.pid)
        assert answers(services, "worker", process.pid)  # it is the Prefect server that does not answer
    finally:
        process.kill()
        process.wait()
