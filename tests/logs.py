"""What the loggers of prdit said. Those of Dask, MLflow and Prefect are in the same process, with threads of their own."""

import logging

import pytest


def said(caplog: pytest.LogCaptureFixture, least: int = logging.DEBUG) -> list[str]:
    """Messages of prdit's loggers, of a level at least."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= least and record.name.split(".")[0] == "prdit"
    ]
