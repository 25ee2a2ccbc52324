"""What MLflow shows of a stage: the settings that runs are compared by, its figures, its dataset, the models it read and made.

No path is sent: those of sources, stores and working directories may reveal who was scanned.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from storage.artifacts import PROVENANCE, Ref, input_ref, load_provenance
from storage.checkpoints import WEIGHTS_FILES
from storage.documents.checkpoint import Checkpoint
from storage.errors import StorageError
from storage.snapshots import load_snapshot
from storage.tracking import Tracker

if TYPE_CHECKING:
    from tasks.run.stage import RunContext, Stage

logger = logging.getLogger("prdit.tracking")
# what stages read a snapshot for; the others train
_PURPOSES = {"ingest": "ingest", "split": "split", "evaluate": "evaluation", "measure": "evaluation"}


class StageRecording:
    """The MLflow run of one stage; without tracking, only its figures.

    Args:
        stage: which.
        inputs: references it reads, by role.
        context: where the run reports.
        directory: the stage's directory.

    Raises: TrackingUnavailableError: the tracking address can never work (nothing has started yet).
    """

    def __init__(self, stage: "Stage", inputs: dict[str, Ref], context: "RunContext", directory: Path) -> None:
        self.tracker = context.tracker()
        self._stage, self._inputs, self._context, self._directory = stage, inputs, context, directory
        self._run_id = ""

    def start(self, *, cached: bool, cached_from: str | None) -> str:
        """Begin the run and return our id of it, empty without tracking.

        Args:
            cached: whether the stage's artifact was found.
            cached_from: the run that made the artifact, where it had one.
        """
        if self.tracker is None:
            return ""
        stage, key = self._stage.name, self._directory.name
        tags = self._context.tags | {"prdit.stage": stage, "prdit.key": key}
        if cached:
            tags["prdit.cached_from"] = cached_from or key
        prefix = (self._stage.section or stage) + "."
        params = {name: value for name, value in self._context.parameters.items() if name.startswith(prefix)}
        self._run_id = self.tracker.start_run(
            stage, parent=self._context.parent_run_id, source=f"prdit/{stage}", tags=tags, params=params
        )
        return self._run_id

    def mlflow_id(self) -> str:
        """The run's id on the server; empty without tracking, or where the server does not answer."""
        return self.tracker.mlflow_id(self._run_id) if self.tracker else ""

    def fail(self, error: BaseException) -> None:
        """Close the run of a stage that failed; the message may name files, so only the error's class is sent."""
        if self.tracker:
            self.tracker.set_tags(self._run_id, {"prdit.error": type(error).__name__})
            self.tracker.end_run(self._run_id, "FAILED" if isinstance(error, Exception) else "KILLED")

    def finish(
        self, ref: Ref, *, cached: bool, seconds: float, made: Callable[[Path], Ref | None] | None = None
    ) -> dict[str, float]:
        """Close the run of an artifact that is made or found, and return its figures by MLflow's names.

        Args:
            ref: the artifact.
            cached: whether it was found.
            seconds: the stage took.
            made: finds the snapshot that the stage made, which is then the run's dataset.
        """
        stage, prefix = self._stage, self._stage.name + "/"
        points = stage.points(self._directory)
        last = {n: float(v) for point in points for n, v in point.items() if isinstance(v, int | float)}  # not its note
        figures = {prefix + n: v for n, v in last.items() if n in (stage.figures or last.keys() - {"step", "time_ms"})}
        if self.tracker is None:
            return figures
        self._log_data(self.tracker, made)
        used = self._used_model(self.tracker)
        if cached or not stage.streams:
            self.tracker.log_points(
                self._run_id, points, prefix=prefix, model=used if stage.kind == "report" and not cached else None
            )
        self.tracker.log_points(self._run_id, [{"step": 0, f"seconds/{stage.name}": seconds}])
        if ref.kind == "checkpoint":
            log_checkpoint(self.tracker, self._run_id, ref)
        if not cached:
            for name in stage.files:
                self.tracker.log_file(self._run_id, self._directory / name)
            record = json.dumps(load_provenance(ref).without_uris(), indent=2)
            self.tracker.log_text(self._run_id, record, PROVENANCE)
        self.tracker.set_tags(self._run_id, {"prdit.digest": ref.digest})
        self.tracker.end_run(self._run_id, "FINISHED")
        return figures

    def _log_data(self, tracker: Tracker, made: Callable[[Path], Ref | None] | None) -> None:
        snapshot = made(self._directory) if made else self._inputs.get("snapshot")
        if snapshot:
            log_snapshot(tracker, self._run_id, snapshot, _PURPOSES.get(self._stage.name, "training"))

    def _used_model(self, tracker: Tracker) -> str | None:
        """The digest of the checkpoint that the stage read, or that its samples were drawn from, named as input of the run."""
        checkpoints = [ref for ref in self._inputs.values() if ref.kind == "checkpoint"]
        checkpoint = checkpoints[-1] if checkpoints else None
        if "samples" in self._inputs:
            checkpoint = input_ref(self._inputs["samples"], "checkpoint")
        for each in checkpoints or ([checkpoint] if checkpoint else []):
            tracker.use_model(self._run_id, each.digest)
        return checkpoint.digest if checkpoint else None


def log_snapshot(tracker: Tracker, run_id: str, snapshot: Ref, purpose: str) -> None:
    """Name a snapshot of a volume store as dataset of a run.

    Args:
        tracker, run_id: the run.
        snapshot: its reference.
        purpose: what it was read for: `ingest`, `split`, `training` or `evaluation`.
    """
    try:
        listed = load_snapshot(snapshot)
    except StorageError as error:
        logger.warning("the snapshot is not named as dataset in MLflow: %s", error)
        return
    counts = {"num_volumes": len(listed.volumes), "num_patients": len(listed.patients)}
    facts = {"spacing_mm": listed.grid.spacing_mm, "interpolation": listed.grid.interpolation, **counts}
    tracker.log_dataset(run_id, f"CT at {listed.grid.spacing_mm:g} mm", snapshot.digest, context=purpose, facts=facts)


def log_checkpoint(tracker: Tracker, run_id: str, checkpoint: Ref) -> None:
    """Name a checkpoint as model that a run made; its averaged weights are uploaded once per experiment.

    The averaged weights are what sampling takes by default. The others stay in the working directory: a B/12/4 has 373 MB of
    each, and runs are not compared by them.
    """
    info = Checkpoint.load(checkpoint.path)
    facts = {
        "family": info.family,
        "step": info.step,
        "volume_size": info.view.size,
        "voxel_mm": info.view.edge * info.spacing_mm / info.view.size,
        "network": json.dumps(info.model),
        "val_loss_ema": info.gates.val_loss_ema if info.gates else None,
    }
    facts = {name: value for name, value in facts.items() if value is not None}
    files = [checkpoint.path / WEIGHTS_FILES["ema"], checkpoint.path / Checkpoint.NAME]
    tracker.log_file(run_id, files[-1])
    tracker.log_model(run_id, f"checkpoint-{info.family}", files, digest=checkpoint.digest, step=info.step, facts=facts)
