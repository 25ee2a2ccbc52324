"""Wiring: what runs after what, on which runner; configuration and command line."""

import os

# Before Prefect or MLflow is imported: without a server of ours, Prefect starts one in the process, which would send usage data.
for _name, _value in (
    ("DO_NOT_TRACK", "1"),
    ("PREFECT_SERVER_ANALYTICS_ENABLED", "false"),
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
):
    os.environ.setdefault(_name, _value)
