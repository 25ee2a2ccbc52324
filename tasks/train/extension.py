"""A training of another number of steps goes on from a state of one that differs from it in nothing else.

Up to the step at which the learning rate of either begins to fall, both are the same training.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from prdit_models.learning_rate import decay_start
from prdit_models.posthoc_ema import TRACKED_SIGMAS
from storage.artifacts import SCRATCH
from storage.checkpoints import ResumeStates
from storage.documents.pending import Pending
from storage.documents.training_state import TrainingPosition, TrainingState
from storage.errors import StorageError
from storage.files import replacing, sha256_file, sha256_json, write_text_atomic
from tasks.train.averages import FOLDER as SNAPSHOTS
from tasks.train.point_log import read_points, regular
from tasks.train.spec import BEST_WEIGHTS, METRICS, RESUME_STATES, TrainSpec

logger = logging.getLogger("prdit.train")


def continue_shorter(spec: TrainSpec) -> int | None:
    """Begin a training from a state of a sibling: copy the state, the points up to it, and the files that it names.

    Nothing is done where the training has a state or points of its own, or where no sibling has a state that fits.

    Returns: step from which the training goes on; None where it begins at 0, or resumes from its own state.
    Raises: UnwritableError: the copy does not fit on the disk.
    """
    scratch = spec.directory / SCRATCH
    own = ResumeStates(scratch / RESUME_STATES)
    found = None if own.steps() else find_state(spec)
    if found is None:
        return None
    folder, state = found
    sibling, position = folder.parents[2], state.position
    points = regular(read_points(sibling / SCRATCH / METRICS), position.step)
    if read_points(scratch / METRICS) not in ([], points):
        return None
    try:
        for path in [*_best_files(sibling, position), *_snapshot_files(sibling, position)]:
            _copy(path, spec.directory / path.relative_to(sibling))
        write_text_atomic(scratch / METRICS, "".join(json.dumps(point) + "\n" for point in points))
        own.adopt(folder)  # last: from now on the training has a state of its own
    except FileNotFoundError as error:
        logger.warning("%s was removed while the training began from it (%s); it begins at step 0", folder, error)
        return None
    logger.info("going on from step %d of %s, which differs in its number of steps alone", position.step, sibling)
    return position.step


def find_state(spec: TrainSpec) -> tuple[Path, TrainingState] | None:
    """The newest undamaged state of a sibling from which this training goes on as if the state had been its own.

    A sibling is another directory of the same stage, with the same inputs and the same settings but for `steps`.

    Args:
        spec: of a training without states of its own.

    Returns: folder and document of the state, or None.
    """
    best: tuple[Path, TrainingState] | None = None
    for sibling in _siblings(spec):
        after = best[1].position.step if best else -1
        fits = partial(_fits, spec, sibling, after)
        best = ResumeStates(sibling / SCRATCH / RESUME_STATES).newest_verified(fits) or best
    return best


def settings_digest(spec: TrainSpec) -> str:
    """Digest of what decides a training's results but its inputs and its number of steps."""
    settings = {name: value for name, value in spec.provenance["config"].items() if name != "steps"}
    return "sha256:" + sha256_json({"recipe": spec.provenance["recipe"], "settings": settings})


def _siblings(spec: TrainSpec) -> Iterator[Path]:
    inputs = {"snapshot": spec.snapshot, "split": spec.split, "start": spec.start, "initial": spec.initial}
    digests = {role: ref.digest for role, ref in inputs.items() if ref is not None}
    for folder in sorted(spec.directory.parent.iterdir()):
        with suppress(StorageError):  # not the directory of a stage, or one that cannot be used
            found = Pending.load(folder / SCRATCH).inputs
            if {role: ref.digest for role, ref in found.items()} == digests:
                yield folder


def _fits(spec: TrainSpec, sibling: Path, after: int, position: TrainingPosition) -> bool:
    """Whether this training would have come to a sibling's position too, which lies after a step, and can go on from there."""
    decay, lengths = spec.config.lr_decay, (spec.config.steps, position.steps)
    return (
        (position.settings, position.snapshot) == (settings_digest(spec), spec.snapshot.digest)
        and after < position.step <= min(decay_start(steps, decay) for steps in lengths)
        and _has_files(sibling, position)
    )


def _has_files(sibling: Path, position: TrainingPosition) -> bool:
    """Whether what a state names beside its arrays is there: points, best weights, snapshots of the averages."""
    best = sorted(sha256_file(path) for path in _best_files(sibling, position))
    return (
        (sibling / SCRATCH / METRICS).is_file()
        and best == sorted(position.best.files.values() if position.best else ())
        and len(_snapshot_files(sibling, position)) == len(position.snapshots) * len(TRACKED_SIGMAS)
    )


def _best_files(sibling: Path, position: TrainingPosition) -> list[Path]:
    if position.best is None:
        return []
    return sorted((sibling / SCRATCH / BEST_WEIGHTS).glob(f"step-{position.best.step:08d}-*.safetensors"))


def _snapshot_files(sibling: Path, position: TrainingPosition) -> list[Path]:
    patterns = [f"update-{updates:08d}-*.safetensors" for updates in position.snapshots]
    return [path for pattern in patterns for path in sorted((sibling / SNAPSHOTS).glob(pattern))]


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
