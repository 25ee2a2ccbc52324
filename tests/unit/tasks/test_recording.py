"""What MLflow is shown of a stage that ran and of one that was found, by value, in a real (file) MLflow."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from storage.artifacts import Ref, load_provenance
from storage.checkpoints import load_tensors
from storage.files import write_text_atomic
from storage.metric_stream import MetricStream
from tasks.run.stage import RunContext, Stage, StageOutcome, StageRun, run_stage
from tasks.train.spec import METRICS, training_stage
from tests.factories import make_data
from tests.processes import PATIENCE_S
from tests.unit.tasks.checkpoints import commit_checkpoint

POINTS = [
    {"step": 0, "val/loss": 0.9, "val/loss_ema": 0.95, "val/loss_t050": 0.7},
    {"step": 5, "train/loss": 0.8},
    {"step": 10, "train/loss": 0.6},
    {"step": 10, "note": "final", "val/loss": 0.5, "val/loss_ema": 0.55, "val/loss_t050": 0.4},
]
LAST = {
    "train-local/val/loss": 0.5,
    "train-local/val/loss_ema": 0.55,
    "train-local/val/loss_t050": 0.4,
    "train-local/train/loss": 0.6,
}
PARAMETERS = {"configuration": "tiny", "recipe.local.lr": 0.1, "recipe.global.lr": 0.2}
LOCAL = training_stage("local")


@pytest.fixture
def site(tmp_path: Path, mlflow_file: Path) -> "Site":
    return Site(tmp_path, mlflow_file)


class Site:
    """A store whose path would reveal who was scanned, a working directory, and MLflow in a file."""

    def __init__(self, root: Path, mlflow_file: Path) -> None:
        self.store, self.split = make_data(root / "DOE^JOHN")
        self.uri = f"sqlite:///{mlflow_file}"
        self.tracking = mlflow_file.parent
        self.context = RunContext(
            workdir=root / "work",
            tracking_uri=self.uri,
            experiment=root.name,
            tags={"prdit.config": "tiny"},
            parameters=PARAMETERS,
        )
        self.root = root

    @property
    def client(self) -> MlflowClient:
        """Of an MLflow that has all that was recorded."""
        self.context.flush()
        return MlflowClient(self.uri)

    def train(self, stage: Stage = LOCAL) -> StageOutcome:
        """A training as far as its artifact and its streamed metrics go."""

        def body(run: StageRun) -> Ref:
            lines = "".join(json.dumps(point) + "\n" for point in POINTS)
            write_text_atomic(run.directory / "work" / METRICS, lines)
            if run.tracker:
                MetricStream(run.directory / "work" / METRICS, run.tracker, run.run_id, prefix=f"{stage.name}/").poll()
            inputs = {"snapshot": self.store, "split": self.split}
            return commit_checkpoint(run.directory, "local", inputs, metrics=lines)

        inputs = {"snapshot": self.store, "split": self.split}
        return run_stage(stage, inputs=inputs, config={"lr": 0.1}, context=self.context, body=body)

    def run(self, outcome: StageOutcome) -> Run:
        return self.client.get_run(outcome.mlflow_run_id)


def without_seconds(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("seconds/")}


def test_a_found_training_shows_what_the_one_that_ran_shows(site: Site) -> None:
    ran, found = site.train(), site.train()
    assert (ran.cached, found.cached) == (False, True)
    assert ran.figures == found.figures == {name: value for name, value in LAST.items() if "_t0" not in name}
    for outcome in (ran, found):
        run = site.run(outcome)
        assert run.info.status == "FINISHED"
        assert without_seconds(run.data.metrics) == LAST
        assert run.data.metrics["seconds/train-local"] == outcome.seconds
        assert run.data.params == {"recipe.local.lr": "0.1"}
        assert run.data.tags["mlflow.source.name"] == "prdit/train-local"
        (data,) = run.inputs.dataset_inputs
        assert (data.dataset.name, [tag.value for tag in data.tags]) == ("CT at 8 mm", ["training"])
        assert site.store.digest == "sha256:" + data.dataset.digest + site.store.digest[-28:]
        facts = {"spacing_mm": 8.0, "interpolation": "linear", "num_volumes": 3, "num_patients": 3}
        assert json.loads(data.dataset.profile) == {"digest": site.store.digest, **facts}
    assert "prdit.cached_from" not in site.run(ran).data.tags
    assert site.run(found).data.tags["prdit.cached_from"] == ran.ref.path.name  # or the run, where the record has it
    curves = [
        [(p.step, p.value) for p in site.client.get_metric_history(o.mlflow_run_id, "train-local/val/loss")]
        for o in (ran, found)
    ]
    assert curves == [[(0, 0.9), (10, 0.5)]] * 2


def test_the_model_is_one_and_holds_nothing_but_safetensors_and_json(site: Site) -> None:
    ran, found = site.train(), site.train()
    (model,) = site.client.search_logged_models([site.run(ran).info.experiment_id])
    for outcome in (ran, found):
        assert [m.model_id for m in site.run(outcome).outputs.model_outputs] == [model.model_id]
        assert "checkpoint.json" in [entry.path for entry in site.client.list_artifacts(outcome.mlflow_run_id)]
    folder = Path(model.artifact_location.removeprefix("file://"))
    assert sorted(path.name for path in folder.rglob("*")) == ["checkpoint.json", "ema.safetensors"]
    sent, ours = load_tensors(folder / "ema.safetensors"), load_tensors(ran.ref.path / "ema.safetensors")
    assert sent.keys() == ours.keys()
    assert all(np.array_equal(sent[name], ours[name]) for name in ours)
    assert model.params["volume_size"] == "8"
    assert model.params["voxel_mm"] == "16.0"  # 16 voxels of 8 mm seen as 8
    assert json.loads(model.params["network"])["patch_size"] == 4


def test_samples_and_reports_name_the_model_they_come_from(site: Site) -> None:
    checkpoint = site.train().ref

    def write(name: str, text: str) -> Any:
        return lambda run: write_text_atomic(run.directory / name, text)

    def points(directory: Path) -> list[dict[str, Any]]:
        return [{"step": 0, "fid": 12.5}]

    sample, evaluate = Stage("sample", "samples", 1), Stage("evaluate", "report", 1, points=points)
    common: dict[str, Any] = {"config": {}, "context": site.context}
    samples = run_stage(sample, inputs={"checkpoint": checkpoint}, body=write("s", "s"), **common)
    inputs = {"samples": samples.ref, "snapshot": site.store, "split": site.split}
    reports = [run_stage(evaluate, inputs=inputs, body=write("r", "r"), **common) for _ in range(2)]
    (model,) = site.client.search_logged_models([site.run(samples).info.experiment_id])
    for outcome in (samples, *reports):
        assert [m.model_id for m in site.run(outcome).inputs.model_inputs] == [model.model_id]
    assert [without_seconds(site.run(report).data.metrics) for report in reports] == [{"evaluate/fid": 12.5}] * 2
    assert [report.figures for report in reports] == [{"evaluate/fid": 12.5}] * 2
    measured = site.client.get_logged_model(model.model_id).metrics
    assert [(metric.key, metric.value, metric.run_id) for metric in measured] == [
        ("evaluate/fid", 12.5, reports[0].mlflow_run_id)
    ]
    assert [tag.value for tag in site.run(reports[0]).inputs.dataset_inputs[0].tags] == ["evaluation"]


def test_a_refused_upload_ends_no_training(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: Any) -> None:
        raise RuntimeError("no space left at the other end")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifact", refuse)
        outcome = site.train()
        site.context.flush()
    assert "no space left" in caplog.text
    run = site.run(outcome)
    assert (run.info.status, without_seconds(run.data.metrics)) == ("FINISHED", LAST)
    assert run.outputs.model_outputs == []
    again = site.train()  # the next run, which finds the training, uploads its model
    assert again.cached
    assert len(site.run(again).outputs.model_outputs) == 1


def test_a_failure_is_named_without_its_message(site: Site) -> None:
    def body(run: StageRun) -> None:
        raise ValueError(f"{site.store.uri}/scan.dcm cannot be read")

    stage = Stage("split", "split", 1)
    with pytest.raises(ValueError, match="cannot be read"):
        run_stage(stage, inputs={"snapshot": site.store}, config={}, context=site.context, body=body)
    (run,) = site.client.search_runs([site.client.get_experiment_by_name(site.context.experiment).experiment_id])
    assert (run.info.status, run.data.tags["prdit.error"]) == ("FAILED", "ValueError")


STOPPED = """
import sys, time
from flows.config import load_config
from flows.console import run_context
from tasks.run.stage import Stage, run_stage

def body(run):
    print("works", flush=True)
    time.sleep(3600)

with run_context(load_config("tiny", {"workdir": sys.argv[1], "experiment": sys.argv[2]})) as context:
    run_stage(Stage("split", "split", 1), inputs={}, config={}, context=context, body=body)
"""


def test_a_command_that_gets_sigterm_closes_its_run_as_killed(site: Site) -> None:
    command = [sys.executable, "-c", STOPPED, str(site.context.workdir), site.context.experiment]
    environment = os.environ | {"MLFLOW_TRACKING_URI": site.uri}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "works\n"
        child.terminate()
        _, errors = child.communicate(timeout=PATIENCE_S)
    assert "KeyboardInterrupt" in errors  # which the command line turns into exit code 130
    (run,) = site.client.search_runs([site.client.get_experiment_by_name(site.context.experiment).experiment_id])
    assert (run.info.status, run.data.tags["prdit.error"]) == ("KILLED", "KeyboardInterrupt")


def test_no_place_is_sent(site: Site) -> None:
    ran = site.train()
    assert "DOE^JOHN" in load_provenance(ran.ref).to_bytes().decode()
    site.train()
    site.context.flush()
    kept = [path for path in site.tracking.rglob("*") if path.is_file()]
    assert {"mlflow.db", "provenance.json", "ema.safetensors"} <= {path.name for path in kept}
    for place in (b"DOE^JOHN", str(site.root).encode()):
        assert [path for path in kept if place in path.read_bytes()] == []


def test_without_tracking_there_are_figures_and_no_run(site: Site) -> None:
    site.context = site.context.model_copy(update={"tracking_uri": None})
    outcome = site.train()
    assert (outcome.mlflow_run_id, outcome.figures["train-local/val/loss"]) == ("", 0.5)
