"""Runs, metrics, datasets, models and files for a tracking server, recorded on disk first: no training waits for a server.

Every method writes into the outbox (`storage/outbox.py`) and returns; a thread sends (`storage/outbox_sender.py`). What a server
does not take before a run ends is sent by the next start.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from storage.errors import StorageError
from storage.files import naming_path, temporary_path
from storage.outbox import Record, RefusedError, ServerAwayError, UploadError, points_record
from storage.outbox_sender import sender_of

_EMPTY_DATABASE_BYTES = 2**21  # MLflow 3.17's tables without a run: 1.0 MB, and as much for SQLite's journal
_CONTACT_S = 10.0
_TABLES_S = 60.0  # to make the tables of a new file, on a busy machine
_SHORT_S = 1.0
_STOPPED_S = 5.0  # a run that is being stopped has to end soon: whoever stops it kills it at last
_EXPERIMENT_KIND = "mlflow.experimentKind"
_RUNS_AND_METRICS = "custom_model_development"  # else MLflow 3 shows an experiment as one of GenAI traces
_VIEW = "mlflow.sharedViewState.prdit"  # shown where an address has viewStateShareKey=prdit
logger = logging.getLogger("prdit.tracking")


class TrackingUnavailableError(StorageError, ConnectionError):
    """A tracking address that can never work: malformed, or what answers there is no MLflow or refuses the login."""


class Tracker:
    """Runs of one experiment on one tracking server.

    Runs are named by ids of our own, which exist before the server has heard of them. The first tracker of a process for an
    address waits for its answer, and warns where there is none.

    Args:
        uri: tracking URI (`http://127.0.0.1:5000`, `sqlite:////abs/path.db`).
        experiment: experiment name, made when missing.
        outbox: folder of what is not sent, the same for all processes of a working directory.
        commit: git commit of the code that runs, where it is known.
        columns: metrics in the table of runs at the addresses that prdit gives; MLflow's default table shows none.

    Raises:
        TrackingUnavailableError: the address can never work.
        UnwritableError: the outbox or the local file cannot be written.
    """

    def __init__(
        self, uri: str, experiment: str, outbox: Path, *, commit: str | None = None, columns: Sequence[str] = ()
    ) -> None:
        self.uri = uri
        self._experiment_name = experiment
        self._commit = commit
        tags = {_EXPERIMENT_KIND: _RUNS_AND_METRICS} | ({_VIEW: _view(columns)} if columns else {})
        artifacts: str | None = None  # a server has its own; with a local file MLflow would use ./mlruns
        if uri.startswith("sqlite:///"):
            database = Path(uri.removeprefix("sqlite:///"))
            _check_writable(database)
            artifacts = (database.parent / "mlflow-artifacts").resolve().as_uri()
        self._experiment = {"experiment": experiment, "experiment_tags": tags, "artifacts": artifacts}
        check_address(uri)
        self._sender = sender_of(outbox.resolve())
        self._outbox = self._sender.outbox
        self._outbox.close_abandoned()
        self._failing = False
        refused = self._sender.contact(uri, self._experiment, _TABLES_S if artifacts else _CONTACT_S)
        if refused:
            raise TrackingUnavailableError(
                f"MLFLOW_TRACKING_URI is {uri}, which cannot record runs ({refused}). Give the address of an MLflow server "
                "(`make up` starts a local one), or unset it to record into a local file."
            )

    @property
    def experiment_id(self) -> str:
        """The experiment's id; empty where the server has not answered yet."""
        return self._sender.experiment_id(self.uri, self._experiment_name)

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
        """Begin a run and return our id of it.

        Args:
            name: what the page calls the run.
            parent: our id of the run it is a child of.
            source: what was run, for the column Source: `prdit/train-local`.
            tags: further tags.
            params: settings that runs are compared by, flat.
            note: description at the top of the run's page.
        Raises: UnwritableError: the outbox cannot be written.
        """
        all_tags = dict(tags) | {"mlflow.source.name": source, "mlflow.source.type": "LOCAL"}
        all_tags |= {"mlflow.source.git.commit": self._commit} if self._commit else {}
        all_tags |= {"mlflow.note.content": note} if note else {}
        run = self._outbox.create(
            {
                "uri": self.uri,
                **self._experiment,
                "name": name,
                "parent": parent,
                "tags": all_tags,
                "params": {key: str(value) for key, value in params.items()},
                "time_ms": _now_ms(),
            }
        )
        self._sender.added(run, now=True, new=True)
        return run

    def mlflow_id(self, run: str) -> str:
        """The id that the server gave a run; empty where it has not within a second."""
        return self._sender.run_id(run, _SHORT_S)

    def log_points(
        self,
        run: str,
        points: list[dict[str, Any]],
        *,
        prefix: str = "",
        model: str | None = None,
        read: tuple[Path, int] | None = None,
    ) -> bool:
        """Record metric points `{"step": n, name: value, …}`; True when they are on disk.

        Args:
            run: their run.
            points: `time_ms` gives a point's time (default: now); values that are not finite numbers are left out.
            prefix: put before every name.
            model: digest of the model the points describe, whose page then shows them too.
            read: the metrics file they come from, and how far it was read: what a killed process has not read is read from there.
        """
        stream = {"stream": str(read[0].resolve()), "read": read[1]} if read else {}
        record = points_record(points, prefix, _now_ms()) | {"model": model} | stream
        return self._record(run, record, now=not read)

    def set_tags(self, run: str, tags: Mapping[str, str]) -> bool:
        """Set tags of a run."""
        return self._record(run, {"op": "tags", "tags": {key: str(value) for key, value in tags.items()}})

    def log_file(self, run: str, path: Path) -> bool:
        """Upload one file into a run's artifacts, as it is now."""
        return self._record(run, {"op": "file"}, [path])

    def log_text(self, run: str, text: str, name: str) -> bool:
        """Write a text into a run's artifacts under a file name."""
        return self._record(run, {"op": "text", "text": text, "name": name})

    def log_image(self, run: str, path: Path, *, key: str, step: int) -> bool:
        """Show a PNG file as the image of a step; the page shows the images of one key with a slider over the steps."""
        made = int(path.stat().st_mtime * 1000)
        return self._record(run, {"op": "image", "key": key, "step": step, "time_ms": made}, [path])

    def end_run(self, run: str, status: str) -> bool:
        """Close a run: FINISHED, FAILED or KILLED. Nothing can be recorded of it any more."""
        return self._record(run, {"op": "end", "status": status, "time_ms": _now_ms()})

    def flush(self, *, stopped: bool = False) -> None:
        """`flush` of its outbox."""
        flush(self._outbox.folder, stopped=stopped)

    # -- inputs and outputs of runs -------------------------------------------------------------------------------------

    def log_dataset(self, run: str, name: str, digest: str, *, context: str, facts: Mapping[str, Any]) -> bool:
        """Name a dataset as input of a run.

        Args:
            run: the run.
            name: what it is; nothing that reveals where it is stored or who is in it.
            digest: `sha256:<hex>` of its content; the page shows its beginning, source and profile the whole.
            context: what it was read for: `training`, `evaluation`, …
            facts: further properties (counts, spacing), as JSON.
        """
        what = {"op": "dataset", "name": name, "digest": digest, "context": context, "facts": dict(facts)}
        return self._record(run, what)

    def log_model(
        self, run: str, name: str, files: Sequence[Path], *, digest: str, step: int, facts: Mapping[str, Any]
    ) -> bool:
        """Name a model as output of a run; its files are uploaded unless the experiment has a model with this digest.

        Args:
            run: the run.
            name: what the page calls the model.
            files: its files, safetensors and JSON: nothing that runs code when it is loaded. The last one describes it and is
                also among the run's own files.
            digest: `sha256:<hex>` of the checkpoint.
            step: optimiser steps of its weights.
            facts: what describes it, shown as the model's parameters.
        """
        params = {key: str(value) for key, value in facts.items()}
        return self._record(run, {"op": "model", "name": name, "digest": digest, "step": step, "facts": params}, files)

    def use_model(self, run: str, digest: str) -> bool:
        """Name the model with a digest as input of a run, where the experiment has it by then."""
        return self._record(run, {"op": "use_model", "digest": digest})

    def _record(self, run: str, record: Record, files: Sequence[Path] = (), *, now: bool = True) -> bool:
        """Add a record to a run; a failure is logged, because nothing that is only recorded may end a training."""
        try:
            kept = {"files": [self._outbox.keep(run, path) for path in files]} if files else {}
            self._outbox.append(run, record | kept)
        except OSError as error:
            if not self._failing:
                logger.warning("a run cannot be recorded for MLflow: %s", error)
            self._failing = True
            return False
        self._failing = False
        self._sender.added(run, now=now)
        return True


def attach(uri: str, run_id: str, files: Sequence[Path], *, folder: str, tags: Mapping[str, str]) -> str:
    """Put files and tags on a run that may have ended; at once, not through an outbox: who asks for it waits, and can ask again.

    Args:
        uri: tracking URI.
        run_id: id that the server gave the run.
        files: their names and content reveal nothing about where they are stored or who is in them.
        folder: of the run's artifacts.
        tags: to be set.
    Returns: why it could not be done; empty where it is done.
    """
    from storage.mlflow_server import Server

    try:
        Server(uri).attach(run_id, files, folder, tags)
    except (ServerAwayError, RefusedError, UploadError) as error:
        return str(error) or type(error).__name__
    return ""


def flush(outbox: Path, *, stopped: bool = False) -> None:
    """Wait while MLflow takes what this process recorded; for a server that does not answer, a second.

    Args:
        outbox: folder of what is not sent.
        stopped: the process is being stopped: wait a few seconds at most.
    """
    left = sender_of(outbox.resolve()).flush(_SHORT_S, _STOPPED_S if stopped else None)
    if left:
        logger.warning(
            "MLflow does not have all of %d runs yet. What it lacks is in %s; prdit's next start with this working folder sends it",
            left,
            outbox,
        )


def _now_ms() -> int:
    return int(time.time() * 1000)


def check_address(uri: str) -> None:
    """Refuse a web address that names no host. Raises: TrackingUnavailableError."""
    try:
        parts = urlsplit(uri)
        complete = parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number, a bracket that is not closed
        complete = False
    if uri.startswith(("http:", "https:")) and not complete:
        raise TrackingUnavailableError(
            f"MLFLOW_TRACKING_URI is {uri!r}, which is no address. Give one such as http://127.0.0.1:5000, or unset it to record "
            "into a local file."
        )


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
