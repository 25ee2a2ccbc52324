"""What is logged and raised while a source is read: without its folder; and the table that Prefect shows."""

import logging
from pathlib import Path
from typing import Any

import pytest

from storage.errors import SourceError, UnwritableError
from storage.privacy import REMOVED
from tasks.run import task as orchestration
from tasks.run.private import without_paths


class Kept(logging.Handler):
    """Keeps what it would have written, as Prefect's handler does."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def kept() -> Any:
    handler, logger = Kept(), logging.getLogger("prdit")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_logs_name_no_place_in_the_folder(tmp_path: Path, kept: Kept) -> None:
    folder = tmp_path / "Doe John"
    log = logging.getLogger("prdit.ingest")
    with without_paths(str(folder)):
        log.warning("%s cannot be read, nor %r", folder / "a b.dcm", str(folder / "c"))
        try:
            raise OSError(2, "gone", str(folder / "x.dcm"))
        except OSError:
            log.exception("an item failed")
    log.warning("after %s", folder)
    assert kept.lines[0] == f"{REMOVED}, nor '{REMOVED}'"
    assert "Traceback" in kept.lines[1]
    assert "gone" in kept.lines[1]
    assert not any("Doe" in line for line in kept.lines[:2])
    assert "Doe John" in kept.lines[2]


@pytest.mark.parametrize(
    "error",
    [
        SourceError("No CT in /data/Doe: 3 txt"),
        UnwritableError("/data/Doe/x cannot be written: disk full"),
        PermissionError(13, "Permission denied", "/data/Doe/x"),
        RuntimeError("/data/Doe", 5),
    ],
)
def test_errors_name_no_place_in_the_folder(error: Exception) -> None:
    error.__cause__ = ValueError("at /data/Doe/cause")
    with pytest.raises(type(error)) as caught, without_paths("/data/Doe"):
        raise error
    assert caught.value is error
    assert "Doe" not in f"{error} {error!r} {error.__cause__}"
    assert REMOVED in str(error)


def test_without_a_folder_nothing_changes(kept: Kept) -> None:
    with pytest.raises(SourceError, match="/data/Doe"), without_paths(None):
        raise SourceError("No CT in /data/Doe")


def test_the_table_is_an_artifact_of_a_task_run_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(orchestration, "create_table_artifact", lambda **values: made.append(values))
    orchestration.publish_table("ingest", [{"verdict": "committed"}])
    assert made == []
    monkeypatch.setattr(orchestration.TaskRunContext, "get", lambda: object())
    orchestration.publish_table("ingest", [{"verdict": "committed"}])
    assert made == [{"table": [{"verdict": "committed"}], "key": "prdit-ingest-table"}]

    def refuse(**_: Any) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(orchestration, "create_table_artifact", refuse)
    orchestration.publish_table("ingest", [])
    assert "table artifact of ingest was not made: refused" in caplog.text
