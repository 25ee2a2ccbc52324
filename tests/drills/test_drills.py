"""Each drill once, at its smallest size; `make drills` runs them longer."""

import os
from pathlib import Path

import pytest
import torch

from tests.drills import at_once, browser, kill_ingest, kill_training, store_damage, torch_versions
from tests.parity.location import REPOSITORY

pytestmark = pytest.mark.slow


def test_kill_ingest(tmp_path: Path) -> None:
    (committed,) = kill_ingest.run(tmp_path, rounds=1)["committed_after_each_kill"]
    assert committed > 0


def test_store_damage(tmp_path: Path) -> None:
    found = store_damage.run(tmp_path, rounds=1)["damage"]
    assert {line["repaired"] for line in found.values()} == {1}
    assert len(found) == 13


def test_at_once(tmp_path: Path) -> None:
    assert at_once.run(tmp_path, rounds=1)["stores"] == 3


def test_kill_training(tmp_path: Path) -> None:
    assert kill_training.run(tmp_path, rounds=1)["rounds"] == 1


def test_prdit_models_needs_nothing_but_torch_and_the_few_beside_it(tmp_path: Path) -> None:
    select = "test_own or test_anatomy or test_weights"  # some of what runs; all is imported
    found = torch_versions.run(tmp_path, ["installed"], select)["installed"]
    assert found["torch"] == torch.__version__
    assert found["modules"] == len(list((REPOSITORY / "prdit_models").rglob("*.py"))) - 1  # not prdit_models itself
    assert found["passed"] > 50


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_browser(tmp_path: Path) -> None:
    if packages := browser.missing():
        reason = f"not on PATH: {', '.join(packages)} (Debian packages)"
        if os.environ.get("PRDIT_REQUIRE_BROWSER") == "1":
            pytest.fail(f"PRDIT_REQUIRE_BROWSER=1 but {reason}")
        pytest.skip(reason)
    seen = browser.run(tmp_path, rounds=1)
    assert seen["runs"] == 2
    assert seen["mlflow_compare"]["differing"] == [browser.CHANGED]
    assert seen["report"]["pictures"] > 0
    assert {"prefect-form-0.png", "prefect-run.png", "mlflow-runs.png", "mlflow-compare.png", "report.png"} <= set(
        seen["shots"]
    )
