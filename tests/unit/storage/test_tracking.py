"""`storage.tracking` against a real MLflow server: nothing blocks, nothing is lost, nothing is silent."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.tracking import MlflowClient

from storage.metric_stream import MetricStream
from storage.tracking import Tracker, TrackingUnavailableError


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


def start(tracker: Tracker, name: str = "run", **changes: Any) -> str:
    arguments: dict[str, Any] = {"parent": None, "source": "prdit/run", "tags": {}, "params": {}} | changes
    return tracker.start_run(name, **arguments)


def test_points_survive_a_server_that_goes_away_and_comes_back(
    server: Server, tmp_path: Path, append: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(server.uri, "outage")
    run_id = start(tracker, "training", tags={"prdit.stage": "train-local"}, params={"a.lr": 0.1})
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
    parent = start(tracker, "pipeline")
    child = start(tracker, "split", parent=parent)
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


@pytest.fixture
def local(mlflow_file: Path, tmp_path: Path) -> "Local":
    return Local(f"sqlite:///{mlflow_file}", tmp_path.name)


class Local:
    """MLflow in a file, with an experiment for one test."""

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self.experiment, self.client = uri, experiment, MlflowClient(uri)

    def __call__(self, **options: Any) -> tuple[Tracker, MlflowClient]:
        return Tracker(self.uri, self.experiment, **options), self.client


def test_an_experiment_is_for_runs_and_metrics_also_one_that_exists(local: Local) -> None:
    theirs = {"mlflow.experimentKind": "genai_development", "theirs": "kept"}
    local.client.create_experiment(local.experiment, tags=theirs)
    tracker, client = local(columns=("evaluate/fid",))
    tags = client.get_experiment(tracker.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["theirs"] == "kept"
    assert "metrics.`evaluate/fid`" in json.loads(tags["mlflow.sharedViewState.prdit"])["selectedColumns"]


def test_source_commit_note_and_user(local: Local) -> None:
    tracker, client = local(commit="0123abc")
    run = client.get_run(start(tracker, source="prdit/train-local", note="what this is", tags={"a": "b"}))
    named = {key: value for key, value in run.data.tags.items() if key != "mlflow.runName"}
    assert named == {
        "a": "b",
        "mlflow.source.name": "prdit/train-local",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "0123abc",
        "mlflow.note.content": "what this is",
    }
    assert run.info.user_id == "unknown"  # no login name leaves the machine
    without = client.get_run(start(local()[0]))
    assert "mlflow.source.git.commit" not in without.data.tags


def test_a_dataset_is_a_name_a_digest_and_facts(local: Local) -> None:
    tracker, client = local()
    run_id, digest = start(tracker), "sha256:" + "0123456789abcdef" * 4
    assert tracker.log_dataset(run_id, "CT at 1 mm", digest, context="training", facts={"num_volumes": 3})
    (entry,) = client.get_run(run_id).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.source_type) == ("CT at 1 mm", "prdit")
    assert entry.dataset.digest == "0123456789abcdef0123456789abcdef0123"  # all that MLflow keeps
    assert json.loads(entry.dataset.source) == {"digest": digest}
    assert json.loads(entry.dataset.profile) == {"digest": digest, "num_volumes": 3}
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "training")]


def model_files(folder: Path) -> list[Path]:
    folder.mkdir()
    (folder / "ema.safetensors").write_bytes(b"weights")
    (folder / "checkpoint.json").write_text("{}")
    return [folder / "ema.safetensors", folder / "checkpoint.json"]


def test_a_model_is_uploaded_once_and_named_by_every_run_that_has_it(server: Server, tmp_path: Path) -> None:
    tracker, client = Tracker(server.uri, "models"), MlflowClient(server.uri)
    files = model_files(tmp_path / "checkpoint")
    runs = [start(tracker), start(tracker)]
    what: dict[str, Any] = {"digest": "sha256:7", "step": 20, "facts": {"volume_size": 16}}
    first, second = (tracker.log_model(run_id, "checkpoint-local", files, **what) for run_id in runs)
    assert first == second
    assert first is not None
    assert tracker.find_model("sha256:7") == first
    assert tracker.find_model("sha256:8") is None
    (model,) = client.search_logged_models([tracker.experiment_id])
    assert (model.name, model.status, model.source_run_id) == ("checkpoint-local", "READY", runs[0])
    assert (model.params, model.tags["prdit.digest"]) == ({"volume_size": "16"}, "sha256:7")
    for run_id in runs:
        assert [(m.model_id, m.step) for m in client.get_run(run_id).outputs.model_outputs] == [(first, 20)]
    history = json.loads(client.get_run(runs[1]).data.tags["mlflow.log-model.history"])
    assert [(entry["artifact_path"], list(entry["flavors"])) for entry in history] == [
        ("checkpoint.json", ["checkpoint-local"])
    ]
    assert "mlflow.log-model.history" not in client.get_run(runs[0]).data.tags
    tracker.log_model_input(runs[0], first)
    tracker.log_points(runs[0], [{"step": 3, "fid": 1.5}], prefix="evaluate/", model_id=first)
    assert [m.model_id for m in client.get_run(runs[0]).inputs.model_inputs] == [first]
    measured = client.get_logged_model(first).metrics
    assert [(metric.key, metric.value, metric.step) for metric in measured] == [("evaluate/fid", 1.5, 3)]


def test_a_refused_upload_ends_no_run_and_leaves_no_ready_model(
    local: Local, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, client = local()
    run_id, files = start(tracker), model_files(tmp_path / "checkpoint")
    what: dict[str, Any] = {"digest": "sha256:7", "step": 20, "facts": {}}

    class StoreError(Exception):
        """What a client of an object store raises is not an MlflowException."""

    def refuse(*arguments: Any) -> None:
        raise StoreError("access denied")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifact", refuse)
        assert tracker.log_model(run_id, "checkpoint-local", files, **what) is None
    assert "access denied" in caplog.text
    assert [model.status for model in client.search_logged_models([tracker.experiment_id])] == ["FAILED"]
    assert client.get_run(run_id).outputs.model_outputs == []
    assert tracker.log_model(run_id, "checkpoint-local", files, **what) is not None  # the next run tries again
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"


def test_a_run_that_was_never_created_takes_nothing(local: Local, tmp_path: Path) -> None:
    tracker, client = local()
    files = model_files(tmp_path / "checkpoint")
    assert tracker.log_model("", "checkpoint-local", files, digest="sha256:7", step=1, facts={}) is None
    assert not tracker.log_text("", "text", "name.txt")
    assert client.search_logged_models([tracker.experiment_id]) == []
