"""Nothing that prdit depends on sends usage data, unless a user switches it on."""

import json
import os
import subprocess
import sys

NAMES = ("DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED", "MLFLOW_DISABLE_TELEMETRY")


def seen(environment: dict[str, str]) -> list[bool]:
    """Whether Prefect's analytics and MLflow's telemetry are on in a process that imports the pipeline."""
    code = (
        "import json, flows.pipeline\n"
        "from prefect.settings import get_current_settings\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled\n"
        "print(json.dumps([get_current_settings().server.analytics_enabled, not is_telemetry_disabled()]))"
    )
    bare = {name: value for name, value in os.environ.items() if name not in NAMES}
    out = subprocess.run(
        [sys.executable, "-c", code], env=bare | environment, capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr
    found: list[bool] = json.loads(out.stdout.splitlines()[-1])
    return found


def test_a_run_without_a_server_leaves_no_telemetry_on() -> None:
    assert seen({}) == [False, False]


def test_a_user_can_switch_it_on() -> None:
    assert seen({"PREFECT_SERVER_ANALYTICS_ENABLED": "true"})[0] is True
