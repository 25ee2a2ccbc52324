"""The whole flow on small phantoms, again and again: what runs, what is found, what is made again.

The tests of this file build on each other, in order, on one working directory.
"""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from prefect.testing.utilities import prefect_test_harness
from typer.testing import CliRunner

from flows.cli import app
from flows.config import load_config
from flows.pipeline import pipeline
from flows.stages import rows
from storage.artifacts import Ref, load_provenance
from storage.files import read_json
from storage.outbox import Outbox
from storage.phantom.series import write_demo_data
from storage.snapshots import newest
from storage.volume_store import VolumeStore
from tests.ports import free_ports
from tests.retraining import trainings_here

pytestmark = pytest.mark.slow

DEFAULT = set(rows(load_config("tiny")))  # stage 3 is off unless asked for
DOWNSTREAM = {"train-global", "sample", "evaluate"}


class Story:
    """One working directory, and a source that a test may add to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = root / "source"

    def run(self, stage: str = "evaluate", **overrides: Any) -> dict[str, Any]:
        overrides = {"workdir": str(self.root / "work"), **overrides}
        return pipeline("tiny", str(self.source), str(self.root / "store"), overrides, stage)

    def ran(self, record: dict[str, Any]) -> set[str]:
        """The stages that did work in a run."""
        return {name for name, outcome in record["stages"].items() if not outcome["cached"]}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    story = Story(tmp_path_factory.mktemp("story"))
    write_demo_data(story.root / "all", num_patients=4, small=True)
    shutil.copytree(story.root / "all", story.source)
    late = sorted(path for path in story.source.iterdir() if path.is_dir())[0]
    shutil.move(late, story.root / "late")
    with prefect_test_harness(server_startup_timeout=90):
        yield story


@pytest.fixture(scope="module")
def first(story: Story) -> Iterator[dict[str, Any]]:
    """A run whose trainings are processes; those of later runs work in this one, to the same bytes."""
    record = story.run()
    with pytest.MonkeyPatch.context() as patch:
        trainings_here(patch)
        yield record


def refs(record: dict[str, Any]) -> dict[str, Ref]:
    return {name: Ref.model_validate(outcome["ref"]) for name, outcome in record["stages"].items()}


def test_first_run_makes_everything(story: Story, first: dict[str, Any]) -> None:
    assert story.ran(first) == DEFAULT
    assert first["error"] is None
    assert Path(first["report"]).read_text().lstrip().lower().startswith("<!doctype html>")
    assert read_json(story.root / "work" / "runs" / "latest.json") == first
    chain = load_provenance(refs(first)["evaluate"]).inputs
    assert chain["samples"].digest == refs(first)["sample"].digest
    assert chain["snapshot"] == newest(VolumeStore.open(story.root / "store"))


def test_unchanged_runs_no_stage_in_under_a_minute_of_processor_time(story: Story, first: dict[str, Any]) -> None:
    began = time.process_time()
    again = story.run()
    assert time.process_time() - began < 60
    assert story.ran(again) == set()
    assert refs(again) == refs(first)


def test_runs_compare_in_mlflow_by_the_same_names(story: Story, first: dict[str, Any]) -> None:
    """A run, the same again (all found), and one with another setting: what their MLflow runs have in common."""
    again, changed = story.run(), story.run(sample={"seed": 7})
    client = MlflowClient(first["mlflow_uri"])
    parents = [client.get_run(record["mlflow_run_id"]) for record in (first, again, changed)]
    metrics = [without_seconds(parent) for parent in parents]
    assert metrics[0] == metrics[1]
    assert metrics[0].keys() == metrics[2].keys()
    assert {
        "evaluate/fid_random_features",
        "train-local/val/loss_ema",
        "gate/local_loss_ratio",
        "split/val_patients",
    } < metrics[0].keys()
    assert {f"seconds/{stage}" for stage in DEFAULT} < parents[0].data.metrics.keys()
    differ = {key for key, value in parents[0].data.params.items() if parents[2].data.params[key] != value}
    assert parents[0].data.params == parents[1].data.params
    assert differ == {"sample.seed"}
    for stage in DEFAULT:
        runs = [client.get_run(record["stages"][stage]["mlflow_run_id"]) for record in (first, again)]
        assert without_seconds(runs[0]) == without_seconds(runs[1])
        shown = {name: value for name, value in metrics[0].items() if name.startswith(stage + "/")}
        assert shown
        assert shown.items() <= without_seconds(runs[0]).items()
        assert runs[0].data.params.items() <= parents[0].data.params.items()
        assert runs[1].data.tags["prdit.cached_from"] == runs[0].info.run_id
    made = [[model.model_id for model in parent.outputs.model_outputs] for parent in parents]
    assert made[0] == made[1] == made[2]
    assert client.get_logged_model(made[0][0]).tags["prdit.digest"] == refs(first)["train-global"].digest
    assert [parent.inputs.dataset_inputs[0].dataset.name for parent in parents] == ["CT at 4 mm"] * 3


def test_runs_are_put_side_by_side_and_mlflow_has_the_page(story: Story, first: dict[str, Any]) -> None:
    changed = story.run(sample={"seed": 7})
    ids = [first["mlflow_run_id"], changed["mlflow_run_id"]]
    shown = CliRunner().invoke(app, ["compare", ids[0], "latest", "--workdir", str(story.root / "work"), "--json"])
    assert shown.exit_code == 0, shown.stderr
    value = json.loads(shown.stdout.splitlines()[-1])
    assert [(row["stage"], row["key"], row["values"]) for row in value["settings"]] == [
        ("sample", "seed", {"A": 42, "B": 7})
    ]
    figures = {figure["name"]: figure for figure in value["figures"]}
    for name in ("fid_random_features", "hu_mean_generated"):
        here, there = (read_json(Path(run["metrics"]))["figures"][name]["value"] for run in (first, changed))
        assert figures[name]["differences"][0]["value"] == pytest.approx(there - here)
    assert "share no seed" in " ".join(value["notes"])
    assert value["in_mlflow"] == ids
    client = MlflowClient(first["mlflow_uri"])
    for run_id in ids:
        [folder] = client.list_artifacts(run_id, "compare")
        pages = {Path(file.path).name for file in client.list_artifacts(run_id, folder.path)}
        assert pages == {"compare.html", "comparison.json"}
        assert client.get_run(run_id).data.tags["prdit.compare"].startswith("prdit compare 2")


def without_seconds(run: Run) -> dict[str, float]:
    return {name: value for name, value in run.data.metrics.items() if not name.startswith("seconds/")}


def test_what_mlflow_has_names_no_place(story: Story, first: dict[str, Any]) -> None:
    """Neither the database nor an uploaded file: paths may reveal who was scanned."""
    kept = [story.root / "work" / "mlflow.db", *(story.root / "work" / "mlflow-artifacts").rglob("*")]
    names = {path.name for path in kept}
    assert {
        "compare.html",
        "comparison.json",
        "config.yaml",
        "report.html",
        "metrics.json",
        "ingest.json",
        "provenance.json",
        "samples.json",
    } <= names
    assert {"model-card.md", "dataset-card.md"} <= names
    for path in kept:
        content = path.read_bytes() if path.is_file() else b""
        for place in (story.source, story.root / "store"):
            assert str(place).encode() not in content, (path, place)
        if path.name != "mlflow.db":  # which says where its artifacts lie: below the working directory
            assert str(story.root).encode() not in content, path


def test_the_configuration_a_run_leaves_repeats_it(story: Story, first: dict[str, Any]) -> None:
    left = sorted((story.root / "work" / "runs").glob("*/config.yaml"))[0]
    again = pipeline(str(left))
    assert refs(again) == refs(first)
    assert again["config_digest"] == first["config_digest"] == load_config("tiny").digest()


def test_another_learning_rate_trains_and_what_follows(story: Story, first: dict[str, Any]) -> None:
    changed = story.run(recipe={"global": {"lr": 5e-4}})
    assert story.ran(changed) == DOWNSTREAM
    assert refs(changed)["train-global"].digest != refs(first)["train-global"].digest


def test_a_flipped_byte_or_a_lost_checkpoint_trains_again(
    story: Story, first: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    weights = refs(first)["train-global"].path / "ema.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    again = story.run()
    # the retrained checkpoint is the same bytes, so what follows is found
    assert story.ran(again) == {"train-global"}
    assert refs(again) == refs(first)
    assert "made again" in caplog.text
    (refs(first)["train-local"].path / "model.safetensors").unlink()
    assert story.ran(story.run()) == {"train-local"}


def test_runtime_settings_do_not_run_anything(story: Story, first: dict[str, Any]) -> None:
    recipe = {"local": {"log_every": 1}, "global": {"cache_mb": 0}}
    assert story.ran(story.run(runner={"num_workers": 1}, sample={"batch_size": 1}, recipe=recipe)) == set()


def test_a_run_up_to_a_stage_finds_what_has_run(story: Story, first: dict[str, Any]) -> None:
    record = story.run("train-local")
    assert list(record["stages"]) == ["ingest", "split", "train-local"]
    assert story.ran(record) == set()
    assert {name: refs(first)[name] for name in record["stages"]} == refs(record)
    assert (record["report"], record["config_digest"]) == (None, first["config_digest"])
    assert set(record["gates"]) == {"local_loss_ratio", "local_val_loss_ema"}
    run = MlflowClient(record["mlflow_uri"]).get_run(record["mlflow_run_id"])
    assert run.data.tags["mlflow.source.name"] == "prdit/train-local"


def test_a_run_needs_no_tracking_server(
    story: Story, first: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it would have shown waits in the working directory; the record says so by empty ids."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_ports()}")
    record = story.run("split", workdir=str(tmp_path))
    assert list(record["stages"]) == ["ingest", "split"]
    assert (record["error"], record["mlflow_run_id"], record["mlflow_experiment_id"]) == (None, "", "")
    assert {stage["mlflow_run_id"] for stage in record["stages"].values()} == {""}
    waiting = Outbox(tmp_path / "tracking")
    ops = [[record["op"] for record, _ in waiting.records(run, 0)] for run in waiting.runs()]
    assert [(run[0], run[-1], "points" in run, "dataset" in run) for run in ops] == [("create", "end", True, True)] * 3


def test_the_refiner_is_a_switch_away(story: Story, first: dict[str, Any]) -> None:
    """By its setting, or by naming its stage."""
    trained = story.run("train-refiner")
    assert story.ran(trained) == {"train-refiner"}
    refined = story.run(recipe={"refiner": {"enabled": True}})
    assert story.ran(refined) == {"sample", "evaluate"}
    assert refs(refined)["train-refiner"] == refs(trained)["train-refiner"]
    assert load_provenance(refs(refined)["train-refiner"]).inputs["start"].digest == refs(first)["train-global"].digest
    sizes = [read_json(Path(record["metrics"]))["volume_size"] for record in (first, refined)]
    assert sizes == [16, 32]
    page = Path(refined["report"]).read_text()
    assert "weights of a refiner after 10 steps" in page
    assert "Checkpoint: refiner" in page


def test_flow_matching_is_a_process_away(story: Story, first: dict[str, Any]) -> None:
    """Another process of the first training is that of the second, and samples are drawn by it."""
    record = story.run(recipe={"local": {"process": "flow"}}, sample={"sampler": "euler"})
    assert story.ran(record) == {"train-local", *DOWNSTREAM}
    processes = [
        read_json(refs(record)[name].path / "checkpoint.json")["process"] for name in ("train-local", "train-global")
    ]
    assert processes == [{"name": "flow", "noise_std": 1.0, "num_steps": 1000, "prediction": "velocity"}] * 2


def test_a_series_added_is_the_only_one_ingested(story: Story, first: dict[str, Any]) -> None:
    before = VolumeStore.open(story.root / "store").volume_ids()
    shutil.move(story.root / "late", story.source / "late")
    record = story.run("train-local")
    assert story.ran(record) == {"ingest", "split", "train-local"}
    verdicts = sorted((story.root / "work" / "ingest").glob("*/ingest.json"), key=lambda path: path.stat().st_mtime)[-1]
    report = read_json(verdicts)
    assert len(report["committed"]) == 1
    assert sorted(entry["volume_id"] for entry in report["unchanged"]) == before
    roles = [read_json(refs(run)["split"].path / "split.json")["roles"] for run in (first, record)]
    for role in ("train", "val"):
        assert set(roles[0][role]) <= set(roles[1][role])  # a patient's role never changes
