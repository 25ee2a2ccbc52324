"""The one door to MLflow: runs, tags, batched metrics and artifacts over a client that never stops a training.

A run is refused at the start when the server does not answer (nothing is lost yet). Later failures are named once and retried;
the metrics file of a stage is the spool, so a server that comes back gets every point.
"""

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Both before mlflow is imported: no telemetry, and a dead server costs seconds, not minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from storage.errors import StorageError

_BATCH = 900  # MLflow accepts 1000 metrics a request
_MAX_PARAM = 6000
logger = logging.getLogger("prdit.tracking")


class TrackingUnavailableError(StorageError, ConnectionError):
    """The tracking server does not answer."""


class Tracker:
    """Runs of one experiment on one tracking server.

    Args:
        uri: tracking URI (`http://127.0.0.1:5000`, `sqlite:////abs/path.db`).
        experiment: experiment name, made when missing.

    Raises: TrackingUnavailableError: the server does not answer.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = uri
        self._artifacts: str | None = None  # a server knows its own place; a local file would take ./mlruns of any cwd
        if uri.startswith("sqlite:///"):
            folder = Path(uri.removeprefix("sqlite:///")).parent
            folder.mkdir(parents=True, exist_ok=True)
            self._artifacts = (folder / "mlflow-artifacts").resolve().as_uri()
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self.experiment_id = self._experiment(experiment)
        except (MlflowException, OSError) as error:
            raise TrackingUnavailableError(
                f"The MLflow server at {uri} does not answer ({_first_line(error)}). Start it (`make up` starts a local one), "
                "or unset MLFLOW_TRACKING_URI to record into a local file."
            ) from error
        self._failing = False

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name, artifact_location=self._artifacts))
        except MlflowException:  # another run made it between the two calls
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def start_run(self, name: str, *, parent: str | None, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
        """Create a run and return its id; an empty id where the server does not answer any more."""
        all_tags = dict(tags) | ({MLFLOW_PARENT_RUN_ID: parent} if parent else {})
        try:
            run = self._client.create_run(self.experiment_id, run_name=name, tags=all_tags)
            run_id = str(run.info.run_id)
            values = [Param(key, str(value)[:_MAX_PARAM]) for key, value in flatten(params)]
            for start in range(0, len(values), 100):
                self._client.log_batch(run_id, params=values[start : start + 100])
            return run_id
        except (MlflowException, OSError) as error:
            self._warn(error)
            return ""

    def log_points(self, run_id: str, points: list[dict[str, Any]]) -> bool:
        """Log metric points `{"step": n, name: value, …}` in batches; True when the server has them all."""
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, float(value), int(point.get("time_ms", now)), int(point["step"]))
            for point in points
            for name, value in point.items()
            if name not in ("step", "time_ms") and isinstance(value, int | float) and math.isfinite(value)
        ]
        return self._try(
            run_id,
            lambda: [
                self._client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
                for start in range(0, len(metrics), _BATCH)
            ],
        )

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> bool:
        """Set tags of a run."""
        values = [RunTag(key, str(value)) for key, value in tags.items()]
        return self._try(run_id, lambda: self._client.log_batch(run_id, tags=values))

    def log_file(self, run_id: str, path: Path, folder: str | None = None) -> bool:
        """Upload one file (or a folder's files) into a run's artifacts."""
        upload = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        return self._try(run_id, lambda: upload(run_id, str(path), folder))

    def end_run(self, run_id: str, status: str) -> bool:
        """Close a run: FINISHED, FAILED or KILLED."""
        return self._try(run_id, lambda: self._client.set_terminated(run_id, status))

    def _try(self, run_id: str, call: Any) -> bool:
        if not run_id:
            return False
        try:
            call()
        except (MlflowException, OSError) as error:
            self._warn(error)
            return False
        if self._failing:
            logger.warning("MLflow at %s answers again", self.uri)
        self._failing = False
        return True

    def _warn(self, error: Exception) -> None:
        if not self._failing:
            logger.warning(
                "MLflow at %s does not answer (%s); the run goes on, its metrics stay in metrics.jsonl",
                self.uri,
                _first_line(error),
            )
        self._failing = True


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names, in order."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    if "Max retries exceeded" in text:
        text = "connection refused" if "refused" in text.lower() else "no connection"
    return text[:200] or type(error).__name__
