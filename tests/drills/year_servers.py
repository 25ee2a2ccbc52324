"""Real servers for a simulated year: runs are made through their interfaces and dated back, then the servers remove what is old."""

import os
import sqlite3
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Collection
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from mlflow.tracking import MlflowClient

from flows.servers import ServiceError, Services, call_api
from tasks.maintain.config import RetentionConfig
from tests.ports import free_ports

RUNS, LINES = 10, 20  # flow runs per week, lines of log of each
_START_S, _VACUUM_S, _BUSY_S = 240.0, 240.0, 240.0
_DAY_S = 86400.0
ARTIFACT_BYTES = 50_000
_TAGS = {"prdit.tracking_id": "1"}  # as the runs that prdit records have
_ORPHANS = "SELECT count(*) FROM log WHERE flow_run_id NOT IN (SELECT id FROM flow_run)"


class Servers:
    """A Prefect and an MLflow server, started as `prdit up` starts them, on the files of a state directory."""

    def __init__(self, state: Path, config: RetentionConfig) -> None:
        self.state, self.config = state, config
        self.ports = {"prefect": free_ports(), "mlflow": free_ports()}
        self.mlflow_uri = f"http://127.0.0.1:{self.ports['mlflow']}"
        self.services = Services(
            state_dir=state, prefect_ui_url=f"http://127.0.0.1:{self.ports['prefect']}", mlflow_url=self.mlflow_uri
        )
        self._stack = ExitStack()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._backdated: dict[str, float] = {}

    def __enter__(self) -> "Servers":
        (self.state / "logs").mkdir(parents=True)
        try:
            for name in self.ports:
                self._start(name)
            for name, path in (("prefect", "/api/health"), ("mlflow", "/health")):
                self._wait(name, f"http://127.0.0.1:{self.ports[name]}{path}")
        except BaseException:
            self._end()
            raise
        client = MlflowClient(self.mlflow_uri)
        self.client, self.experiment = client, client.create_experiment("prdit")
        self.flow = self._ask("/flows/", {"name": "retrain"})["id"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for process in self._processes.values():
            if process.poll() is not None:
                continue
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for member in family:
                member.kill()
            process.wait(30)

    def live(self, number: int, now: float, digest: str) -> None:
        """A week of runs on both servers.

        Args:
            number: of the week.
            now: its time.
            digest: of the checkpoint that its training made.
        """
        for index in range(RUNS):
            self._flow_run(f"week-{number}-{index}", now)
        ended = int(now * 1000)
        parent = self.client.create_run(self.experiment, ended - 9000, tags=_TAGS).info.run_id
        stages = [
            self.client.create_run(
                self.experiment, ended - 8000, tags=_TAGS | {"mlflow.parentRunId": parent}
            ).info.run_id
            for _ in range(3)
        ]
        weights = self.state / "weights"
        weights.write_bytes(os.urandom(ARTIFACT_BYTES))
        model = self.client.create_logged_model(
            self.experiment, name="checkpoint", source_run_id=stages[0], tags={"prdit.digest": digest}
        )
        self.client.log_model_artifact(model.model_id, str(weights))
        self.client.log_artifact(parent, str(weights))
        for step in range(20):
            self.client.log_metric(stages[0], "loss", 1.0 / (step + 1), step=step)
        for run in (*stages, parent):
            self.client.set_terminated(run, end_time=ended)

    def settled(self, number: int, now: float, kept: Collection[str]) -> dict[str, Any]:
        """What the servers keep after this week's maintenance.

        Raises: AssertionError: runs are kept that are older than the site keeps them, other than those of kept checkpoints.
        """
        self._backdate()
        left = self._vacuumed(now)
        with closing(sqlite3.connect(self.state / "mlflow" / "mlflow.db", timeout=60)) as database:
            oldest = int((now - self.config.server_days * _DAY_S) * 1000)
            runs = database.execute("SELECT count(*) FROM runs").fetchone()[0]
            old = database.execute("SELECT count(*) FROM runs WHERE end_time < ?", (oldest,)).fetchone()[0]
            models = database.execute("SELECT count(*) FROM logged_models").fetchone()[0]
        trees = 4 * len(kept)
        assert old <= trees, (
            f"{old} runs of MLflow are older than {self.config.server_days:g} days; kept trees have {trees}"
        )
        files = [path for path in (self.state / "mlflow" / "artifacts").rglob("*") if path.is_file()]
        return {
            "week": number + 1,
            "prefect": left | {"database_bytes": _size(self.state / "prefect" / "prefect.db")},
            "mlflow": {
                "runs": runs,
                "models": models,
                "artifact_bytes": sum(path.stat().st_size for path in files),
                "database_bytes": _size(self.state / "mlflow" / "mlflow.db"),
            },
            "memory_mb": {name: _memory_mb(process.pid) for name, process in self._processes.items()},
            "log_bytes": sum(path.stat().st_size for path in (self.state / "logs").iterdir()),
        }

    # ---- Prefect -----------------------------------------------------------------------------------------------------------

    def _flow_run(self, name: str, now: float) -> None:
        body = {"flow_id": self.flow, "name": name, "idempotency_key": name, "state": {"type": "PENDING"}}
        run = self._ask("/flow_runs/", body)["id"]
        for kind in ("RUNNING", "COMPLETED"):
            state = {"state": {"type": kind}, "force": True}
            self._ask(f"/flow_runs/{run}/set_state", state)
        stamp = datetime.fromtimestamp(now, UTC).isoformat()
        line = {"name": "prdit", "level": 20, "message": "word " * 20, "timestamp": stamp, "flow_run_id": run}
        self._ask("/logs/", [line] * LINES)
        self._backdated[run] = now

    def _ask(self, path: str, body: Any) -> Any:
        """One request, again while the server is too busy to answer it."""
        deadline = time.monotonic() + _BUSY_S
        while True:
            try:
                return call_api(self.services, "POST", path, body, timeout_s=60)
            except ServiceError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)

    def _backdate(self) -> None:
        """Date the runs back, in the server's own file."""
        with closing(sqlite3.connect(self.state / "prefect" / "prefect.db", timeout=120)) as database:
            rows = [
                (datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S.%f"), str(uuid.UUID(run)))
                for run, now in self._backdated.items()
            ]
            database.executemany("UPDATE flow_run SET end_time = ? WHERE id = ?", rows)
            database.commit()

    def _vacuumed(self, now: float) -> dict[str, int]:
        """Wait until the server has removed what is old, as it does hourly; what it then has.

        Its own clock is today's: what is old at the time of the week is dated back once more, past that.
        """
        oldest = now - self.config.server_days * _DAY_S
        gone = [run for run, made in self._backdated.items() if made < oldest]
        stay = len(self._backdated) - len(gone)
        with closing(sqlite3.connect(self.state / "prefect" / "prefect.db", timeout=120)) as database:
            today = datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
            database.executemany(
                "UPDATE flow_run SET end_time = ? WHERE id = ?",
                [(today, run) for run, made in self._backdated.items() if made >= oldest],
            )
            database.commit()
            deadline = time.monotonic() + _VACUUM_S
            while True:
                (runs,) = database.execute("SELECT count(*) FROM flow_run").fetchone()
                (lines,) = database.execute("SELECT count(*) FROM log").fetchone()
                if runs == stay and lines == stay * LINES:
                    break
                assert time.monotonic() < deadline, (
                    f"Prefect keeps {runs} runs and {lines} lines; {stay} runs should stay"
                )
                time.sleep(1.0)
        for run in gone:
            del self._backdated[run]
        return {"flow_runs": runs, "log_lines": lines, "removed": len(gone)}

    # ---- processes -----------------------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
        environment |= {
            **self.config.prefect_environment(),
            "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "3",
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ORPHAN_CLEANUP_LOOP_SECONDS": "3",
        }
        words = ["-m", "flows.serve", name, "--port", str(self.ports[name]), "--state", str(self.state)]
        with (self.state / "logs" / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen([sys.executable, *words], env=environment, stdout=log, stderr=log)

    def _wait(self, name: str, url: str) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except OSError:
                text = (self.state / "logs" / f"{name}.log").read_text()[-2000:]
                assert time.monotonic() < deadline, text
                assert self._processes[name].poll() is None, text
                time.sleep(0.5)


def _size(database: Path) -> int:
    return sum(path.stat().st_size for path in database.parent.glob(database.name + "*"))


def _memory_mb(pid: int) -> int:
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return round(sum(process.memory_full_info().pss for process in family) / 1e6)
