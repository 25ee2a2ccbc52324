"""Weights on disk: safetensors and JSON, written atomically, verified by SHA-256 before they are used.

Two forms. A *checkpoint artifact* (`model.safetensors`, `ema.safetensors`, `checkpoint.json`) is what a training stage
returns. *Resume states* (`step-00000500/`) hold everything a stopped training needs to resume; the newest undamaged one is used.
"""

import hashlib
import json
import logging
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from storage.documents.training_state import TrainingPosition, TrainingState
from storage.errors import DamagedArtifactError, MissingArtifactError, StorageError, UnwritableError
from storage.files import fsync_directory, fsync_tree, naming_path, replacing, sha256_file, temporary_path

Tensors = dict[str, npt.NDArray[Any]]

WEIGHTS_FILES = {"ema": "ema.safetensors", "raw": "model.safetensors"}
_STATES_KEPT = 2
_PIECE = 1 << 20
_STATE = re.compile(r"step-(\d{8,})(?:\.(\d+))?")  # with a number: written again, beside one that could not be used
_DTYPES = {  # of NumPy and of safetensors, in the order of the file: larger alignment first
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
    "float32": "F32",
    "uint32": "U32",
    "int32": "I32",
    "float16": "F16",
    "uint16": "U16",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}

logger = logging.getLogger("prdit.checkpoints")


def save_tensors(path: Path, tensors: Tensors) -> str:
    """Write named arrays as one safetensors file: temp + fsync + rename.

    Returns: SHA-256 of what was to be written, computed in memory: a file that differs was damaged on its way.
    Raises: UnwritableError.
    """
    digest = hashlib.sha256()
    with replacing(path) as temporary, temporary.open("wb") as stream:
        for piece in _pieces(tensors):
            digest.update(piece)
            stream.write(piece)
    return digest.hexdigest()


def _pieces(tensors: Tensors) -> Iterator[bytes | memoryview]:
    """The bytes that `safetensors.numpy.save` gives, without its copies (1 GiB: 0.9 s, not 5.7; no more memory, not 2 GiB more).

    `save_file` writes into a file of its own naming and mode 0600: a kill would leave it for ever, and the umask would not hold.
    Source: the format's description, https://github.com/huggingface/safetensors#format.
    """
    types = list(_DTYPES)
    ordered = sorted(sorted(tensors), key=lambda name: types.index(tensors[name].dtype.name))
    header, end = {}, 0
    for name in ordered:
        value = tensors[name]
        begin, end = end, end + value.nbytes
        header[name] = {"dtype": _DTYPES[value.dtype.name], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in ordered:
        data = np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data
        for begin in range(0, len(data), _PIECE):  # hashed and written while it is in the processor's cache
            yield data[begin : begin + _PIECE]


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
    """The resumable states of one training.

    Kept are the newest two that were read back from disk undamaged, and the newest such one at or before `keep_at`. Only what is
    older is removed, so the last good one never is.

    Args:
        directory: folder of `step-XXXXXXXX` folders, made on first save.
        guard: within it a state is published or removed; raises where this process may not write (`storage.lease.guard`).
        keep_at: step up to which a longer training would be the same one; None: there is none.
    """

    def __init__(
        self,
        directory: Path,
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
        keep_at: int | None = None,
    ) -> None:
        self.directory = directory
        self._guard = guard
        self._keep_at = keep_at
        self._undamaged: dict[str, bool] = {}  # by name: a save does not hash again what this process has hashed

    def save(self, position: TrainingPosition, groups: dict[str, Tensors]) -> None:
        """Write one state: every group as `<group>.safetensors`, then its document with their hashes, read all back, then rename.

        Args:
            position: where the training stands.
            groups: arrays by group; those of `storage.documents.training_state.GROUPS` at least.
        Raises:
            UnwritableError: it does not fit on the disk, or reads back different; the states before it stay.
            LeaseLostError: another launch has taken over (of the guard); nothing is written.
        """
        self._add(position.step, partial(_write_state, position, groups))
        self._remove_old()

    def adopt(self, folder: Path) -> None:
        """Copy a state of another training, as `newest_verified` of its states gave it. Raises: as `save`."""
        step, _ = _place(folder)
        self._add(step, lambda target: _copy_state(folder, target))

    def _add(self, step: int, write: Callable[[Path], None]) -> None:
        """Give the next free name of a step to a folder once it is written, read back and found undamaged."""
        target = self._free_name(step)
        temporary = temporary_path(target)
        try:
            with naming_path(target):
                with self._guard():
                    temporary.mkdir(parents=True)
                write(temporary)
                _, faults = _examine(temporary)
                if faults:
                    raise UnwritableError(
                        f"{target} reads back different from what was written ({'; '.join(faults)}): its disk or the memory of "
                        "this machine is faulty. Choose another folder or machine; the states before this one stay."
                    )
                with self._guard():
                    temporary.replace(target)
                    fsync_directory(self.directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._undamaged[target.name] = True

    def newest_good(
        self, accept: Callable[[TrainingPosition], bool] = lambda position: True
    ) -> tuple[TrainingPosition, dict[str, Tensors]] | None:
        """Position and arrays of the newest undamaged state, or None. Damaged ones are logged, each of their files by name.

        Args:
            accept: passes over a state by its position.
        """
        found = self.newest_verified(accept)
        if found is None:
            return None
        folder, state = found
        return state.position, {group: load_tensors(folder / f"{group}.safetensors") for group in state.files}

    def newest_verified(
        self, accept: Callable[[TrainingPosition], bool] = lambda position: True
    ) -> tuple[Path, TrainingState] | None:
        """As `newest_good`, without the arrays: folder and document of the state."""
        for folder in self._folders():
            state, faults = _examine(folder, accept)
            self._undamaged[folder.name] = not faults
            if faults:
                logger.warning(
                    "resume state %s cannot be used (%s); trying the one before it", folder, "; ".join(faults)
                )
            elif state is not None:
                return folder, state
        return None

    def steps(self) -> list[int]:
        """Of all states by their names, the newest first, whether they can be used or not."""
        return [_place(folder)[0] for folder in self._folders()]

    def positions(self) -> list[TrainingPosition]:
        """Of all states whose document is undamaged, the newest first."""
        found = []
        for folder in self._folders():
            with suppress(StorageError):
                found.append(TrainingState.load(folder).position)
        return found

    def remove_after(self, step: int) -> None:
        """Remove the states of later steps, for a training that goes back to this one. Raises: LeaseLostError (of the guard)."""
        for folder in self._folders():
            if _place(folder)[0] > step:
                self._remove(folder)

    def _remove_old(self) -> None:
        """Remove what the newest good states make superfluous. Damaged ones newer than those stay: a resume names them."""
        kept: list[int] = []
        for folder in self._folders():
            step, _ = _place(folder)
            second = len(kept) < _STATES_KEPT
            before = self._keep_at is not None and step <= self._keep_at and not any(k <= self._keep_at for k in kept)
            wanted = step not in kept and (second or before)
            if wanted and self._is_undamaged(folder):
                kept.append(step)
            elif step in kept or not second:
                self._remove(folder)

    def _is_undamaged(self, folder: Path) -> bool:
        if folder.name not in self._undamaged:
            _, faults = _examine(folder)
            self._undamaged[folder.name] = not faults
        return self._undamaged[folder.name]

    def _remove(self, folder: Path) -> None:
        removed = temporary_path(folder)
        with self._guard(), suppress(OSError):  # a kill in the middle must not leave half a state
            folder.replace(removed)
        self._undamaged.pop(folder.name, None)
        shutil.rmtree(removed, ignore_errors=True)

    def _free_name(self, step: int) -> Path:
        taken = [number for folder in self._folders() for found, number in [_place(folder)] if found == step]
        return self.directory / (f"step-{step:08d}" + (f".{max(taken) + 1}" if taken else ""))

    def _folders(self) -> list[Path]:
        """Of all states, the newest first."""
        if not self.directory.is_dir():
            return []
        found = [path for path in self.directory.iterdir() if _STATE.fullmatch(path.name)]
        return sorted(found, key=_place, reverse=True)


def _write_state(position: TrainingPosition, groups: dict[str, Tensors], folder: Path) -> None:
    hashes = {group: save_tensors(folder / f"{group}.safetensors", tensors) for group, tensors in groups.items()}
    TrainingState.of(position, hashes).save(folder)


def _copy_state(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        shutil.copyfile(path, folder / path.name)
    fsync_tree(folder)


def _place(folder: Path) -> tuple[int, int]:
    """(step, how often it was written before) of a state, from its name."""
    match = _STATE.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder} is not named like a resume state: step-XXXXXXXX.")
    return int(match[1]), int(match[2] or 0)


def _examine(
    folder: Path, accept: Callable[[TrainingPosition], bool] = lambda position: True
) -> tuple[TrainingState | None, list[str]]:
    """A state's document (None where it is not accepted or damaged) and what is wrong with its files, each by its path."""
    try:
        state = TrainingState.load(folder)
    except StorageError as error:
        return None, [str(error)]
    if not accept(state.position):
        return None, []
    faults = []
    for group, digest in state.files.items():
        path = folder / f"{group}.safetensors"
        try:
            if sha256_file(path) != digest:
                faults.append(f"{path} was changed after it was written")
        except OSError as error:
            faults.append(f"{path} cannot be read: {error.strerror}")
    return state, faults


class StateWriter:
    """Writes resume states in a thread of its own while the training goes on, one at a time.

    Args:
        states: where to.
    """

    def __init__(self, states: ResumeStates) -> None:
        self._states = states
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="states")
        self._writing: Future[None] | None = None

    def submit(self, position: TrainingPosition, groups: dict[str, Tensors]) -> None:
        """Begin to write a state, once the one before is written.

        Args:
            position: where the training stands.
            groups: arrays by group, which nobody changes any more.
        Raises: what `ResumeStates.save` raised for the one before; then this one is not written.
        """
        self.wait()
        self._writing = self._thread.submit(self._states.save, position, groups)

    def wait(self) -> None:
        """Return once nothing is being written. Raises: what `ResumeStates.save` raised, once."""
        writing = self._writing
        if writing is not None:
            wait([writing])  # a signal's exception may come here; then it is still ours
            self._writing = None
            writing.result()
