"""A Dask scheduler that is named: one that does not answer, is lost, or has no worker is said in words."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flows.config import load_config
from storage.errors import ConfigError
from tasks.run import clusters
from tasks.run.clusters import SchedulerError
from tasks.run.fanout import Pool
from tasks.run.runners import Address

Start = Callable[..., subprocess.Popen[str]]


def short(number: int) -> int:
    time.sleep(0.1)
    return number


def kills_its_worker_once(folder: str) -> str:
    """End the Dask worker beside whose process this runs, and go on."""
    if not list(Path(folder).iterdir()):
        (Path(folder) / "killed").touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(3600)
    return folder


class StartsWorkers(logging.Handler):
    """Starts a worker when a warning says that there is none."""

    def __init__(self, start: Start, address: str) -> None:
        super().__init__()
        self.start, self.address = start, address
        self.started: list[subprocess.Popen[str]] = []
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
        if all(process.poll() is not None for process in self.started):
            self.started.append(worker(self.start, self.address))


@pytest.fixture
def start(repository: Path) -> Iterator[Start]:
    """Starts `dask <words>`; all of them end with the test."""
    with ExitStack() as stack:

        def started(*words: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "dask", *words]
            environment = {**os.environ, "PYTHONPATH": str(repository)}
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield started


def scheduler(start: Start) -> tuple[subprocess.Popen[str], str]:
    process = start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show")
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"Scheduler at:\s+(tcp://\S+)", line):
            return process, found[1]
    raise AssertionError("the scheduler did not start")


def worker(start: Start, address: str) -> subprocess.Popen[str]:
    return start("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")


@pytest.mark.parametrize(
    "address",
    ["foo", "", "tcp://127.0.0.1", "http://127.0.0.1:1", "127.0.0.1:99999", "tcp://127.0.0.1:abc", "tcp://[::1"],
)
def test_what_is_no_address_is_wrong_configuration(address: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"\n  runner: scheduler is {re.escape(repr(address))}; expected the address"
    ):
        load_config("tiny", {"runner": {"name": "address", "scheduler": address}})


@pytest.mark.parametrize("says", [None, b"", b"HTTP/1.0 400 Bad Request\r\n\r\n"])
def test_nobody_answers_or_a_stranger(says: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "_CONNECT_S", 1.0)
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        if says is None:
            server.close()
        elif says:
            threading.Thread(target=lambda: server.accept()[0].sendall(says), daemon=True).start()
        pool = stack.enter_context(Pool(Address(address)))
        with pytest.raises(
            SchedulerError, match=rf"^no Dask scheduler answers at {address} \(runner\.scheduler; \w+Error"
        ):
            list(pool.map(short, range(3), few=0))


def test_a_scheduler_that_is_lost(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    process, address = scheduler(start)
    worker(start, address)
    done: list[int] = []

    def lose_it() -> None:
        with Pool(Address(address)) as pool:
            for item, _ in pool.map(short, range(1000), few=0):
                done.append(item)
                if len(done) == 3:
                    process.kill()

    with pytest.raises(SchedulerError) as caught:
        lose_it()
    assert str(caught.value).startswith(f"the Dask scheduler at {address} (runner address) was lost")
    assert "What is committed stays" in str(caught.value)
    assert 3 <= len(done) < 20
    assert "Traceback" not in capfd.readouterr().err


def test_waiting_for_a_worker_is_said(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the beginning, and when the last worker was killed; what comes later takes the work."""
    monkeypatch.setattr(clusters, "_LOOK_S", 0.3)
    _, address = scheduler(start)
    handler = StartsWorkers(start, address)
    logging.getLogger("prdit.fanout").addHandler(handler)
    try:
        with Pool(Address(address)) as pool:
            results = list(pool.map(kills_its_worker_once, [str(tmp_path)], few=0))
    finally:
        logging.getLogger("prdit.fanout").removeHandler(handler)
    assert results == [(str(tmp_path), str(tmp_path))]
    assert len(handler.started) == 2
    assert {*handler.said} == {
        f"no worker is connected to the Dask scheduler at {address}, waiting; start some: dask worker {address} --nthreads 1"
    }
