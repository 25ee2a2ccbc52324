"""Runs a training on the ranks of a launcher, follows its points, and stops it when the run is cancelled."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage import lease
from storage.artifacts import SCRATCH, Ref
from storage.checkpoints import ResumeStates
from storage.errors import UserError
from storage.files import write_text_atomic
from storage.metric_stream import MetricStream
from tasks.run.launchers.config import LauncherConfig
from tasks.run.launchers.launcher import LAUNCHERS, Job, run_job
from tasks.run.progress import Advance
from tasks.run.stage import StageRun
from tasks.train.rank_log import RankLog
from tasks.train.spec import METRICS, PREVIEWS, RESUME_STATES, Outcome, TrainSpec

_TRIES = 2  # launches in a row that end without a newer state
_PAUSE_S = 5.0
logger = logging.getLogger("prdit.train")


class TrainingFailedError(UserError, RuntimeError):
    """The training ended without a checkpoint."""


def launch(spec: TrainSpec, run: StageRun, progress: Advance, launcher: LauncherConfig | None = None) -> Ref:
    """Run a training to its end and return the checkpoint's reference.

    A launch that ends without an outcome (a node was lost, say) is followed by another one, as long as there is progress.

    Args:
        spec: the job.
        run: the stage's directory and tracker; metrics are sent to its run as they appear.
        progress: called with (step, steps).
        launcher: where it runs; default: one process on this machine.

    Raises:
        UserError: the training refused (input, a full disk, memory); class and message are its own.
        LauncherError: the launcher cannot run it.
        LeaseHeldError: another launch works on it.
        TrainingFailedError: it ended without a checkpoint; names the logs and quotes the last lines.
    """
    launcher = launcher or LauncherConfig()
    LAUNCHERS[launcher.name].check(launcher)
    scratch = spec.directory / SCRATCH
    steps = spec.config.steps
    stream = MetricStream(
        scratch / METRICS, run.tracker, run.run_id, prefix=f"{spec.stage}/", pictures=scratch / PREVIEWS
    )

    log, newest = RankLog(scratch), _newest_step(scratch)
    if newest >= 0:
        logger.info("%s goes on; its newest state is of step %d", spec.stage, newest)

    def watch() -> None:
        log.poll()
        points = stream.poll()
        if points:
            progress(*_far(points[-1], spec))

    failures, reached = 0, newest
    try:
        while True:
            outcome = _launch_once(spec, launcher, watch)
            if outcome is not None:
                break
            step = _newest_step(scratch)
            failures, reached = (failures + 1, reached) if step <= reached else (1, step)
            if failures >= _TRIES:
                raise _failed(spec, f"without a checkpoint, {failures} times since step {max(reached, 0)}")
            logger.warning(
                "%s ended without an outcome and is launched again (newest state: step %d)", spec.stage, step
            )
            time.sleep(_PAUSE_S)
    finally:
        watch()
    if outcome.refusal is not None:
        raise outcome.refusal.as_error()
    if outcome.fault is not None:
        raise _failed(spec, f"with {outcome.fault}")
    if outcome.ref is None:
        raise TrainingFailedError(
            f"{spec.stage} was stopped from outside at step {outcome.stopped_at} of {steps} (a signal to its processes); its state "
            "is saved and the next run resumes from there."
        )
    return outcome.ref


def _far(point: dict[str, Any], spec: TrainSpec) -> tuple[int, int]:
    """How far a training has come, of how far it goes: in steps, or in seconds where those end it."""
    if spec.config.seconds is None:
        return int(point["step"]), spec.config.steps
    whole = math.ceil(spec.config.seconds)
    return min(whole, int(point.get("speed/training_s", 0))), whole


def _launch_once(spec: TrainSpec, launcher: LauncherConfig, watch: Callable[[], None]) -> Outcome | None:
    scratch = spec.directory / SCRATCH
    token = lease.take(scratch)
    try:
        Outcome.forget(scratch, token)
        write_text_atomic(scratch / "spec.json", spec.model_dump_json(indent=2))
        arguments = (str(scratch / "spec.json"), str(token))
        run_job(Job(spec.stage, "tasks.train", arguments, scratch, token), launcher, watch)
        return Outcome.find(scratch, token)
    finally:
        lease.release(scratch, token)


def _failed(spec: TrainSpec, how: str) -> TrainingFailedError:
    scratch = spec.directory / SCRATCH
    return TrainingFailedError(
        f"{spec.stage} ended {how}. The next run resumes from its newest resumable state. Logs: {scratch}/node-*.log. The last "
        "ends with:\n" + "\n".join(_last_lines(scratch))
    )


def _newest_step(scratch: Path) -> int:
    """Step of the newest resumable state; -1 where there is none."""
    return max(ResumeStates(scratch / RESUME_STATES).steps(), default=-1)


def _last_lines(scratch: Path, count: int = 15) -> list[str]:
    logs = sorted(scratch.glob("node-*.log"), key=lambda path: path.stat().st_mtime)
    return logs[-1].read_text(encoding="utf-8", errors="replace").strip().splitlines()[-count:] if logs else []
