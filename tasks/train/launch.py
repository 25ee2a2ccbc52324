"""Starts the training subprocess, follows its metrics, and stops it when the run is cancelled."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from storage.artifacts import Ref
from storage.errors import UserError
from storage.files import naming_path, write_text_atomic
from storage.metric_stream import MetricStream
from tasks.run.machine import limit_threads
from tasks.run.progress import Advance
from tasks.run.stage import StageRun
from tasks.train.spec import EXIT_REFUSED, METRICS, Refusal, TrainSpec

_POLL_S = 0.5
_STOP_S = 75.0  # a little longer than the child's own grace period
logger = logging.getLogger("prdit.train")


class TrainingFailedError(UserError, RuntimeError):
    """The training subprocess ended without a checkpoint."""


def launch(spec: TrainSpec, run: StageRun, progress: Advance) -> Ref:
    """Run a training to its end and return the checkpoint's reference.

    Args:
        spec: the job.
        run: the stage's directory and tracker; metrics are sent to its run as they appear.
        progress: called with (step, steps).

    Raises:
        UserError: the subprocess refused (input, a full disk, memory); class and message are its own.
        TrainingFailedError: it ended without a checkpoint; names the log and quotes its last lines.
    """
    scratch = spec.directory / "work"
    spec_path, log_path = scratch / "spec.json", scratch / "train.log"
    write_text_atomic(spec_path, spec.model_dump_json(indent=2))
    steps = spec.config.steps
    stream = MetricStream(scratch / METRICS, run.tracker, run.run_id, prefix=f"{spec.stage}/")
    with naming_path(log_path):
        log = log_path.open("ab")
    with log, _subprocess(spec_path, log) as child:
        while child.poll() is None:
            _advance(stream, progress, steps)
            time.sleep(_POLL_S)
        _advance(stream, progress, steps, final=True)
        output = child.stdout.read().decode() if child.stdout else ""
    if child.returncode == 0:
        return Ref.model_validate_json(output.strip().splitlines()[-1])
    if child.returncode == EXIT_REFUSED and (refusal := Refusal.find(output)):
        raise refusal.as_error()
    last = _last_lines(log_path)
    raise TrainingFailedError(
        f"{spec.stage} ended with exit code {child.returncode}. The next run resumes from its newest resumable state. "
        f"Log: {log_path}. It ends with:\n" + "\n".join(last)
    )


@contextmanager
def _subprocess(spec_path: Path, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The child; whatever ends the block early (cancellation, an error) stops the child first and waits for its save."""
    environment = dict(os.environ)
    limit_threads(environment)
    child = subprocess.Popen(
        [sys.executable, "-m", "tasks.train", str(spec_path)],
        stdin=subprocess.PIPE,  # never written: end of file tells the child that this process ended
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
    )
    try:
        yield child
    except BaseException:
        logger.warning("stopping the training (pid %d); it saves its state first", child.pid)
        child.terminate()
        try:
            child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            logger.warning("the training did not stop within %.0f s and is killed", _STOP_S)
            child.kill()
            child.wait()
        raise
    finally:
        if child.stdin:
            child.stdin.close()


def _advance(stream: MetricStream, progress: Advance, steps: int, *, final: bool = False) -> None:
    points = stream.poll(final=final)
    if points:
        progress(int(points[-1]["step"]), steps)


def _last_lines(path: Path, count: int = 15) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-count:]
