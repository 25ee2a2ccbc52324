"""What MLflow shows of a patient is replaced, in runs that ended or were deleted too; what learned from the patient is marked."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from storage.refs import Ref
from storage.registry import REFUSED
from storage.tracking import TrackingUnavailableError
from tasks.patients.made import Made
from tasks.patients.tracked import FORGOTTEN, Tracked
from tests.logs import said
from tests.mlflow_process import Server
from tests.ports import free_ports

WORDS, VOLUME = {"1.2.826.77.1", "ab" * 16}, "cd" * 16
DIGEST = "sha256:" + "1" * 64


@pytest.fixture(params=["file", pytest.param("server", marks=pytest.mark.slow)])
def uri(request: pytest.FixtureRequest, tmp_path: Path, mlflow_file: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"sqlite:///{mlflow_file}"
        return
    server = Server(tmp_path)
    server.start()
    yield server.uri
    server.stop()


def test_artifacts_are_replaced_and_runs_marked(uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    client = MlflowClient(uri)
    experiment = client.create_experiment(
        f"forget-{tmp_path.name}-{free_ports()}", (tmp_path / "artifacts").as_uri() if "sqlite" in uri else None
    )
    files = {
        "report.html": f"<p>{VOLUME}</p><img>",
        "metrics.json": f'{{"details": {{"{VOLUME}": 1, "other": 2}}}}',
        "ingest.json": '{"skipped": [{"series_uid": "1.2.826.77.1"}, {"series_uid": "1.2.3"}]}',
        "split.json": f'{{"roles": {{"train": ["{VOLUME}"]}}, "patients": {{"train": ["{"ab" * 16}", "x"]}}}}',
    }
    runs = {}
    for stage, names in {
        "evaluate": ["report.html", "metrics.json"],
        "ingest": ["ingest.json"],
        "split": ["split.json"],
    }.items():
        run = client.create_run(experiment, tags={"prdit.stage": stage}).info.run_id
        for name in names:
            client.log_text(run, files[name], name)
            client.log_text(run, files[name], f"compare/{name}")
        client.set_terminated(run)
        runs[stage] = run
    client.delete_run(runs["evaluate"])
    trained = client.create_run(experiment, tags={"prdit.stage": "train-local", "prdit.digest": DIGEST}).info.run_id
    model = client.create_logged_model(experiment, name="m", tags={"prdit.digest": DIGEST})

    record = {"format_version": 1, "kind": "checkpoint", "digest": DIGEST, "stage": "train-local", "recipe": 1}
    record |= {
        "inputs": {"split": {"kind": "split", "digest": "sha256:2"}},
        "config": {},
        "files": {},
        "created": "2026",
    }
    client.log_text(trained, json.dumps(record), "provenance.json")
    damaged = client.create_run(experiment, tags={"prdit.digest": "sha256:3"}).info.run_id
    client.log_text(damaged, '{"format_version": 1', "provenance.json")

    tracked = Tracked(uri)
    made = {one.mlflow_run_id: one for one in tracked.made({"sha256:4"}) if one.mlflow_run_id in (trained, damaged)}
    assert made == {trained: Made("checkpoint", DIGEST, "train-local", made[trained].inputs, "", "2026", "", trained)}
    assert made[trained].inputs == {"split": Ref(kind="split", uri="", digest="sha256:2")}
    assert any(f"provenance.json of MLflow run {damaged} is damaged" in message for message in said(caplog))
    changed = tracked.redact(WORDS, {VOLUME})
    assert len([name for name in changed if name.partition("/")[0] in runs.values()]) == 8
    assert tracked.redact(WORDS, {VOLUME}) == []
    assert tracked.mark({DIGEST}, "a patient was forgotten on 2026-01-01") == 1

    def text(stage: str, name: str) -> str:
        return Path(client.download_artifacts(runs[stage], name, str(tmp_path))).read_text()

    assert VOLUME not in text("evaluate", "report.html")
    assert "was forgotten" in text("evaluate", "compare/report.html")
    assert '"other": 2' in text("evaluate", "metrics.json")
    assert "1.2.826" not in text("ingest", "ingest.json")
    assert "1.2.3" in text("ingest", "ingest.json")
    split = text("split", "split.json")
    assert VOLUME in split  # says what a model was trained on
    assert "ab" * 16 not in split
    tags = client.get_run(trained).data.tags
    assert tags[FORGOTTEN] == tags[REFUSED] == "a patient was forgotten on 2026-01-01"
    assert client.get_logged_model(model.model_id).tags[REFUSED] == tags[REFUSED]


def test_a_server_that_is_not_there_is_said_before_anything_changes() -> None:
    with pytest.raises(TrackingUnavailableError, match="Nothing was changed"):
        Tracked(f"http://127.0.0.1:{free_ports()}")
