"""Drills of servers and of their pages, once each at their smallest size."""

import os
from pathlib import Path

import pytest

from tests.drills import browser, tracking_away

pytestmark = pytest.mark.slow


def test_tracking_away(tmp_path: Path) -> None:
    figures = tracking_away.run(tmp_path, seconds_away=1.0)
    assert figures.pop("seconds_away") == 1.0
    assert {name: found["status"] for name, found in figures.items()} == {
        "start": "FINISHED",
        "middle": "FINISHED",
        "end": "FINISHED",
        "for_ever": "KILLED",
    }
    for found in figures.values():
        assert found["steps"] > 10
        assert (found["steps_lost"], found["points_twice"]) == (0, 0)
        assert found["points_on_server"] == found["steps"]
        assert found["connections"] == 0  # of the training's thread: that of the sender waits for servers
        assert found["longest_stall_s"] <= 5.0  # a busy machine's; a client of MLflow that waits does so for minutes


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
