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

from storage.artifacts import Ref
from storage.errors import DamagedArtifactError, MissingArtifactError
from storage.files import fsync_directory, read_json, replacing, sha256_file, write_json_atomic

Tensors = dict[str, npt.NDArray[Any]]

CHECKPOINT_FORMAT = 2
CHECKPOINT = "checkpoint.json"
WEIGHTS_FILES = {"ema": "ema.safetensors", "raw": "model.safetensors"}
_STATE = "state.json"
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


def load_checkpoint_info(ref: Ref) -> dict[str, Any]:
    """`checkpoint.json` of a checkpoint artifact: family, model, process, intensity, view, spacing, step, seed, gates.

    Raises:
        MissingArtifactError: no checkpoint at the uri.
        DamagedArtifactError: written in another format.
    """
    path = ref.path / CHECKPOINT
    if not path.is_file():
        raise MissingArtifactError(f"No checkpoint at {ref.uri}: checkpoint.json is missing. Train the stage again.")
    info: dict[str, Any] = read_json(path)
    if info.get("format_version") != CHECKPOINT_FORMAT:
        raise DamagedArtifactError(
            f"{path} has format_version {info.get('format_version')}, this prdit reads {CHECKPOINT_FORMAT}. Use the "
            "prdit that wrote it, or train the stage again."
        )
    return info


class ResumeStates:
    """The resumable states of one training, the newest two kept.

    Args:
        directory: folder of `step-XXXXXXXX` folders, made on first save.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, step: int, groups: dict[str, Tensors], state: dict[str, Any]) -> None:
        """Write one state: every group as `<group>.safetensors`, then `state.json` with their hashes, then rename."""
        target = self.directory / f"step-{step:08d}"
        temporary = self.directory / f".step-{step:08d}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        hashes = {}
        for group, tensors in groups.items():
            path = temporary / f"{group}.safetensors"
            save_tensors(path, tensors)
            hashes[group] = sha256_file(path)
        write_json_atomic(
            temporary / _STATE, {"format_version": CHECKPOINT_FORMAT, "step": step, "files": hashes, **state}
        )
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
        fsync_directory(self.directory)
        for old in self._folders()[_STATES_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def newest_good(self) -> tuple[dict[str, Any], dict[str, Tensors]] | None:
        """The newest state whose files all have their recorded hashes, or None. Damaged ones are logged and skipped."""
        for folder in self._folders():
            try:
                state = read_json(folder / _STATE)
                for group, digest in state["files"].items():
                    if sha256_file(folder / f"{group}.safetensors") != digest:
                        raise DamagedArtifactError(f"{group}.safetensors was changed after it was written")
                return state, {group: load_tensors(folder / f"{group}.safetensors") for group in state["files"]}
            except (OSError, ValueError, KeyError) as error:
                logger.warning("resume state %s is damaged (%s); trying the one before it", folder, error)
        return None

    def clear(self) -> None:
        """Remove all states (the artifact is committed; they are not needed any more)."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _folders(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        return sorted((path for path in self.directory.iterdir() if path.name.startswith("step-")), reverse=True)
