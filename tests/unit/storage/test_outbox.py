"""`storage.outbox`: what was recorded is there after any end of a process, and is closed with its true state."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from storage import outbox as module
from storage.outbox import Outbox
from storage.outbox_sender import _together
from storage.processes import process_ended, process_token
from tests.processes import PATIENCE_S


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "tracking")


def records(outbox: Outbox, run: str) -> list[dict[str, Any]]:
    return [record for record, _ in outbox.records(run, 0)]


def owned_by(outbox: Outbox, run: str, token: str) -> Path:
    path = outbox.folder / run / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([json.dumps(json.loads(lines[0]) | {"owner": token}) + "\n", *lines[1:]]))
    return path


def ended_process() -> str:
    code = "from storage.processes import process_token; print(process_token())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_runs_come_in_the_order_they_began_with_their_records(outbox: Outbox) -> None:
    assert outbox.runs() == []
    first, second = outbox.create({"name": "a"}), outbox.create({"name": "b"})
    outbox.append(first, {"op": "tags", "tags": {"k": "ü"}})
    assert outbox.runs() == [first, second]
    assert [record.get("name") or record["tags"] for record in records(outbox, first)] == ["a", {"k": "ü"}]
    assert outbox.first(second)["owner"] == process_token()
    assert not outbox.is_sent(first)
    end = [end for _, end in outbox.records(first, 0)][-1]
    outbox.save_sent(first, module.Sent(offset=end))
    assert outbox.is_sent(first)
    outbox.remove(first)
    assert (outbox.runs(), outbox.is_sent(first), outbox.has(first)) == ([second], True, False)
    with pytest.raises(FileNotFoundError):
        outbox.append(first, {"op": "tags", "tags": {}})


def test_a_kept_file_stays_what_it_was(outbox: Outbox, tmp_path: Path) -> None:
    run, report = outbox.create({}), tmp_path / "report.html"
    report.write_text("first")
    name = outbox.keep(run, report)
    report.unlink()
    assert outbox.file(run, name).read_text() == "first"
    assert outbox.file(run, name).name == "report.html"
    outbox.drop(run, name)
    assert not outbox.file(run, name).exists()


def test_a_file_system_without_links_keeps_a_copy(
    outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(1, "links are not supported")

    monkeypatch.setattr(os, "link", refuse)
    run, report = outbox.create({}), tmp_path / "report.html"
    report.write_text("first")
    name = outbox.keep(run, report)
    report.write_text("second")
    assert outbox.file(run, name).read_text() == "first"


def test_the_run_of_a_killed_process_is_closed_once_with_the_points_it_had_not_read(
    outbox: Outbox, tmp_path: Path
) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1}\n{"step": 2, "a": NaN}\n{"st')
    run, living = outbox.create({}), outbox.create({})
    outbox.append(run, {"op": "points", "prefix": "train/", "points": [], "stream": str(metrics), "read": 12})
    path = owned_by(outbox, run, ended_process())
    with path.open("a") as torn:
        torn.write('{"op": "tags", "ta')
    for _ in range(2):
        outbox.close_abandoned()
        _, _, rest, end = records(outbox, run)
        assert rest.pop("points") == [{"step": 2, "time_ms": end["time_ms"]}]
        assert rest == {"op": "points", "prefix": "train/", "stream": str(metrics), "read": 34}
        assert (end["op"], end["status"]) == ("end", "KILLED")
        assert time.time() * 1000 - 60_000 < end["time_ms"] <= time.time() * 1000
    assert [record["op"] for record in records(outbox, living)] == ["create"]


def test_a_process_of_another_machine_is_dead_once_it_has_been_silent_for_long(outbox: Outbox) -> None:
    run = outbox.create({})
    path = owned_by(outbox, run, "00000000-1-1")
    outbox.close_abandoned()
    assert [record["op"] for record in records(outbox, run)] == ["create"]
    silent = time.time() - module._SILENT_S - 60
    os.utime(path, (silent, silent))
    outbox.close_abandoned()
    assert [record["op"] for record in records(outbox, run)] == ["create", "end"]
    assert records(outbox, run)[1]["time_ms"] == int(silent * 1000)


def test_what_cannot_be_read_is_named_and_the_others_are_closed(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    broken, run, ended = outbox.create({}), outbox.create({}), ended_process()
    (outbox.folder / broken / "records.jsonl").write_text("{no JSON\n")
    owned_by(outbox, run, ended)
    outbox.close_abandoned()
    assert f"{outbox.folder / broken} cannot be read or closed" in caplog.text
    assert [record["op"] for record in records(outbox, run)] == ["create", "end"]


def test_a_process_that_was_killed_and_not_waited_for_has_ended() -> None:
    code = "from storage.processes import process_token; print(process_token(), flush=True)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        token = child.stdout.readline().strip()
        assert token.split("-")[1] == str(child.pid)
        deadline = time.monotonic() + PATIENCE_S
        while not process_ended(token):  # a zombie until the block ends
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert process_ended(process_token()) is False
    assert process_ended(f"{'0' * 8}-1-1") is None


def test_a_long_outage_is_sent_in_groups_that_leave_nothing_out() -> None:
    records = [({"op": "points", "prefix": "", "points": [{"step": n}]}, n + 1) for n in range(2000)]
    records.insert(50, ({"op": "tags", "tags": {}}, 50))
    records.append(({"op": "points", "prefix": "other/", "points": [{"step": 0}]}, 2001))
    groups = list(_together(iter(records)))
    assert [(group["op"], len(group.get("points", [])), end) for group, end in groups] == [
        ("points", 50, 50),
        ("tags", 0, 50),
        ("points", 900, 950),
        ("points", 900, 1850),
        ("points", 150, 2000),
        ("points", 1, 2001),
    ]
