"""The check itself, as a machine without our environment runs it: on the CPU, with only importable what it may import."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from prdit_models.plan import count_flops, of_network
from tests.gpu_check.__main__ import main
from tests.gpu_check.parts import PARTS, Part
from tests.gpu_check.setting import TINY_CONFIG
from tests.parity.own.cases import CASES

# Everything importable but the standard library is hidden, except what is allowed and our own two packages.
SITE_CUSTOMIZE = """
import json, os, sys

ALLOWED = set(json.loads(os.environ["GPU_CHECK_ALLOWED"])) | set(sys.stdlib_module_names)


class Hidden:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        seen = name.partition(".")[0] in ALLOWED or name.startswith("_sysconfigdata")  # of the interpreter's own build
        return self.finder.find_spec(name, path, target) if seen else None


sys.meta_path[:] = [finder if finder in (sys.meta_path[0], sys.meta_path[1]) else Hidden(finder) for finder in sys.meta_path]
"""
MAY_IMPORT = ("torch", "numpy", "scipy", "safetensors", "xformers", "triton")
OURS = {"tests", "prdit_models"}


def _distribution_closure(names: tuple[str, ...]) -> set[str]:
    """What is installed of some distributions and all they require."""
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if name in found:
            continue
        found.add(name)
        for text in distribution.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(requirement.name)
    return found


def _modules_of(distributions: set[str]) -> set[str]:
    normal = {re.sub(r"[-_.]+", "-", name).lower() for name in distributions}
    return {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if any(re.sub(r"[-_.]+", "-", owner).lower() in normal for owner in owners)
    }


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, str]:
    """The environment of a Python that has nothing but what the check may import."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(SITE_CUSTOMIZE)
    allowed = _modules_of(_distribution_closure(MAY_IMPORT)) | OURS
    assert {"torch", "numpy", "scipy", "safetensors"} <= allowed
    assert not {"pytest", "pydantic", "prefect", "zarr", "mlflow", "psutil", "yaml", "packaging"} & allowed
    hidden = {"GPU_CHECK_ALLOWED": json.dumps(sorted(allowed)), "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | hidden


@pytest.fixture(scope="module")
def tiny(bare: dict[str, str], repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `--tiny` finds in the bare environment; run once."""
    written = tmp_path_factory.mktemp("out") / "found.json"
    command = [sys.executable, "-m", "tests.gpu_check", "--tiny", "--json", str(written)]
    done = subprocess.run(command, cwd=repository, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert json.loads(written.read_text()) == found
    return found | {"table": done.stderr}


def rows_of(found: dict[str, Any], part: str) -> dict[str, dict[str, Any]]:
    return {f"{row.get('group', '')}/{row['what']}".removeprefix("/"): row for row in found["parts"][part]["rows"]}


def test_the_bare_environment_hides_what_it_should(bare: dict[str, str], repository: Path) -> None:
    for module in ("pydantic", "pytest", "psutil", "zarr", "tasks", "storage"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"], cwd=repository, env=bare, capture_output=True, check=False
        )
        assert done.returncode == 1, module
        assert b"ModuleNotFoundError" in done.stderr


def test_every_part_agrees_with_nothing_else_importable(tiny: dict[str, Any]) -> None:
    assert tiny["exit_code"] == 0
    assert tiny["tiny"] is True
    assert tiny["torch"] == torch.__version__
    assert list(tiny["parts"]) == list(PARTS)
    verdicts = {name: part["verdict"] for name, part in tiny["parts"].items()}
    assert verdicts.pop("recorded") in ("agrees", "skipped")  # skipped where the arrays do not exist
    assert set(verdicts.values()) == {"agrees"}
    assert "failed" not in tiny["table"]
    assert tiny["table"].splitlines()[-1].startswith("agrees: machine, own")


def test_every_case_of_the_own_set_was_compared(tiny: dict[str, Any]) -> None:
    rows = rows_of(tiny, "own")
    in_float32 = [name for name, case in CASES.items() if case.in_float32]
    for precision, limit in (("fp32", 3e-4), ("bf16", 0.06)):
        errors = {name: rows[f"own set, {precision}/{name}"]["error"] for name in in_float32}
        assert all(0 < error <= limit for name, error in errors.items() if name not in ("tables", "noising"))
        # rounding to eight bits shows, rounding to 24 does not
        forward = [errors[name] for name in errors if name.startswith(("depth", "local"))]
        assert min(forward) > 1e-3 if precision == "bf16" else max(forward) < 1e-5
    for name in set(CASES) - set(in_float32):
        assert rows[f"optimiser steps in float64/{name}"]["error"] < 1e-6
    assert {f"oracle, frozen numbers/{name}" for name in CASES} <= set(rows)


def test_attention_is_right_and_missing_kernels_are_named(tiny: dict[str, Any]) -> None:
    rows = rows_of(tiny, "attention")
    assert rows["product auto, fp32, tiny"]["error"] < 5e-6
    assert 1e-3 < rows["product auto, bf16, tiny"]["error"] < 0.04
    assert rows["sdpa cudnn, fp32, tiny"]["verdict"] == "skipped"
    assert "no such kernel" in rows["sdpa cudnn, fp32, tiny"]["note"]


def test_planned_memory_is_the_measured_one(tiny: dict[str, Any]) -> None:
    """On a CPU every tensor is counted on both sides: what is left is what an operation allocates and frees within itself."""
    for part in ("steps", "sampling"):
        for row in tiny["parts"][part]["rows"]:
            facts = row.get("facts", {})
            if "tensors_gib" in facts:
                assert row["error"] == pytest.approx(
                    abs(facts["planned_tensors_gib"] / facts["tensors_gib"] - 1), abs=1e-9
                )
                assert row["error"] < 0.06


def test_times_and_rates_belong_together(tiny: dict[str, Any]) -> None:
    facts = rows_of(tiny, "steps")["tiny 16³, fp32, batch 2"]["facts"]
    assert facts["step_s"] == pytest.approx(sum(facts[name] for name in ("forward_s", "backward_s", "optimiser_s")))
    assert facts["volumes_per_s"] == pytest.approx(2 / facts["step_s"])
    flops = count_flops(of_network(TINY_CONFIG), 2, training=True)
    assert facts["tflops"] == pytest.approx(flops / facts["step_s"] / 1e12)
    assert 0 < facts["of_matrix_product"] < 2
    assert facts["of_peak"] is None
    sampled = rows_of(tiny, "sampling")["tiny 16³, fp32, batch 2"]["facts"]
    assert sampled["seconds_per_sample"] > 0
    assert sampled["evaluations"] == 50


def test_the_training_learns_and_follows(tiny: dict[str, Any]) -> None:
    rows = rows_of(tiny, "training")
    reference = rows["CPU, float64: the loss falls"]["facts"]
    assert reference["last"] < 0.5 * reference["first"]
    fp32, bf16 = rows["cpu, fp32: its loss follows"], rows["cpu, bf16: its loss follows"]
    assert 0 < fp32["error"] < 1e-5 < bf16["error"] < 0.02
    pairs = zip(bf16["facts"]["windows"], bf16["facts"]["windows_of_reference"], strict=True)
    assert bf16["error"] == pytest.approx(max(abs(found / exact - 1) for found, exact in pairs))


def test_compiled_code_was_compared(tiny: dict[str, Any]) -> None:
    (row,) = tiny["parts"]["compile"]["rows"]
    assert row["error"] < 2e-5
    assert row["facts"]["gain"] == pytest.approx(row["facts"]["step_s"] / row["facts"]["compiled_step_s"])


# -- what happens when something is wrong ----------------------------------------------------------------------------

BROKEN = {
    "raises": "from tests.gpu_check.report import compared\n"
    "def rows(setting):\n    yield compared('before', 1.0, 2.0)\n    raise ValueError('three is not four')\n",
    "dies": "import os, signal\nfrom tests.gpu_check.report import compared\n"
    "def rows(setting):\n    yield compared('before', 1.0, 2.0)\n    os.kill(os.getpid(), signal.SIGSEGV)\n",
    "hangs": "import time\ndef rows(setting):\n    time.sleep(600)\n    yield\n",
    "differs": "from tests.gpu_check.report import compared\ndef rows(setting):\n    yield compared('x', 3.0, 2.0)\n",
    "well": "from tests.gpu_check.report import compared\ndef rows(setting):\n    yield compared('y', 1.0, 2.0)\n",
}


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Part]:
    """Parts that go wrong in every way, and one that does not, last."""
    for name, source in BROKEN.items():
        (tmp_path / f"gpu_check_{name}.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return {name: Part(f"gpu_check_{name}", name, 4.0 if name == "hangs" else 60.0) for name in BROKEN}


def test_a_broken_part_leaves_the_others_and_exit_code_1(
    broken: dict[str, Part], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--tiny"], broken) == 1
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["exit_code"] == 1
    verdicts = {name: part["verdict"] for name, part in found["parts"].items()}
    assert verdicts == {
        "raises": "failed",
        "dies": "failed",
        "hangs": "failed",
        "differs": "differs",
        "well": "agrees",
    }
    for name in ("raises", "dies"):
        assert rows_of(found, name)["before"]["verdict"] == "agrees"
    assert found["parts"]["raises"]["reason"].startswith("ValueError: three is not four\n")
    assert "line 4, in rows" in found["parts"]["raises"]["reason"]
    assert "SIGSEGV" in found["parts"]["dies"]["reason"]
    assert found["parts"]["hangs"]["reason"].startswith("stopped after 4 s")
    assert "failed: raises, dies, hangs; differs: differs; agrees: well." in shown.err


def test_one_broken_part_alone_among_ours(broken: dict[str, Part], capsys: pytest.CaptureFixture[str]) -> None:
    parts = {"raises": broken["raises"], "machine": PARTS["machine"]}
    assert main(["--tiny"], parts) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["parts"]["machine"]["verdict"] == "agrees"
    assert main(["--tiny", "--only", "machine"], parts) == 0


def test_what_no_longer_fits_the_budget_is_skipped(
    broken: dict[str, Part], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.gpu_check.__main__.LEAST_S", 30.0)
    assert main(["--tiny", "--budget-s", "30"], {"well": broken["well"]}) == 1  # nothing ran: that is no agreement
    part = json.loads(capsys.readouterr().out)["parts"]["well"]
    assert part["verdict"] == "skipped"
    assert part["reason"] == "skipped: budget used up"


def test_without_a_gpu_it_says_so_and_exits_with_2(bare: dict[str, str], repository: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu_check"]
    done = subprocess.run(command, cwd=repository, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No CUDA device" in done.stderr
    assert "--tiny" in done.stderr
    found = json.loads(done.stdout)
    assert found["exit_code"] == 2
    assert found["parts"] == {}
    assert found["problem"].startswith("No CUDA device")


def test_without_torch_it_says_so_and_exits_with_2(bare: dict[str, str], repository: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu_check", "--tiny"]
    hidden = bare | {"GPU_CHECK_ALLOWED": json.dumps(["tests", "prdit_models", "numpy"])}
    done = subprocess.run(command, cwd=repository, env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot load torch: ModuleNotFoundError: No module named 'torch'" in done.stderr
    assert "PYTHON=" in done.stderr


@pytest.mark.parametrize(
    ("variables", "chosen"),
    [({"PYTHON": "/opt/other/python3"}, "/opt/other/python3"), ({"VENV": "nowhere", "PYTHON": ""}, "python3")],
)
def test_make_runs_it_with_the_python_that_was_named(repository: Path, variables: dict[str, str], chosen: str) -> None:
    given = [f"{name}={value}" for name, value in variables.items()]
    command = ["make", "--no-print-directory", "--dry-run", "gpu-check", "ARGS=--tiny", *given]
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(command, cwd=repository, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{chosen} -m tests.gpu_check --tiny"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget-s", "0"], "expected at least 10 seconds, got 0"),
        (["--budget-s", "nan"], "expected at least 10 seconds, got nan"),
        (["--json", "/nowhere/x.json"], "there is no folder /nowhere"),
    ],
)
def test_options_that_would_lose_the_result_are_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--tiny", *options])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
