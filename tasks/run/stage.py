"""How every stage runs: key, lock, verified cache hit or computation, commit, MLflow child run (`tasks/run/recording.py`).

A stage's body is a plain function that writes into its directory. A hit is verified by hash before it is used: a missing or damaged
artifact is computed again, with a warning. A failed or killed stage leaves its `work/` folder, from which the next try resumes.
"""

import logging
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from storage.artifacts import (
    PROVENANCE,
    SCRATCH,
    Kind,
    Ref,
    commit_artifact,
    committed_ref,
    load_provenance,
    stage_key,
    verify_artifact,
)
from storage.documents.pending import Pending
from storage.errors import StorageError, UnreadableError
from storage.files import fsync_directory, naming_path, remove_leftovers
from storage.locks import locked
from storage.tracking import Tracker, flush
from tasks.run.recording import StageRecording

TRACKING = "tracking"  # in the working folder: what MLflow does not have yet
LOCK = "stage.lock"  # in the scratch folder: held while a run works on the stage
logger = logging.getLogger("prdit.stage")


class RunContext(BaseModel):
    """Where a run works and reports: JSON-able, so that it can cross a task boundary.

    Attributes:
        workdir: folder of all stage directories.
        tracking_uri: MLflow server, or None to leave stages untracked.
        experiment: MLflow experiment.
        parent_run_id: our id of the run that the stages' runs are children of.
        tags: tags of every run.
        parameters: the settings that runs are compared by, by dotted key; a stage's run shows those of its stage.
        columns: metrics that the table of runs shows.
        repeat_command: the command that repeats this run, for the report.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workdir: Path
    tracking_uri: str | None = None
    experiment: str = "prdit"
    parent_run_id: str | None = None
    tags: dict[str, str] = {}
    parameters: dict[str, Any] = {}
    columns: tuple[str, ...] = ()
    repeat_command: str | None = None

    def tracker(self) -> Tracker | None:
        """The tracker of this run; None where it is not tracked."""
        if self.tracking_uri is None:
            return None
        outbox = self.workdir / TRACKING
        return Tracker(self.tracking_uri, self.experiment, outbox, commit=git_commit(), columns=self.columns)

    def flush(self, *, stopped: bool = False) -> None:
        """Wait while MLflow takes what was recorded, see `storage.tracking.flush`."""
        if self.tracking_uri is not None:
            flush(self.workdir / TRACKING, stopped=stopped)


Point = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """Identity of a stage, and what MLflow shows of its artifact.

    Attributes:
        name: as in the cache key and the directory.
        kind: of the artifact it makes.
        recipe: raised whenever the same inputs and configuration would give other bytes.
        files: files of the artifact that are uploaded to the stage's MLflow run.
        points: metric points (`{"step": n, name: value, …}`) read from the artifact's directory, so that a cached stage
            shows the numbers of the one that ran.
        figures: names of the metrics whose last values stand for the stage; all where empty.
        streams: whether the body sends its points itself while it runs.
        section: dotted key of its settings in a configuration; its name where empty.
    """

    name: str
    kind: Kind
    recipe: int
    files: tuple[str, ...] = ()
    points: Callable[[Path], list[Point]] = field(default=lambda directory: [], compare=False)
    figures: tuple[str, ...] = ()
    streams: bool = False
    section: str = ""


@dataclass(frozen=True)
class StageRun:
    """What a body is given besides its inputs.

    Attributes:
        directory: where the artifact's files go.
        tracker: for metrics while the stage runs, or None.
        run_id: our id of the stage's run, empty where there is none.
        provenance: what `commit_artifact` is called with, for a body that commits in a subprocess.
    """

    directory: Path
    tracker: Tracker | None
    run_id: str
    provenance: dict[str, Any]


class StageOutcome(BaseModel):
    """What a stage returns.

    Attributes:
        ref: the artifact.
        cached: True when a verified earlier artifact was used and nothing ran.
        seconds: wall time of the stage, verification included.
        mlflow_run_id: the stage's run, empty where untracked or while the server does not answer.
        figures: the stage's results as numbers, by their names in MLflow (`evaluate/hu_std_ratio`).
        directory: where the stage worked; `prdit prune` keeps those of the newest runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ref: Ref
    cached: bool
    seconds: float
    mlflow_run_id: str
    figures: dict[str, float] = {}
    directory: str = ""


Body = Callable[[StageRun], Ref | None]


def run_stage(
    stage: Stage,
    *,
    inputs: dict[str, Ref],
    config: dict[str, Any],
    context: RunContext,
    body: Body,
    still_valid: Callable[[Path], bool] | None = None,
    made: Callable[[Path], Ref | None] | None = None,
) -> StageOutcome:
    """Run one stage, or take its artifact from the cache.

    Args:
        stage: which.
        inputs: references it reads, by role.
        config: its configuration's key fields.
        context: where the run works and reports.
        body: writes the artifact's files; may commit itself (a subprocess does) and return the reference.
        still_valid: extra condition on a hit beyond its hashes (a store that has not grown, say).
        made: finds the snapshot that the stage made, where its directory is known.
    """
    began = time.monotonic()
    directory = context.workdir.resolve() / stage.name / stage_key(stage.name, stage.recipe, inputs, config)
    recording = StageRecording(stage, inputs, context, directory)
    with locked(directory / SCRATCH / LOCK):  # a second run of the same stage waits for the artifact
        remove_leftovers(directory, below=True)
        ref = _verified_hit(stage, directory, still_valid)
        cached = ref is not None
        run_id = recording.start(cached_from=load_provenance(ref).mlflow_run_id if ref else None, cached=cached)
        try:
            if ref is None:
                extra = {"code_version": code_version(), "mlflow_run_id": recording.mlflow_id()}
                run = StageRun(directory, recording.tracker, run_id, {"extra": extra})
                ref = _compute(stage, inputs, config, run, body, began)
            else:
                logger.info("%s: cached, verified by hash (%s)", stage.name, directory)
        except BaseException as error:
            recording.fail(error)
            raise
    seconds = time.monotonic() - began
    try:
        figures = recording.finish(ref, cached=cached, seconds=seconds, made=made)
    except BaseException as error:  # a stop signal that comes now
        recording.fail(error)
        raise
    return StageOutcome(
        ref=ref,
        cached=cached,
        seconds=seconds,
        mlflow_run_id=recording.mlflow_id(),
        figures=figures,
        directory=str(directory),
    )


def with_owners(settings: dict[str, Any], owners: dict[str, str]) -> dict[str, Any]:
    """Key fields of a stage together with the packages of others that decide its result: another version is another result."""
    return settings | ({"packages": owners} if owners else {})


def _compute(
    stage: Stage, inputs: dict[str, Ref], config: dict[str, Any], run: StageRun, body: Body, began: float
) -> Ref:
    provenance: dict[str, Any] = {
        "stage": stage.name,
        "recipe": stage.recipe,
        "inputs": inputs,
        "config": config,
        **run.provenance,
    }
    Pending(stage=stage.name, inputs=inputs, config=config).save(run.directory / SCRATCH)
    ref = body(StageRun(run.directory, run.tracker, run.run_id, provenance))
    if ref is None:
        provenance["extra"]["seconds"] = round(time.monotonic() - began, 3)
        ref = commit_artifact(run.directory, stage.kind, **provenance)
    return ref


def _verified_hit(stage: Stage, directory: Path, still_valid: Callable[[Path], bool] | None) -> Ref | None:
    """The committed artifact if it is undamaged; otherwise remove what is left of it (scratch stays) and log why.

    Raises: UnreadableError: it is not known to be damaged, so nothing is removed.
    """
    try:
        ref = committed_ref(directory)
        if ref is None:
            return None  # never finished: the body resumes from, or overwrites, what is there
        verify_artifact(ref)
        if still_valid is None or still_valid(directory):
            return ref
        logger.info("%s: what it made has changed since; running again", stage.name)
    except UnreadableError:
        raise
    except StorageError as error:
        logger.warning("%s: the cached artifact is incomplete or damaged and is made again: %s", stage.name, error)
    with naming_path(directory):
        _clear(directory)
    return None


def _clear(directory: Path) -> None:
    (directory / PROVENANCE).unlink(missing_ok=True)
    fsync_directory(directory)
    for path in directory.iterdir():
        if path.name == SCRATCH:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """The commit of the checkout this code runs from; None outside a checkout, or without git."""
    return _git("rev-parse", "HEAD")


@lru_cache(maxsize=1)
def code_version() -> str:
    """Version of the code: package version, with the git commit (and `-dirty`) where it runs from a checkout."""
    package = version("prdit")
    described = _git("describe", "--always", "--dirty", "--abbrev=12", "--match", "v[0-9]*")
    return f"{package}+{described}" if described else package


def _git(*arguments: str) -> str | None:
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
