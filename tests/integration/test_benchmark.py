"""The smallest benchmark from the command line: phantoms to table and page, with a row that fails."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.artifacts import load_provenance
from storage.documents.benchmark import BenchmarkDocument
from storage.documents.run_record import RunDocument

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TINY: dict[str, Any] = {
    "base": "benchmark/tiny",
    "phantoms": 8,
    "seeds": [1],
    "budget": {"steps": 4},
    "num_volumes": 4,
    "view": {"size": 16, "edge": 64},
    "evaluate": {"extractor": "random", "num_references": 0, "num_shown": 1, "metrics": {"wasserstein": None}},
}
_SMALL = {"local": {"settings": {"preset": "XS/10/0"}, "batch_size": 2, "num_threads": 1}}
_ALONE = {"local": _SMALL["local"] | {"family": "local-alone"}}
_BOTH = _SMALL | {"global": {"settings": {"preset": "XS/10/1"}, "batch_size": 2, "num_threads": 1}}


def tiny(root: Path, **rows: Any) -> Path:
    """A benchmark of these rows alone, of prdit's names in benchmark/tiny or others."""
    from flows.benchmark_config import load_benchmark

    left_out = dict.fromkeys(load_benchmark("benchmark/tiny").rows)
    places = {"workdir": str(root / "work"), "store": str(root / "store")}
    path = root / "mine.yaml"
    path.write_text(yaml.safe_dump({**TINY, **places, "rows": {**left_out, **rows}}))
    return path


def rows() -> dict[str, Any]:
    samplers = {"published": {"num_steps": 4, "schedule": "even"}, "few": {"num_steps": 2}}
    return {
        "prdit": {"overrides": {"recipe": _BOTH}, "samplers": samplers},
        "prdit-local": {
            "overrides": {"recipe": {**_ALONE, "global": {"enabled": False}}},
            "samplers": {"published": {"num_steps": 2, "schedule": "even"}},
        },
        "wild": {
            "title": "A rate far too high",
            "configuration": "benchmark/tiny-prdit",
            "overrides": {"recipe": {"local": _ALONE["local"] | {"lr": 1e30}, "global": {"enabled": False}}},
            "samplers": {"published": {"num_steps": 2}},
        },
    }


def prdit(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PREFECT_HOME": str(root / "prefect")}
    command = [sys.executable, "-c", "from flows.cli import main; main()", "benchmark", *arguments, "--json"]
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=500, check=False)


def last_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def result(root: Path) -> dict[str, Any]:
    done = prdit(root, str(tiny(root, **rows())))
    assert done.returncode == 1, done.stderr[-3000:]
    [folder] = (root / "work" / "benchmark").iterdir()
    return last_line(done) | {"folder": str(folder)}


@pytest.fixture(scope="module")
def document(result: dict[str, Any]) -> BenchmarkDocument:
    return BenchmarkDocument.load(Path(result["folder"]))


def test_every_line_has_figures_and_costs(document: BenchmarkDocument) -> None:
    assert [(line.row, line.sampler) for line in document.lines] == [
        ("prdit", "published"),
        ("prdit", "few"),
        ("prdit-local", "published"),
        ("wild", "published"),
    ]
    assert (document.n_real, document.n_train, document.volume_size, document.voxel_mm) == (8, 6, 16, 16.0)
    first, few, local = (line.results[0].figures for line in document.lines[:3])
    assert (first["evaluations"], few["evaluations"], local["evaluations"]) == (4, 2, 2)
    # all trainings of a row share its budget of 4 steps: 4 · 1/3 and 4 · 2/3 rounded, in batches of 2
    assert document.lines[0].results[0].steps == {"local": 1, "global": 3}
    assert (first["volumes_seen"], local["volumes_seen"]) == (8.0, 8.0)
    assert document.lines[2].results[0].steps == {"local": 4}
    for figures in (first, few, local):
        for name in ("fid", "kid", "mmd", "training_seconds", "sampling_seconds", "peak_memory"):
            assert (figures[name] or 0) > 0, name
    assert first["parameters"] > local["parameters"]
    assert (document.floor["fid"] or 0) > 0
    assert first["fid"] != few["fid"]


def test_both_samplers_draw_from_one_training(document: BenchmarkDocument) -> None:
    samples = [load_provenance(line.results[0].samples).inputs["checkpoint"] for line in document.lines[:3]]
    assert samples[0].digest == samples[1].digest != samples[2].digest


def test_seconds_are_those_of_the_trainings(document: BenchmarkDocument, root: Path) -> None:
    records = [RunDocument.read(path) for path in RunDocument.paths(root / "work")]
    assert len(records) == 4
    seconds = {}
    for record in records:
        if record.error:
            continue
        trained = [record.stages[name].ref for name in record.stages if name.startswith("train-")]
        costs = [load_provenance(ref).cost for ref in trained]
        assert all(costs)
        seconds[record.stages["evaluate"].ref.digest] = sum(cost.seconds for cost in costs if cost)
    for line in document.lines[:3]:
        found = line.results[0]
        assert found.figures["training_seconds"] == pytest.approx(seconds[found.report.digest])


def test_table_and_page_show_the_same(document: BenchmarkDocument, result: dict[str, Any]) -> None:
    folder = Path(result["folder"])
    lines = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [line["row"] for line in lines] == ["prdit", "prdit", "prdit-local", "wild", "real"]
    assert float(lines[0]["fid"]) == pytest.approx(document.lines[0].results[0].figures["fid"], rel=1e-6)
    assert (lines[0]["fid_low"], lines[0]["fid_seeds"]) == ("", "1")
    page = (folder / "compare.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)  # nothing from elsewhere
    assert str(folder.parent) not in page
    for words in (
        "PRDiT, local only",
        "few: predictor-corrector, 2 evaluations",
        "width XS",
        "41.92",
        "A100",
    ):
        assert words in page
    assert page.count('data-v="') == 4 * 19
    latex = (folder / "table.tex").read_text()
    assert latex.count(r"\\") == 1 + 4 + 1
    assert "PRDiT, local only (published)" in latex


def test_mlflow_has_one_parent_with_a_child_per_line(root: Path, result: dict[str, Any]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'work' / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'prdit-benchmark'")
    [parent] = client.search_runs(
        [experiment.experiment_id], "tags.`mlflow.source.name` = 'benchmark/compare' and params.budget != ''"
    )
    assert (parent.info.status, parent.data.params["budget"]) == ("FAILED", "4 optimiser steps")
    assert parent.data.metrics["prdit/few/evaluations"] == 2
    assert "compare.html" in {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    children = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert {run.info.run_name for run in children} == {
        "ingest",
        "split",
        "prdit published 1",
        "prdit few 1",
        "prdit-local published 1",
        "wild published 1",
    }
    [few] = [run for run in children if run.info.run_name == "prdit few 1"]
    stages = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{few.info.run_id}'")
    assert {run.data.tags["prdit.stage"] for run in stages} == {"sample", "evaluate"}


def test_a_row_that_fails_is_named_and_the_others_are_there(
    result: dict[str, Any], document: BenchmarkDocument
) -> None:
    assert "1 of 4 results are missing: wild (published, seed 1): ComputationError" in result["error"]
    assert document.lines[3].failed == {"1": "ComputationError"}
    assert document.lines[3].results == ()
    assert "seed 1: ComputationError" in (Path(result["folder"]) / "compare.html").read_text()
