"""Which runs and models of an MLflow server are not kept any more.

Runs form trees: a run of the pipeline and its stages. A tree goes as a whole, once its root has ended long ago, and none of it made
a checkpoint that is kept or belongs to a run whose stages are kept.
"""

import os
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from storage.documents.run_record import RunDocument
from storage.mlflow_server import EndedRun, RecordedModel, Server

_DAY_MS = 86_400_000
_GC_S = 1800.0


@dataclass(frozen=True)
class OldRuns:
    """Runs and logged models that are not kept any more, by id."""

    runs: tuple[str, ...]
    models: tuple[str, ...]


def runs_of_newest(workdir: Path, count: int) -> set[str]:
    """MLflow's ids of the newest recorded runs. Raises: StorageError: a record is damaged."""
    records = map(RunDocument.read, RunDocument.paths(workdir)[:count])
    return {record.mlflow_run_id for record in records if record.mlflow_run_id}


def run_of_each_experiment(workdir: Path) -> set[str]:
    """MLflow's id of one recorded run for each experiment that runs of a working folder are in.

    Raises: StorageError: a record is damaged.
    """
    records = map(RunDocument.read, reversed(RunDocument.paths(workdir)))
    places = {(record.mlflow_uri, record.mlflow_experiment_id): record.mlflow_run_id for record in records}
    return set(places.values()) - {""}


def old_runs(
    server: Server,
    days: float,
    *,
    experiment: str,
    beside: Collection[str],
    kept_runs: Collection[str],
    kept_digests: Collection[str],
) -> OldRuns:
    """What is not kept any more of prdit's own runs in the experiments of an installation; nothing else of a server is touched.

    Args:
        server: to be asked.
        days: since the root of a tree ended.
        experiment: name of the experiment that its configuration names.
        beside: ids of runs whose experiments are its own, too.
        kept_runs: ids of runs whose trees stay.
        kept_digests: digests of checkpoints; the trees of the runs that made them stay.
    Raises: ServerAwayError, RefusedError.
    """
    before = int(time.time() * 1000 - days * _DAY_MS)
    ended = {run.run_id: run for run in server.ended_before(before, experiment=experiment, beside=beside)}
    models = server.models()
    kept = {*kept_runs, *(model.source_run for model in models if model.digest in kept_digests)}
    return choose(ended, models, kept)


def choose(ended: dict[str, EndedRun], models: Collection[RecordedModel], kept: Collection[str]) -> OldRuns:
    """`old_runs` of what the server answered.

    Args:
        ended: runs that ended long ago, by id.
        models: all logged models.
        kept: ids of runs whose trees stay.
    """
    roots = {run_id: _root(ended, run_id) for run_id in ended}
    stay = {roots[run_id] for run_id in kept if run_id in roots}
    gone = [run_id for run_id, root in roots.items() if root in ended and root not in stay and root not in kept]
    gone.sort(key=lambda run_id: roots[run_id] == run_id)  # roots last: a tree that was removed in part stays a tree
    went = set(gone)
    return OldRuns(tuple(gone), tuple(model.model_id for model in models if model.digest and model.source_run in went))


def _root(ended: dict[str, EndedRun], run_id: str) -> str:
    """The first run of a tree; one that is not among `ended` where that has not ended long ago, or was deleted."""
    seen = {run_id}
    while run_id in ended and (parent := ended[run_id].parent) and parent not in seen:
        run_id = parent
        seen.add(parent)
    return run_id


def trash(server: Server, old: OldRuns) -> None:
    """Mark models and runs as deleted: they are in MLflow's trash. Raises: ServerAwayError, RefusedError."""
    for model_id in old.models:
        server.delete_model(model_id)
    for run_id in old.runs:
        server.delete_run(run_id)


def empty_trash(uri: str, backend: str, artifacts: str | None, days: float) -> str:
    """Remove for good what is in MLflow's trash for some days, whoever deleted it; `mlflow gc` works on the database itself.

    Args:
        uri: tracking address of the server, which knows the artifacts.
        backend: address of its database.
        artifacts: where it keeps artifacts; None: where its runs say.
        days: in the trash.
    Returns: what it complained about; empty where it did not.
    """
    command = [sys.executable, "-m", "mlflow", "gc", "--older-than", f"{days:g}d", "--tracking-uri", uri]
    if artifacts:
        command += ["--artifacts-destination", artifacts]
    # It takes the database from here while the option names the server: a password does not stand on a command line.
    environment = os.environ | {"MLFLOW_TRACKING_URI": backend, "MLFLOW_DISABLE_TELEMETRY": "true"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_GC_S, check=False)
    except subprocess.TimeoutExpired:
        return f"`mlflow gc` did not end within {_GC_S:.0f} s; the next maintenance goes on"
    if done.returncode == 0:
        return ""
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"`mlflow gc` ended with exit code {done.returncode}: {last[:300]}"
