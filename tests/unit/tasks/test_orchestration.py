"""The artifacts of a task: when its progress appears and how often it is written, pictures, and that a failure stops nothing."""

from types import SimpleNamespace
from typing import Any

import pytest

from tasks.run import task as orchestration


class Server:
    """Takes artifacts in place of Prefect, and counts seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, in_task: bool = True) -> None:
        self.written: list[tuple[str, float, str]] = []
        self.seconds = 100.0
        monkeypatch.setattr(orchestration.TaskRunContext, "get", lambda: object() if in_task else None)
        monkeypatch.setattr(orchestration, "time", SimpleNamespace(monotonic=lambda: self.seconds))
        monkeypatch.setattr(orchestration, "create_progress_artifact", self.create)
        monkeypatch.setattr(orchestration, "update_progress_artifact", self.update)

    def create(self, *, progress: float, key: str, description: str) -> str:
        self.written.append((key, progress, description))
        return "id"

    def update(self, *, artifact_id: str, progress: float, description: str) -> None:
        self.written.append((artifact_id, progress, description))


def test_it_appears_with_the_first_report_and_is_written_every_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch)
    with orchestration.task_progress("sample") as progress:
        assert server.written == []
        for done in range(9):
            progress(done, 8)
            server.seconds += 0.5
    assert server.written == [
        ("prdit-sample", 0.0, "0 of 8"),
        ("id", 50.0, "4 of 8, 2.0/s, 0:00:02 left"),
        ("id", 100.0, "8 of 8"),
    ]


def test_outside_a_task_run_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, in_task=False)
    with orchestration.task_progress("sample") as progress:
        progress(1, 1)
    assert server.written == []


def test_a_server_that_is_away_ends_no_stage(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    server = Server(monkeypatch)

    def refuse(**_: Any) -> str:
        raise ConnectionError("refused")

    monkeypatch.setattr(orchestration, "create_progress_artifact", refuse)
    with orchestration.task_progress("sample") as progress:
        progress(1, 2)
        monkeypatch.setattr(orchestration, "create_progress_artifact", server.create)
        progress(2, 2)
    assert "progress artifact of sample was not updated: refused" in caplog.text
    assert server.written == [("prdit-sample", 100.0, "2 of 2")]


def test_a_picture_is_shown_with_its_caption(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    made: list[dict[str, str]] = []
    server = Server(monkeypatch, in_task=False)
    monkeypatch.setattr(orchestration, "create_markdown_artifact", lambda **fields: made.append(fields))
    orchestration.publish_picture("sample", b"jpeg", "4 of 8 volumes")
    assert made == []
    server = Server(monkeypatch)
    orchestration.publish_picture("sample", b"jpeg", "4 of 8 volumes")
    shown = "![4 of 8 volumes](data:image/jpeg;base64,anBlZw==)\n\n4 of 8 volumes"
    assert made == [{"markdown": shown, "key": "prdit-sample-picture"}]

    def refuse(**_: str) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(orchestration, "create_markdown_artifact", refuse)
    orchestration.publish_picture("sample", b"jpeg", "all")
    assert server.written == []
    assert "picture artifact of sample was not made: refused" in caplog.text
