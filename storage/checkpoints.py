"""Weights on disk: safetensors and JSON, written atomically, verified by SHA-256 before they are used.

Two forms. A *checkpoint artifact* (`model.safetensors`, `ema.safetensors`, `checkpoint.json`) is what a training stage
returns. *Resume states* (`step-00000500/`) hold everything a stopped training needs to resume; the newest undamaged one is used.
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from storage.documents.training_state import TrainingPosition, TrainingState
from storage.errors import DamagedArtifactError, MissingArtifactError
from storage.files import fsync_directory, replacing, sha256_file

Tensors = dict[str, npt.NDArray[Any]]

WEIGHTS_FILES = {"ema": "ema.safetensors", "raw": "model.safetensors"}
_STATES_KEPT = 2

logger = logging.getLogger("prdit.checkpoints")


def save_tensors(path: Path, tensors: Tensors) -> None:
    """Write named arrays as one safetensors file: temp + fsync + rename."""
    with replacing(path) as temporary:
        save_file(
            {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in tensors.items()}, temporary
        )


def load_tensors(path: Path) -> Tensors:
    """Read a safetensors file into memory.

    Raises:
        MissingArtifactError: no such file.
        DamagedArtifactError: not a readable safetensors file.
    """
    if not path.is_file():
        raise MissingArtifactError(f"No weights at {path}. Restore the file, or train the stage again.")
    try:
        tensors: Tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedArtifactError(f"{path} is not a readable safetensors file: {error}") from error
    return tensors


class ResumeStates:
    """The resumable states of one training, the newest two kept.

    Args:
        directory: folder of `step-XXXXXXXX` folders, made on first save.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, position: TrainingPosition, groups: dict[str, Tensors]) -> None:
        """Write one state: every group as `<group>.safetensors`, then its document with their hashes, then rename.

        Args:
            position: where the training stands.
            groups: arrays by group; those of `storage.documents.training_state.GROUPS` at least.
        """
        target = self.directory / f"step-{position.step:08d}"
        temporary = self.directory / f".step-{position.step:08d}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        hashes = {}
        for group, tensors in groups.items():
            path = temporary / f"{group}.safetensors"
            save_tensors(path, tensors)
            hashes[group] = sha256_file(path)
        TrainingState(position=position, files=hashes).save(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
        fsync_directory(self.directory)
        for old in self._folders()[_STATES_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def newest_good(self) -> tuple[TrainingPosition, dict[str, Tensors]] | None:
        """Position and arrays of the newest undamaged state, or None. Damaged ones are logged and skipped."""
        for folder in self._folders():
            try:
                state = TrainingState.load(folder)
                for group, digest in state.files.items():
                    if sha256_file(folder / f"{group}.safetensors") != digest:
                        raise DamagedArtifactError(f"{group}.safetensors was changed after it was written")
                return state.position, {group: load_tensors(folder / f"{group}.safetensors") for group in state.files}
            except (OSError, ValueError) as error:
                logger.warning("resume state %s is damaged (%s); trying the one before it", folder, error)
        return None

    def clear(self) -> None:
        """Remove all states (the artifact is committed; they are not needed any more)."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _folders(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        return sorted((path for path in self.directory.iterdir() if path.name.startswith("step-")), reverse=True)
