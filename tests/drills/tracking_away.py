"""An MLflow server that is away at the start, in the middle, at the end or for ever: no step is lost, none is sent twice.

`python -m tests.drills.tracking_away [SECONDS_AWAY]` prints the figures as JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from storage.files import write_json_atomic
from storage.metric_stream import MetricStream
from storage.tracking import Tracker
from tests.mlflow_process import Server
from tests.parity.location import REPOSITORY

_STEP_S = 0.02
_POLL_STEPS = 5
_DEADLINE_S = 120.0
_METRICS, _TIMES, _STOP = "metrics.jsonl", "times.json", "stop"


def run(root: Path, seconds_away: float) -> dict[str, Any]:
    """Four runs and one outage; figures of each run by when its server was away.

    Args:
        root: folder to work in.
        seconds_away: how long the server is stopped.
    Raises: AssertionError: points are not on the server at last.
    """
    server = Server(root)
    server.start()
    try:
        runs = {name: _Run(root / name, server.uri) for name in ("middle", "end")}
        time.sleep(1.0)
        server.stop()
        runs |= {name: _Run(root / name, server.uri) for name in ("start", "for_ever")}
        time.sleep(seconds_away)
        runs["end"].end()
        runs["for_ever"].kill()
        server.start()
        time.sleep(1.0)
        runs["start"].end()
        runs["middle"].end()
        return {"seconds_away": seconds_away} | {name: each.figures(server.uri) for name, each in runs.items()}
    finally:
        server.stop()


class _Run:
    """A process that makes points until it is told to end."""

    def __init__(self, folder: Path, uri: str) -> None:
        folder.mkdir()
        self.folder = folder
        command = [sys.executable, "-m", "tests.drills.tracking_away", uri, str(folder)]
        self.process = subprocess.Popen(command, cwd=REPOSITORY)
        deadline = time.monotonic() + _DEADLINE_S
        while len(self._points()) < 2 * _POLL_STEPS:
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.05)

    def _points(self) -> list[dict[str, Any]]:
        path = self.folder / _METRICS
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def end(self) -> None:
        (self.folder / _STOP).touch()
        assert self.process.wait(_DEADLINE_S) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def figures(self, uri: str) -> dict[str, Any]:
        """What the server has of the run after prdit's next start, compared with what the training wrote."""
        from mlflow.tracking import (
            MlflowClient,  # not at the top: what the runs wait for includes their own import of it
        )

        next_start = Tracker(uri, "drill", self.folder / "tracking")
        deadline = time.monotonic() + _DEADLINE_S
        while [path for path in (self.folder / "tracking").iterdir() if path.is_dir()]:
            assert time.monotonic() < deadline, sorted((self.folder / "tracking").rglob("*"))
            time.sleep(0.1)
        client = MlflowClient(uri)
        (found,) = client.search_runs([next_start.experiment_id], f"attributes.run_name = '{self.folder.name}'")
        history = client.get_metric_history(found.info.run_id, "train/loss")
        there = [(point.step, point.timestamp, point.value) for point in history]
        made = [(point["step"], point["time_ms"], point["loss"]) for point in self._points()]
        return {
            "steps": len(made),
            "steps_lost": len(set(made) - set(there)),
            "points_on_server": len(there),
            "points_twice": len(there) - len({step for step, _, _ in there}),
            "status": found.info.status,
        } | json.loads((self.folder / _TIMES).read_text())


def _make_points(uri: str, folder: Path) -> None:
    """Do to the tracker what a stage and its training do; note how long each call took, and how often a poll talked to a server."""
    began = time.monotonic()
    tracker = Tracker(uri, "drill", folder / "tracking")
    run_id = tracker.start_run(folder.name, parent=None, source="prdit/drill", tags={}, params={"a.lr": 0.1})
    times = {"start_wait_s": time.monotonic() - began, "longest_stall_s": 0.0, "connections": 0}
    stream = MetricStream(folder / _METRICS, tracker, run_id, prefix="train/")
    step, polling = 0, False

    def count(event: str, _: object) -> None:
        if event == "socket.connect" and polling and threading.current_thread() is threading.main_thread():
            times["connections"] += 1

    sys.addaudithook(count)
    with (folder / _METRICS).open("a") as metrics:
        while not (folder / _STOP).exists():
            step += 1
            metrics.write(json.dumps({"step": step, "time_ms": int(time.time() * 1000), "loss": 1.0 / step}) + "\n")
            metrics.flush()
            os.fsync(metrics.fileno())
            if step % _POLL_STEPS == 0:
                before, polling = time.monotonic(), True
                stream.poll()
                polling = False
                times["longest_stall_s"] = max(times["longest_stall_s"], time.monotonic() - before)
                write_json_atomic(folder / _TIMES, {name: round(value, 3) for name, value in times.items()})
            time.sleep(_STEP_S)
    stream.poll()
    before = time.monotonic()
    tracker.end_run(run_id, "FINISHED")
    tracker.flush()
    times["end_wait_s"] = time.monotonic() - before
    write_json_atomic(folder / _TIMES, {name: round(value, 3) for name, value in times.items()})


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _make_points(sys.argv[1], Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as place:
            figures = run(Path(place), float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
