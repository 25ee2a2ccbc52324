"""The MLflow door against a real MLflow server: nothing blocks, nothing is lost, nothing is silent."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from storage.metric_stream import MetricStream
from storage.tracking import Tracker, TrackingUnavailableError, flatten


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A real MLflow server that can be stopped and started again on its port."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.root / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self.root / "artifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.root / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                assert time.monotonic() < deadline, (self.root / "server.log").read_text()[-2000:]
                time.sleep(0.3)

    def stop(self) -> None:
        if self.process is None:
            return
        family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for process in family:
            process.kill()
        self.process.wait(30)
        psutil.wait_procs(family, 30)
        self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def append(tmp_path: Path) -> Callable[[int], None]:
    def write(step: int) -> None:
        with (tmp_path / "metrics.jsonl").open("a") as stream:
            stream.write(
                json.dumps({"step": step, "time_ms": 1_700_000_000_000 + step, "train/loss": 1.0 / step}) + "\n"
            )

    return write


def history(server: Server, run_id: str, name: str = "train/loss") -> list[tuple[int, float]]:
    points = MlflowClient(server.uri).get_metric_history(run_id, name)
    return sorted((point.step, point.value) for point in points)


def test_points_survive_a_server_that_goes_away_and_comes_back(
    server: Server, tmp_path: Path, append: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(server.uri, "outage")
    run_id = tracker.start_run("training", parent=None, tags={"prdit.stage": "train-local"}, params={"a": {"lr": 0.1}})
    stream = MetricStream(tmp_path / "metrics.jsonl", tracker, run_id)
    append(1)
    stream.poll()
    assert history(server, run_id) == [(1, 1.0)]
    server.stop()
    try:
        append(2)
        began = time.monotonic()
        assert [point["step"] for point in stream.poll(final=True)] == [2]  # read, though it could not be sent
        append(3)
        stream.poll()  # inside the back-off: no request at all
        assert time.monotonic() - began < 30
        assert "does not answer" in caplog.text
        assert "did not reach MLflow" in caplog.text
    finally:
        server.start()
    stream.poll(final=True)
    assert history(server, run_id) == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    run = MlflowClient(server.uri).get_run(run_id)
    assert run.data.params == {"a.lr": "0.1"}
    assert run.data.tags["prdit.stage"] == "train-local"


def test_a_dead_server_is_refused_at_the_start_in_seconds() -> None:
    began = time.monotonic()
    with pytest.raises(TrackingUnavailableError, match="make up"):
        Tracker(f"http://127.0.0.1:{free_port()}", "nothing")
    assert time.monotonic() - began < 60


def test_child_runs_files_and_status(server: Server, tmp_path: Path) -> None:
    tracker = Tracker(server.uri, "family")
    parent = tracker.start_run("pipeline", parent=None, tags={}, params={})
    child = tracker.start_run("split", parent=parent, tags={}, params={})
    (tmp_path / "report.html").write_text("<p>report</p>")
    assert tracker.log_file(child, tmp_path / "report.html")
    assert tracker.end_run(child, "KILLED")
    client = MlflowClient(server.uri)
    found = client.search_runs([tracker.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    assert [(run.info.run_id, run.info.status) for run in found] == [(child, "KILLED")]
    assert [entry.path for entry in client.list_artifacts(child)] == ["report.html"]


def test_a_stream_reads_only_whole_lines_and_survives_a_cut_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    stream = MetricStream(path, None, "")
    assert stream.poll() == []
    path.write_text('{"step": 1}\n{"step": 2')
    assert [point["step"] for point in stream.poll()] == [1]
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert [point["step"] for point in stream.poll()] == [2]
    path.write_text('{"step": 1}\n')  # a resumed training cut it back
    assert [point["step"] for point in stream.poll()] == [1]


def test_a_stream_sees_a_replaced_file_that_has_outgrown_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    stream = MetricStream(path, None, "")
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert [point["step"] for point in stream.poll()] == [1, 2]
    cut = tmp_path / "cut"
    cut.write_text('{"step": 1}\n{"step": 2, "loss": 0.123456789}\n{"step": 3}\n')
    cut.replace(path)  # as a resumed training does, between two looks
    assert [point["step"] for point in stream.poll()] == [1, 2, 3]


def test_nested_settings_become_dotted_names() -> None:
    assert list(flatten({"a": 1, "b": {"c": {"d": 2}, "e": None}})) == [("a", 1), ("b.c.d", 2), ("b.e", None)]
