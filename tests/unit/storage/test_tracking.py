"""`storage.tracking` against a real MLflow server: nothing blocks, nothing is lost, nothing comes twice."""

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from storage.files import write_text_atomic
from storage.locks import locked
from storage.metric_stream import MetricStream
from storage.outbox import Outbox, Sent
from storage.tracking import Tracker, TrackingUnavailableError, attach
from tests.logs import said
from tests.mlflow_process import Server
from tests.ports import free_ports
from tests.processes import PATIENCE_S, wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    return tmp_path / "tracking"


@pytest.fixture
def append(tmp_path: Path) -> Callable[[int], None]:
    def write(step: int) -> None:
        with (tmp_path / "metrics.jsonl").open("a") as stream:
            stream.write(
                json.dumps({"step": step, "time_ms": 1_700_000_000_000 + step, "train/loss": 1.0 / step}) + "\n"
            )

    return write


def history(uri: str, run_id: str, name: str = "train/loss") -> list[tuple[int, int, float]]:
    points = MlflowClient(uri).get_metric_history(run_id, name)
    return sorted((point.step, point.timestamp, point.value) for point in points)


def written(*steps: int) -> list[tuple[int, int, float]]:
    return [(step, 1_700_000_000_000 + step, 1.0 / step) for step in steps]


def start(tracker: Tracker, name: str = "run", **changes: Any) -> str:
    arguments: dict[str, Any] = {"parent": None, "source": "prdit/run", "tags": {}, "params": {}} | changes
    return tracker.start_run(name, **arguments)


def sent(tracker: Tracker, run: str) -> str:
    """The run's id on the server, once it has all that was recorded."""
    tracker.flush()
    run_id = tracker.mlflow_id(run)
    assert run_id
    return run_id


def test_points_survive_a_server_that_goes_away_and_comes_back(
    server: Server, tmp_path: Path, outbox: Path, append: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(server.uri, "outage", outbox)
    run = start(tracker, "training", tags={"prdit.stage": "train-local"}, params={"a.lr": 0.1})
    stream = MetricStream(tmp_path / "metrics.jsonl", tracker, run)
    append(1)
    stream.poll()
    run_id = sent(tracker, run)
    assert history(server.uri, run_id) == written(1)
    server.stop()
    try:
        append(2)
        began = time.monotonic()
        assert [point["step"] for point in stream.poll()] == [2]
        later = start(tracker, "sample", parent=run)
        assert tracker.mlflow_id(later) == ""
        append(3)
        stream.poll()
        assert tracker.end_run(later, "FINISHED")
        tracker.flush()
        assert (
            time.monotonic() - began < 30
        )  # a second for the id, and one for the rest; MLflow's client would try for minutes
        assert "does not answer (connection refused)" in caplog.text
        assert "MLflow does not have all of 2 runs" in caplog.text
    finally:
        server.start()
    tracker.flush()
    assert history(server.uri, run_id) == written(1, 2, 3)
    client = MlflowClient(server.uri)
    found = client.get_run(run_id)
    assert found.data.params == {"a.lr": "0.1"}
    assert found.data.tags["prdit.stage"] == "train-local"
    (child,) = client.search_runs([tracker.experiment_id], f"tags.mlflow.parentRunId = '{run_id}'")
    assert child.info.status == "FINISHED"
    assert child.info.start_time < child.info.end_time < time.time() * 1000 - 500  # when it was, not when it was sent
    assert [path.name for path in outbox.iterdir() if path.is_dir()] == [run]  # what has ended and was sent is gone


KILLED = """
import os, signal, sys
from pathlib import Path
from storage.metric_stream import MetricStream
from storage.tracking import Tracker

uri, outbox, metrics = sys.argv[1:]
tracker = Tracker(uri, "killed", Path(outbox))
run = tracker.start_run("training", parent=None, source="prdit/run", tags={}, params={"a.lr": 0.1})
stream = MetricStream(Path(metrics), tracker, run)
stream.poll()
tracker.flush()
with Path(metrics).open("a") as more:
    more.write('{"step": 3, "time_ms": 1700000000003, "train/loss": 0.25}\\n{"step": 4, "time')
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_and_a_server_that_comes_back_at_another_address(
    server: Server, tmp_path: Path, outbox: Path, append: Callable[[int], None]
) -> None:
    """The next start closes the run as KILLED with every whole point, also the one that the process had not read."""
    for step in (1, 2):
        append(step)
    command = [sys.executable, "-c", KILLED, server.uri, str(outbox), str(tmp_path / "metrics.jsonl")]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    (run,) = MlflowClient(server.uri).search_runs(
        [MlflowClient(server.uri).get_experiment_by_name("killed").experiment_id]
    )
    assert (run.info.status, history(server.uri, run.info.run_id)) == ("RUNNING", written(1, 2))
    server.stop()
    server.port = free_ports()
    server.start()
    again = Tracker(server.uri, "another", outbox)
    again.flush()
    deadline = time.monotonic() + PATIENCE_S
    while [path for path in outbox.iterdir() if path.is_dir()]:  # of another process: `flush` does not wait for it
        assert time.monotonic() < deadline, list(outbox.rglob("*"))
        time.sleep(0.05)
    run = MlflowClient(server.uri).get_run(run.info.run_id)
    assert (run.info.status, run.data.params) == ("KILLED", {"a.lr": "0.1"})
    assert history(server.uri, run.info.run_id) == [*written(1, 2), (3, 1_700_000_000_003, 0.25)]
    assert run.info.start_time < run.info.end_time < time.time() * 1000 - 500


def test_what_is_sent_a_second_time_changes_nothing(server: Server, tmp_path: Path, outbox: Path) -> None:
    """As after a kill between the server's answer and our note of it: all records of a run once more."""
    tracker, client = Tracker(server.uri, "twice", outbox), MlflowClient(server.uri)
    run, files = start(tracker, params={"a.lr": 0.1}), model_files(tmp_path / "checkpoint")
    Image.new("RGB", (4, 4)).save(tmp_path / "step-00000007.png")
    tracker.log_points(run, [{"step": n, "time_ms": 5, "loss": 0.5, "twin": 0.1 * n} for n in range(1200)])
    tracker.log_model(run, "checkpoint-local", files, digest="sha256:7", step=20, facts={})
    tracker.use_model(run, "sha256:7")
    tracker.log_dataset(run, "CT at 1 mm", "sha256:01", context="training", facts={})
    tracker.log_points(run, [{"step": 3, "time_ms": 5, "fid": 1.5}], model="sha256:7")
    tracker.log_image(run, tmp_path / "step-00000007.png", key="train-local/samples", step=7)
    run_id = sent(tracker, run)

    def shown() -> Any:
        (model,) = client.search_logged_models([tracker.experiment_id])
        assert [run.info.run_id for run in client.search_runs([tracker.experiment_id])] == [run_id]
        one = client.get_run(run_id)
        curves = [history(server.uri, run_id, name) for name in ("loss", "twin", "fid")]
        images = [entry.path for entry in client.list_artifacts(run_id, "images")]
        entities = [one.inputs.dataset_inputs, one.inputs.model_inputs, one.outputs.model_outputs, model.metrics]
        return one.data.to_dictionary(), curves, images, [[str(dict(item)) for item in items] for items in entities]

    before = shown()
    assert [len(curve) for curve in before[1]] == [1200, 1200, 1]
    assert [len(items) for items in before[3]] == [1, 1, 1, 1]
    full, small = sorted(before[2], key=len)
    assert full.startswith("images/train-local~samples+step+7+timestamp+")
    assert small.endswith("+compressed.webp")
    for name in ("checkpoint.json", "ema.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / "checkpoint" / name).read_bytes())
    Outbox(outbox).save_sent(run, Sent(num_creations=1))  # as if no answer had come, not even to the first request
    records = [record for record, _ in Outbox(outbox).records(run, 0)]
    for record in records:
        for name in record.get("files", ()):
            kept = Outbox(outbox).file(run, name)
            kept.parent.mkdir(parents=True)
            kept.write_bytes((tmp_path / kept.name).read_bytes())
    assert sent(tracker, run) == run_id
    assert shown() == before


def test_a_run_that_was_made_twice_is_one_in_the_end(server: Server, outbox: Path) -> None:
    """A request to create it got no answer, and was carried out after the second one had been."""
    tracker, client = Tracker(server.uri, "double", outbox), MlflowClient(server.uri)
    run = start(tracker)
    run_id = sent(tracker, run)
    client.create_run(tracker.experiment_id, tags={"prdit.tracking_id": run})
    Outbox(outbox).save_sent(run, replace(Outbox(outbox).sent(run), num_creations=2))
    tracker.end_run(run, "FINISHED")
    tracker.flush()
    assert [run.info.run_id for run in client.search_runs([tracker.experiment_id])] == [run_id]


def test_two_processes_never_send_at_once_and_one_sends_for_the_other(
    server: Server, outbox: Path, append: Callable[[int], None]
) -> None:
    tracker = Tracker(server.uri, "locked", outbox)
    with locked(outbox / "send.lock"):
        run = start(tracker)
        assert tracker.mlflow_id(run) == ""  # not created while another process holds the lock
    assert sent(tracker, run)


@pytest.mark.parametrize("uri", ["http://", "http:///path", "http://127.0.0.1:notaport", "http://[::1"])
def test_an_address_that_can_never_work_is_refused(uri: str, outbox: Path) -> None:
    with pytest.raises(TrackingUnavailableError, match=r"which is no address. Give one such as http://127.0.0.1:5000"):
        Tracker(uri, "nothing", outbox)
    assert not outbox.exists()


def test_an_address_where_something_else_answers_is_refused(outbox: Path) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *arguments: Any) -> None:
            pass

    other = HTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    try:
        with pytest.raises(TrackingUnavailableError, match=r"cannot record runs .*404.*unset it"):
            Tracker(f"http://127.0.0.1:{other.server_port}", "nothing", outbox)
    finally:
        other.shutdown()
        other.server_close()


def test_a_server_that_is_away_at_the_start_is_named_and_the_run_goes_to_the_next_ones(
    server: Server, outbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No server had the run, so the one of the next start gets it, at whatever address."""
    nowhere = f"http://127.0.0.1:{free_ports()}"
    began = time.monotonic()
    tracker = Tracker(nowhere, "moved", outbox)
    run = start(tracker)
    tracker.log_points(run, [{"step": 1, "loss": 0.5}])
    tracker.end_run(run, "FINISHED")
    tracker.flush()
    assert time.monotonic() - began < 30  # imports included; MLflow's client would try for minutes
    assert f"MLflow at {nowhere} does not answer" in caplog.text
    assert "correct MLFLOW_TRACKING_URI" in caplog.text
    assert tracker.experiment_id == ""
    again = Tracker(server.uri, "another", outbox)
    again.flush()
    client = MlflowClient(server.uri)
    (found,) = client.search_runs([client.get_experiment_by_name("moved").experiment_id])
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"loss": 0.5})


def test_child_runs_files_and_status(server: Server, tmp_path: Path, outbox: Path) -> None:
    tracker = Tracker(server.uri, "family", outbox)
    parent = start(tracker, "pipeline")
    child = start(tracker, "split", parent=parent)
    report = tmp_path / "report.html"
    report.write_text("<p>report</p>")
    assert tracker.log_file(child, report)
    write_text_atomic(report, "<p>of the next run</p>")  # the one of this run was kept
    assert tracker.end_run(child, "KILLED")
    parent_id = sent(tracker, parent)
    client = MlflowClient(server.uri)
    (found,) = client.search_runs([tracker.experiment_id], f"tags.mlflow.parentRunId = '{parent_id}'")
    assert (found.info.status, found.info.run_id) == ("KILLED", tracker.mlflow_id(child))  # though its records are gone
    folder = Path(client.download_artifacts(found.info.run_id, "", str(tmp_path)))
    assert (folder / "report.html").read_text() == "<p>report</p>"


def test_a_stream_reads_only_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    stream = MetricStream(path, None, "")
    assert stream.poll() == []
    path.write_text('{"step": 1}\n{"step": 2')
    assert [point["step"] for point in stream.poll()] == [1]
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste{"step": 3}\n{"step": 4}\n')
    assert [point["step"] for point in stream.poll()] == [2, 4]  # what is no point ends nobody's training


@pytest.fixture
def local(mlflow_file: Path, tmp_path: Path) -> "Local":
    return Local(f"sqlite:///{mlflow_file}", tmp_path)


class Local:
    """MLflow in a file, with an experiment and an outbox for one test."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri, self.experiment, self.outbox, self.client = uri, folder.name, folder / "tracking", MlflowClient(uri)

    def __call__(self, **options: Any) -> tuple[Tracker, MlflowClient]:
        return Tracker(self.uri, self.experiment, self.outbox, **options), self.client


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
    tracking_id = start(tracker, source="prdit/train-local", note="what this is", tags={"a": "b"})
    run = client.get_run(sent(tracker, tracking_id))
    named = {key: value for key, value in run.data.tags.items() if key != "mlflow.runName"}
    assert named == {
        "a": "b",
        "prdit.tracking_id": tracking_id,
        "mlflow.source.name": "prdit/train-local",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "0123abc",
        "mlflow.note.content": "what this is",
    }
    assert run.info.user_id == "unknown"  # no login name leaves the machine
    other = local()[0]
    without = client.get_run(sent(other, start(other)))
    assert "mlflow.source.git.commit" not in without.data.tags


def test_a_dataset_is_a_name_a_digest_and_facts(local: Local) -> None:
    tracker, client = local()
    run, digest = start(tracker), "sha256:" + "0123456789abcdef" * 4
    assert tracker.log_dataset(run, "CT at 1 mm", digest, context="training", facts={"num_volumes": 3})
    (entry,) = client.get_run(sent(tracker, run)).inputs.dataset_inputs
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


def test_a_model_is_uploaded_once_and_named_by_every_run_that_has_it(
    server: Server, tmp_path: Path, outbox: Path
) -> None:
    tracker, client = Tracker(server.uri, "models", outbox), MlflowClient(server.uri)
    files = model_files(tmp_path / "checkpoint")
    runs = [start(tracker), start(tracker)]
    what: dict[str, Any] = {"digest": "sha256:7", "step": 20, "facts": {"volume_size": 16}}
    for run in runs:
        tracker.log_model(run, "checkpoint-local", files, **what)
    tracker.use_model(runs[0], "sha256:7")
    tracker.use_model(runs[0], "sha256:8")  # was not uploaded
    tracker.log_points(runs[0], [{"step": 3, "fid": 1.5}], prefix="evaluate/", model="sha256:7")
    first, second = (sent(tracker, run) for run in runs)
    (model,) = client.search_logged_models([tracker.experiment_id])
    assert (model.name, model.status, model.source_run_id) == ("checkpoint-local", "READY", first)
    assert (model.params, model.tags["prdit.digest"]) == ({"volume_size": "16"}, "sha256:7")
    for run_id in (first, second):
        assert [(m.model_id, m.step) for m in client.get_run(run_id).outputs.model_outputs] == [(model.model_id, 20)]
    history = json.loads(client.get_run(second).data.tags["mlflow.log-model.history"])
    assert [(entry["artifact_path"], list(entry["flavors"])) for entry in history] == [
        ("checkpoint.json", ["checkpoint-local"])
    ]
    assert "mlflow.log-model.history" not in client.get_run(first).data.tags
    assert [m.model_id for m in client.get_run(first).inputs.model_inputs] == [model.model_id]
    assert [(metric.key, metric.value, metric.step) for metric in model.metrics] == [("evaluate/fid", 1.5, 3)]


def test_a_process_that_ended_before_it_removed_what_was_sent(local: Local, tmp_path: Path) -> None:
    tracker, client = local()
    run = start(tracker)
    sent(tracker, run)
    shutil.copytree(local.outbox / run, tmp_path / "before")
    tracker.end_run(run, "FINISHED")
    tracker.flush()
    with (tmp_path / "before" / "records.jsonl").open("a") as records:
        records.write('{"op": "end", "status": "FINISHED", "time_ms": 1}\n')
    state = json.loads((tmp_path / "before" / "sent.json").read_text())
    state["offset"] = (tmp_path / "before" / "records.jsonl").stat().st_size
    (tmp_path / "before" / "sent.json").write_text(json.dumps(state))
    wait_for(lambda: not (local.outbox / run).exists())
    (tmp_path / "before").rename(local.outbox / run)
    sent(tracker, start(tracker))
    assert not (local.outbox / run).exists()
    assert len(client.search_runs([tracker.experiment_id])) == 2


@pytest.mark.parametrize("content", ["[]", '{"offset": ', '{"offset": "far"}'])
def test_a_run_whose_state_is_damaged_holds_no_other(
    local: Local, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    tracker, _ = local()
    run = start(tracker)
    sent(tracker, run)
    state = local.outbox / run / "sent.json"
    state.write_text(content)
    other = start(tracker)
    tracker.end_run(run, "FINISHED")
    tracker.end_run(other, "FINISHED")
    tracker.flush()
    wait_for(lambda: not (local.outbox / other).exists())
    (message,) = [text for text in said(caplog) if "damaged" in text]
    assert f"{state} is damaged: how far MLflow has this run is not known" in message


def test_a_refused_upload_ends_no_run_and_leaves_no_ready_model(
    local: Local, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, client = local()
    run, files = start(tracker), model_files(tmp_path / "checkpoint")
    what: dict[str, Any] = {"digest": "sha256:7", "step": 20, "facts": {}}

    class StoreError(Exception):
        """What a client of an object store raises is not an MlflowException."""

    def refuse(*arguments: Any) -> None:
        raise StoreError("access denied")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifact", refuse)
        assert tracker.log_model(run, "checkpoint-local", files, **what)
        assert tracker.log_points(run, [{"step": 1, "loss": 0.5}])
        run_id = sent(tracker, run)
    assert "MLflow refuses a file of a run (access denied)" in caplog.text
    (aside,) = map(json.loads, (local.outbox / "refused.jsonl").read_text().splitlines())
    assert (aside["run"], aside["reason"], aside["record"]["op"]) == (run, "access denied", "model")
    assert [model.status for model in client.search_logged_models([tracker.experiment_id])] == ["FAILED"]
    found = client.get_run(run_id)
    assert (found.outputs.model_outputs, found.data.metrics) == ([], {"loss": 0.5})
    tracker.log_model(run, "checkpoint-local", files, **what)  # the next run tries again
    tracker.flush()
    assert len(client.get_run(run_id).outputs.model_outputs) == 1
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"


def test_a_record_that_mlflow_never_takes_holds_back_nothing(local: Local, caplog: pytest.LogCaptureFixture) -> None:
    tracker, client = local()
    run = start(tracker)
    tracker.log_points(run, [{"step": 1, "loss": 0.5, "too long" * 40: 0.5}, {"step": 2, "loss": 0.25}])
    tracker.log_points(run, [{"step": 1, "loss": 0.5}], prefix="train/")
    run_id = sent(tracker, run)
    assert client.get_run(run_id).data.metrics == {"loss": 0.25, "train/loss": 0.5}
    assert [point.step for point in client.get_metric_history(run_id, "loss")] == [1, 2]
    assert "MLflow refuses a record (points) of a run" in caplog.text


def test_a_full_disk_under_the_outbox_ends_no_run(local: Local, caplog: pytest.LogCaptureFixture) -> None:
    tracker, client = local()
    run = start(tracker)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    records = next(local.outbox.glob("*/records.jsonl"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (records.stat().st_size + 10, limit[1]))  # there is room for half a line
    try:
        assert not tracker.log_points(run, [{"step": 1, "loss": 0.5}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "a run cannot be recorded for MLflow" in caplog.text
    assert tracker.log_points(run, [{"step": 2, "loss": 0.25}])
    assert client.get_run(sent(tracker, run)).data.metrics == {"loss": 0.25}


def test_files_are_put_on_a_run_that_has_ended(server: Server, tmp_path: Path, outbox: Path) -> None:
    tracker = Tracker(server.uri, "ended", outbox)
    run = start(tracker)
    tracker.end_run(run, "FINISHED")
    run_id = sent(tracker, run)
    page = tmp_path / "compare.html"
    for text in ("first", "second"):  # again: in its place
        page.write_text(text)
        assert attach(server.uri, run_id, [page], folder="compare/x", tags={"prdit.compare": text}) == ""
    client = MlflowClient(server.uri)
    assert [file.path for file in client.list_artifacts(run_id, "compare/x")] == ["compare/x/compare.html"]
    assert Path(client.download_artifacts(run_id, "compare/x/compare.html", str(tmp_path))).read_text() == "second"
    found = client.get_run(run_id)
    assert (found.info.status, found.data.tags["prdit.compare"]) == ("FINISHED", "second")
    assert "not found" in attach(server.uri, "0" * 32, [page], folder="compare", tags={})
    away = f"http://127.0.0.1:{free_ports()}"
    assert "refused" in attach(away, "1" * 32, [page], folder="compare", tags={"prdit.compare": "third"})
