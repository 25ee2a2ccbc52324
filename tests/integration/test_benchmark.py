"""The smallest benchmark from the command line: phantoms to table and page."""

import csv
import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.artifacts import load_provenance
from storage.documents.benchmark import BenchmarkDocument
from storage.documents.run_record import RunDocument
from tasks.evaluate.formats import number

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TINY: dict[str, Any] = {
    "base": "benchmark/tiny",
    "phantoms": 8,
    "seeds": [1],
    "budget": {"steps": 4},
    "num_volumes": 4,
    "view": {"size": 16, "edge": 64},
    "evaluate": {
        "extractor": "random",
        "num_references": 0,
        "num_shown": 1,
        "metrics": {"wasserstein": None, "spectrum": None},
    },
}


def tiny(root: Path, **rows: Any) -> Path:
    """A benchmark of these rows alone, of prdit's names in benchmark/tiny or others."""
    from flows.benchmark_config import load_benchmark

    left_out = dict.fromkeys(load_benchmark("benchmark/tiny").rows)
    places = {"workdir": str(root / "work"), "store": str(root / "store")}
    path = root / "mine.yaml"
    path.write_text(yaml.safe_dump({**TINY, **places, "rows": {**left_out, **rows}}, sort_keys=False))
    return path


def rows() -> dict[str, Any]:
    small = {"settings": {"preset": "XS/10/0"}, "batch_size": 2, "num_threads": 1}
    above = {"settings": {"preset": "XS/10/1"}, "batch_size": 2, "num_threads": 1}
    alone = {"local": {**small, "family": "local-alone"}, "global": {"enabled": False}}
    of_all = {"configuration": "benchmark/tiny-prdit", "deviations": ["width XS"]}
    return {
        "both": {
            **of_all,
            "title": "PRDiT & co",
            "overrides": {"recipe": {"local": small, "global": above}},
            "shares": {"local": 1, "global": 2},
            "samplers": {"many": {"num_steps": 4}, "few": {"num_steps": 2}},
        },
        "alone": {
            **of_all,
            "title": "PRDiT, local only",
            "overrides": {"recipe": alone},
            "samplers": {"many": {"num_steps": 2}},
            "paper": "PRDiT-4L, no global DiT",
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
    assert done.returncode == 0, done.stderr[-3000:]
    return last_line(done)


@pytest.fixture(scope="module")
def document(result: dict[str, Any]) -> BenchmarkDocument:
    return BenchmarkDocument.load(Path(result["folder"]))


def test_every_line_has_figures_and_costs(document: BenchmarkDocument) -> None:
    assert [(line.row, line.sampler) for line in document.lines] == [
        ("both", "many"),
        ("both", "few"),
        ("alone", "many"),
    ]
    assert (document.n_real, document.n_train, document.volume_size, document.voxel_mm) == (8, 6, 16, 16.0)
    first, few, local = (line.results[0].figures for line in document.lines)
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
    samples = [load_provenance(line.results[0].samples).inputs["checkpoint"] for line in document.lines]
    assert samples[0].digest == samples[1].digest != samples[2].digest


def test_seconds_are_those_of_the_trainings(document: BenchmarkDocument, root: Path) -> None:
    records = [RunDocument.read(path) for path in RunDocument.paths(root / "work")]
    assert len(records) == 3
    seconds = {}
    for record in records:
        trained = [record.stages[name].ref for name in record.stages if name.startswith("train-")]
        costs = [load_provenance(ref).cost for ref in trained]
        assert all(costs)
        seconds[record.stages["evaluate"].ref.digest] = sum(cost.seconds for cost in costs if cost)
    for line in document.lines:
        found = line.results[0]
        assert found.figures["training_seconds"] == pytest.approx(seconds[found.report.digest])


def test_table_and_page_show_the_same(document: BenchmarkDocument, result: dict[str, Any]) -> None:
    folder = Path(result["folder"])
    lines = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [line["row"] for line in lines] == ["both", "both", "alone", "real"]
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
    assert page.count('data-v="') == 3 * 19
    latex = (folder / "table.tex").read_text()
    assert latex.count(r"\\") == 1 + 3 + 1
    assert "PRDiT, local only (many)" in latex


def test_the_runs_page_in_prefect_has_the_table_as_far_as_it_is(document: BenchmarkDocument, root: Path) -> None:
    with closing(sqlite3.connect(root / "prefect" / "prefect.db")) as database:
        found = database.execute("SELECT data FROM artifact WHERE key = 'prdit-benchmark' ORDER BY created").fetchall()
    tables = [json.loads(json.loads(data)) for (data,) in found]
    assert [[row["Seeds"] for row in table] for table in tables] == [["1 of 1"] * 2 + ["0 of 1"], ["1 of 1"] * 3]
    assert tables[-1][2]["3D FID"] == number(document.lines[2].results[0].figures["fid"] or 0)


def test_mlflow_has_one_parent_with_a_child_per_line(root: Path, result: dict[str, Any]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'work' / 'mlflow.db'}")
    parent = client.get_run(result["mlflow_run_id"])
    assert (parent.info.status, parent.data.params["budget"]) == ("FINISHED", "4 optimiser steps")
    assert parent.data.metrics["both/few/evaluations"] == 2
    assert "compare.html" in {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    children = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert {run.info.run_name for run in children} == {
        "ingest",
        "split",
        "both many 1",
        "both few 1",
        "alone many 1",
    }
    [few] = [run for run in children if run.info.run_name == "both few 1"]
    stages = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{few.info.run_id}'")
    assert {run.data.tags["prdit.stage"] for run in stages} == {"sample", "evaluate"}
