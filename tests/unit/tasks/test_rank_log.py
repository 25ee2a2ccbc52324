"""Warnings of the first rank are shown where the training was started, once."""

from pathlib import Path

import pytest

from tasks.train.rank_log import RankLog

BEFORE = "2026-11-29 16:00:00,000 WARNING [rank 0] prdit.train: of the run before\n"


def line(level: str, rank: int, text: str) -> str:
    return f"2026-11-29 16:12:09,360 {level} [rank {rank}] prdit.train: {text}\n"


def test_what_is_new_is_shown_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "node-0.log"
    path.write_text(BEFORE)
    log = RankLog(tmp_path)
    with path.open("a") as stream:
        stream.write(line("INFO", 0, "resuming from step 5") + line("WARNING", 1, "step 7 skipped"))
        stream.write(line("WARNING", 0, "step 7 skipped") + "[rank0]:[W1129] a library's\n")
        stream.write("2026-11-29 16:12:09,361 ERROR [rank 0] prdit.train: half a li")
    (tmp_path / "node-1.log").write_text(line("WARNING", 0, "on a host that joined"))
    log.poll()
    assert caplog.messages == ["step 7 skipped", "on a host that joined"]
    with path.open("a") as stream:
        stream.write("ne\n" + "".join(line("WARNING", 0, f"step {number} skipped") for number in range(8, 15)))
    caplog.clear()
    log.poll()
    expected = ["half a line", *(f"step {number} skipped" for number in range(8, 12))]
    assert caplog.messages == [*expected, f"and 3 more, see {tmp_path}/node-*.log"]
    caplog.clear()
    log.poll()
    assert caplog.messages == []
