"""Progress where there is no terminal: lines with how much is done, how fast, and how long it will take."""

import logging
from types import SimpleNamespace

import pytest

from tasks.run.progress import show_progress


def test_lines_say_rate_and_time_left(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([130.0, 160.0, 700.0])
    monkeypatch.setattr(
        "tasks.run.progress.time", SimpleNamespace(monotonic=lambda: next(clock))
    )  # its own, not the process's
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    caplog.set_level(logging.INFO, "prdit.progress")
    with show_progress("ingest") as advance:
        advance(10, 100)
        advance(60, 100)
        advance(100, 100)
    assert [record.getMessage() for record in caplog.records] == [
        "ingest: 10 of 100",  # perhaps done before
        "ingest: 60 of 100, 1.7/s, 0:00:24 left",
        "ingest: 100 of 100",
    ]
