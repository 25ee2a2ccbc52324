"""The only module that uses MLflow: runs, metrics, datasets, models and artifacts over a client that never stops a training.

A run is refused at the start when the server does not answer (nothing is lost yet). Later failures are logged once and retried;
a stage's metrics file keeps the points that were not sent, so once the server answers again it receives all of them.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Before mlflow is imported: no telemetry, and a server that does not answer costs seconds, not minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # its links open the page for GenAI

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
)
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_GIT_COMMIT,
    MLFLOW_LOGGED_MODELS,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
)

from storage.errors import StorageError
from storage.files import naming_path, temporary_path

_BATCH = 900  # MLflow accepts 1000 metrics per request
_MAX_PARAM = 6000
_EMPTY_DATABASE_BYTES = 2**21  # MLflow 3.17's tables without a run: 1.0 MB, and as much for SQLite's journal
_MAX_DIGEST = 36
_UPLOAD_TIMEOUT_S = 120  # a server answers an upload of weights only after it has stored them as artifacts
_EXPERIMENT_KIND = "mlflow.experimentKind"
_RUNS_AND_METRICS = "custom_model_development"  # else MLflow 3 shows an experiment as one of GenAI traces
_VIEW = "mlflow.sharedViewState.prdit"  # shown where an address has viewStateShareKey=prdit
_MODEL_DIGEST = "prdit.digest"
logger = logging.getLogger("prdit.tracking")


class TrackingUnavailableError(StorageError, ConnectionError):
    """The tracking server does not answer."""


class Tracker:
    """Runs of one experiment on one tracking server.

    Args:
        uri: tracking URI (`http://127.0.0.1:5000`, `sqlite:////abs/path.db`).
        experiment: experiment name, made when missing.
        commit: git commit of the code that runs, where it is known.
        columns: metrics in the table of runs at the addresses that prdit gives; MLflow's default table shows none.

    Raises:
        TrackingUnavailableError: the server does not answer.
        UnwritableError: the local file cannot be written.
    """

    def __init__(self, uri: str, experiment: str, *, commit: str | None = None, columns: Sequence[str] = ()) -> None:
        self.uri = uri
        self._commit = commit
        self._experiment_tags = {_EXPERIMENT_KIND: _RUNS_AND_METRICS} | ({_VIEW: _view(columns)} if columns else {})
        self._artifacts: str | None = None  # a server has its own; with a local file MLflow would use ./mlruns
        if uri.startswith("sqlite:///"):
            database = Path(uri.removeprefix("sqlite:///"))
            _check_writable(database)
            self._artifacts = (database.parent / "mlflow-artifacts").resolve().as_uri()
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
        if found is None:
            try:
                tags = dict(self._experiment_tags)
                return str(self._client.create_experiment(name, artifact_location=self._artifacts, tags=tags))
            except MlflowException:  # another run made it between the two calls
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        for key, value in self._experiment_tags.items():
            if found.tags.get(key) != value:
                self._client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    # -- runs -------------------------------------------------------------------------------------------------------

    def start_run(
        self,
        name: str,
        *,
        parent: str | None,
        source: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        note: str = "",
    ) -> str:
        """Create a run and return its id; an empty id where the server does not answer any more.

        Args:
            name: what the page calls the run.
            parent: run it is a child of.
            source: what was run, for the column Source: `prdit/train-local`.
            tags: further tags.
            params: settings that runs are compared by, flat.
            note: description at the top of the run's page.
        """
        all_tags = dict(tags) | {MLFLOW_SOURCE_NAME: source, MLFLOW_SOURCE_TYPE: "LOCAL"}
        all_tags |= {MLFLOW_GIT_COMMIT: self._commit} if self._commit else {}
        all_tags |= {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
        all_tags |= {MLFLOW_RUN_NOTE: note} if note else {}
        run_id = ""

        def create() -> None:
            nonlocal run_id
            run_id = str(self._client.create_run(self.experiment_id, run_name=name, tags=all_tags).info.run_id)
            values = [Param(key, str(value)[:_MAX_PARAM]) for key, value in params.items()]
            for start in range(0, len(values), 100):
                self._client.log_batch(run_id, params=values[start : start + 100])

        self._attempt(create)
        return run_id

    def log_points(
        self, run_id: str, points: list[dict[str, Any]], *, prefix: str = "", model_id: str | None = None
    ) -> bool:
        """Log metric points `{"step": n, name: value, …}` in batches; True when the server has them all.

        Args:
            run_id: their run.
            points: `time_ms` gives a point's time (default: now); values that are not finite numbers are left out.
            prefix: put before every name.
            model_id: the model the points describe, whose page then shows them too.
        """
        now = int(time.time() * 1000)
        metrics = [
            Metric(prefix + name, float(value), int(point.get("time_ms", now)), int(point["step"]), model_id=model_id)
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

    def log_file(self, run_id: str, path: Path) -> bool:
        """Upload one file (or a folder's files) into a run's artifacts."""
        upload = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        return self._try(run_id, lambda: upload(run_id, str(path)))

    def log_text(self, run_id: str, text: str, name: str) -> bool:
        """Write a text into a run's artifacts under a file name."""
        return self._try(run_id, lambda: self._client.log_text(run_id, text, name))

    def end_run(self, run_id: str, status: str) -> bool:
        """Close a run: FINISHED, FAILED or KILLED."""
        return self._try(run_id, lambda: self._client.set_terminated(run_id, status))

    # -- inputs and outputs of runs -------------------------------------------------------------------------------------

    def log_dataset(self, run_id: str, name: str, digest: str, *, context: str, facts: Mapping[str, Any]) -> bool:
        """Name a dataset as input of a run.

        Args:
            run_id: the run.
            name: what it is; nothing that reveals where it is stored or who is in it.
            digest: `sha256:<hex>` of its content; the page shows its beginning, source and profile the whole.
            context: what it was read for: `training`, `evaluation`, …
            facts: further properties (counts, spacing), as JSON.
        """
        short = digest.removeprefix("sha256:")[:_MAX_DIGEST]
        profile = json.dumps({"digest": digest, **facts})
        dataset = Dataset(name, short, "prdit", json.dumps({"digest": digest}), profile=profile)
        entry = DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])
        return self._try(run_id, lambda: self._client.log_inputs(run_id, datasets=[entry]))

    def find_model(self, digest: str) -> str | None:
        """The id of the experiment's model with this digest, or None where it was not uploaded (or the server does not answer)."""
        found = self._find(digest)
        return str(found.model_id) if found else None

    def _find(self, digest: str) -> LoggedModel | None:
        found: list[LoggedModel] = []

        def search() -> None:
            models = self._client.search_logged_models(
                [self.experiment_id], filter_string=f"tags.`{_MODEL_DIGEST}` = '{digest}'"
            )
            found.extend(model for model in models if model.status == LoggedModelStatus.READY)

        self._attempt(search)
        return found[0] if found else None

    def log_model(
        self, run_id: str, name: str, files: Sequence[Path], *, digest: str, step: int, facts: Mapping[str, Any]
    ) -> str | None:
        """Name a model as output of a run; its files are uploaded unless the experiment has a model with this digest.

        Args:
            run_id: the run.
            name: what the page calls the model.
            files: its files, safetensors and JSON: nothing that runs code when it is loaded. The last one describes it and is
                also among the run's own files.
            digest: `sha256:<hex>` of the checkpoint.
            step: optimiser steps of its weights.
            facts: what describes it, shown as the model's parameters.
        Returns: the model's id, or None where it could not be logged; that never ends a run.
        """
        if not run_id:
            return None
        model = self._find(digest) or self._upload_model(run_id, name, files, digest, facts)
        if model is None:
            return None
        self._try(run_id, lambda: self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)]))
        if (
            model.source_run_id != run_id
        ):  # the page's column Models reads this tag for every run but the one that made the model
            made = datetime.fromtimestamp(model.creation_timestamp / 1000, UTC).replace(tzinfo=None)
            entry = {
                "run_id": run_id,
                "artifact_path": files[-1].name,
                "flavors": {name: {}},
                "utc_time_created": str(made),
            }
            self.set_tags(run_id, {MLFLOW_LOGGED_MODELS: json.dumps([entry])})
        return str(model.model_id)

    def log_model_input(self, run_id: str, model_id: str) -> bool:
        """Name a model as input of a run."""
        return self._try(run_id, lambda: self._client.log_inputs(run_id, models=[LoggedModelInput(model_id)]))

    def _upload_model(
        self, run_id: str, name: str, files: Sequence[Path], digest: str, facts: Mapping[str, Any]
    ) -> LoggedModel | None:
        model: LoggedModel | None = None

        def upload() -> None:
            nonlocal model
            model = self._client.create_logged_model(
                self.experiment_id,
                name=name,
                source_run_id=run_id,
                tags={_MODEL_DIGEST: digest},
                params={key: str(value) for key, value in facts.items()},
                model_type="prdit",
            )
            with _upload_timeout():
                for path in files:
                    self._client.log_model_artifact(model.model_id, str(path))
            self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)

        if self._attempt(upload):
            return model
        if model is not None:
            failed = model.model_id
            self._attempt(lambda: self._client.finalize_logged_model(failed, LoggedModelStatus.FAILED))
        return None

    # -- failures -----------------------------------------------------------------------------------------------------

    def _try(self, run_id: str, call: Callable[[], Any]) -> bool:
        """Call the server about a run; nothing where the run could not even be created."""
        return bool(run_id) and self._attempt(call)

    def _attempt(self, call: Callable[[], Any]) -> bool:
        try:
            call()
        except Exception as error:  # noqa: BLE001  # artifact stores raise whatever their clients raise; none may end a training
            if not self._failing:
                logger.warning(
                    "MLflow at %s does not answer or refuses (%s); the run goes on, its results stay in the stage directories",
                    self.uri,
                    _first_line(error),
                )
            self._failing = True
            return False
        if self._failing:
            logger.warning("MLflow at %s answers again", self.uri)
        self._failing = False
        return True


def _check_writable(database: Path) -> None:
    """Refuse a file that cannot be written, or has no room for MLflow's tables, where SQLite would retry for minutes.

    Raises: UnwritableError.
    """
    with naming_path(database):
        database.parent.mkdir(parents=True, exist_ok=True)
        if database.exists():
            database.open("r+b").close()
        probe = temporary_path(database)
        try:
            probe.write_bytes(bytes(_EMPTY_DATABASE_BYTES))
        finally:
            probe.unlink(missing_ok=True)


def _view(columns: Sequence[str]) -> str:
    """The state of a table of runs, as MLflow's page saves it for a shared view: what MLflow shows anyway, and these metrics."""
    names = ["attributes.`Source`", "attributes.`Models`", "attributes.`Dataset`"]
    return json.dumps(
        {
            "searchFilter": "",
            "orderByKey": "attributes.start_time",
            "orderByAsc": False,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": [*names, *(f"metrics.`{column}`" for column in columns)],
            "runsExpanded": {},
            "runsPinned": [],
            "runsHidden": [],
        }
    )


@contextmanager
def _upload_timeout() -> Iterator[None]:
    """More time for the requests inside: weights are large, and a server may pass them on before it answers."""
    before = MLFLOW_HTTP_REQUEST_TIMEOUT.get_raw()
    MLFLOW_HTTP_REQUEST_TIMEOUT.set(_UPLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        MLFLOW_HTTP_REQUEST_TIMEOUT.set(before)


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    if "Max retries exceeded" in text:
        text = "connection refused" if "refused" in text.lower() else "no connection"
    return text[:200] or type(error).__name__
