"""Removal of a stage directory that survives a kill in the middle: it is an artifact to its last moment, or none at all."""

import logging
import shutil
from contextlib import suppress
from pathlib import Path

from storage.artifacts import PROVENANCE, SCRATCH
from storage.documents.provenance import Provenance
from storage.errors import DamagedArtifactError, LockedError, MissingArtifactError, VersionError
from storage.files import fsync_directory, is_abandoned, naming_path, temporary_path
from storage.locks import locked
from tasks.prune.plan import StageDirectory, is_busy
from tasks.run.progress import Advance
from tasks.run.stage import LOCK

LINEAGE = "lineage"  # in the working folder: records of checkpoints that were removed
logger = logging.getLogger("prdit.prune")


def remove_all(directories: list[StageDirectory], progress: Advance) -> list[StageDirectory]:
    """Remove stage directories; returns those that were, without the ones that a run has taken up meanwhile.

    Args:
        directories: removable ones of a plan.
        progress: called with (directories done, all).
    Raises: UnwritableError: the folder is read-only, or not ours.
    """
    removed = []
    progress(0, len(directories))
    for done, directory in enumerate(directories, start=1):
        if remove(directory):
            removed.append(directory)
        else:
            logger.warning("kept, because a run has taken it up: %s", directory.path)
        progress(done, len(directories))
    return removed


def remove(directory: StageDirectory) -> bool:
    """Remove one stage directory; False where it was used since the plan was made, or is being used.

    Its record goes first, so that what is left after a kill is never taken for an artifact; then the folder moves to a temporary
    name, so that a run of the same stage starts in a new one, and the next `prdit prune` knows what to remove.
    """
    path = directory.path
    lock = path / SCRATCH / LOCK
    try:
        with naming_path(path):
            if is_abandoned(path):  # what an interrupted removal left
                shutil.rmtree(path)
                return True
            if lock.stat().st_mtime > directory.last_used or is_busy(path):
                return False
            with locked(lock, timeout_s=0):
                _keep_lineage(path)
                (path / PROVENANCE).unlink(missing_ok=True)
                fsync_directory(path)
                temporary = temporary_path(path)
                path.replace(temporary)
            shutil.rmtree(temporary)
    except (LockedError, FileNotFoundError):  # a run has it, or another `prdit prune` has removed it
        return False
    return True


def _keep_lineage(path: Path) -> None:
    """Keep the record of a checkpoint: later ones may have begun with its weights, and descend from its training volumes."""
    with suppress(MissingArtifactError, DamagedArtifactError, VersionError):
        record = Provenance.load(path)
        if record.kind == "checkpoint":
            record.put(path.parents[1] / LINEAGE / f"{path.parent.name}-{path.name}.json")
