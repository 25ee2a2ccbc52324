"""Reads a checkpoint file of the published code; its content is checked before it is used.

Only `torch.load(weights_only=True, mmap=True)` is used, after `check_archive`: no object outside the allow-list is built, and
weights stay on disk until they are written one by one.
"""

import argparse
import logging
import pickle
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storage.errors import InputError, MissingArtifactError
from storage.files import sha256_file
from tasks.convert.archive import check_archive

logger = logging.getLogger("prdit.convert")

EXACT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # types whose values float32 represents exactly
_MAX_TENSORS = 4096  # the largest published model has 205
_MAX_SETTINGS = 10_000
_KNOWN = ("model", "ema", "config", "epoch", "train_steps", "optimizer")


@dataclass(frozen=True)
class ForeignCheckpoint:
    """What a published checkpoint file holds.

    Attributes:
        model: raw weights, still on disk.
        ema: averaged weights, still on disk.
        missing: which of the two the file lacks (the other is used in its place), or nothing.
        config: its configuration as nested dictionaries.
        step: optimiser steps, 0 where it is not stated.
        epoch: 0 where it is not stated.
        sha256: of the file.
    """

    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    missing: str
    config: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    epoch: int = 0
    sha256: str = ""

    def settings(self) -> Iterator[tuple[str, Any]]:
        """Every key and value of the configuration, at any depth."""
        return _walk(self.config)

    def numbers(self, *names: str) -> list[int]:
        """Different whole numbers the configuration has under any of these keys, ascending."""
        found = {v for key, v in self.settings() if key in names and isinstance(v, int) and not isinstance(v, bool)}
        return sorted(found)


def read_foreign(path: Path) -> ForeignCheckpoint:
    """Read a checkpoint dictionary of the published code, or a bare state dict (SPEC §4).

    Raises:
        MissingArtifactError: no such file.
        InputError: not a PyTorch file, one that needs more than weights to open, or weights that cannot be trusted; every
            offending tensor is named.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise MissingArtifactError(f"{path} {what}; expected a PyTorch checkpoint file (.pt).")
    check_archive(path)
    content = _load(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}; expected a dictionary with weights.")
    given = {name: content[name] for name in ("model", "ema") if isinstance(content.get(name), Mapping)}
    if given and (ignored := sorted(str(key) for key in content if key not in _KNOWN)):
        logger.info("%s: not read: %s", path.name, ", ".join(ignored))
    found = {name: _state_dict(path, name, state) for name, state in (given or {"model": content}).items()}
    model, ema = found.get("model"), found.get("ema")
    either = model or ema
    if not either:
        raise InputError(f"{path} holds no weights: neither under 'model' or 'ema' nor as a bare state dict.")
    return ForeignCheckpoint(
        model=model or either,
        ema=ema or either,
        missing="" if model and ema else "ema" if model else "model",
        config=_plain_settings(path, content.get("config")) if given else {},
        step=_count(path, content, "train_steps") if given else 0,
        epoch=_count(path, content, "epoch") if given else 0,
        sha256=sha256_file(path),
    )


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        LookupError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
        OverflowError,
    ) as error:  # what torch raises on a broken pickle
        reason = str(error).split("\n", 1)[0]
        raise InputError(f"{path} cannot be read as a PyTorch checkpoint: {reason}. Fetch or save it again.") from error


def _state_dict(path: Path, name: str, values: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Tensors by key, `module.` of data-parallel training taken off, all of them plain and backed by the file's own bytes."""
    if len(values) > _MAX_TENSORS:
        raise InputError(f"{path} has {len(values)} weights under {name!r}; a PRDiT has at most {_MAX_TENSORS}.")
    state: dict[str, Any] = {}
    for key, value in values.items():
        short = str(key).removeprefix("module.")
        if short in state:
            raise InputError(
                f"{path} has {short!r} under {name!r} both with and without 'module.'. Remove one of them."
            )
        state[short] = value
    not_tensors = [key for key, value in state.items() if type(value) not in (Tensor, torch.nn.Parameter)]
    tensors = {key: value for key, value in state.items() if key not in not_tensors}
    inexact = [f"{key} ({value.dtype})" for key, value in tensors.items() if value.dtype not in EXACT_DTYPES]
    incomplete = [key for key, value in tensors.items() if not _is_complete(value)]
    for what, keys in (
        ("not plain tensors", not_tensors),
        (f"not of a type that float32 holds exactly ({', '.join(str(dtype) for dtype in EXACT_DTYPES)})", inexact),
        ("views of fewer bytes than their shape needs, or not contiguous", incomplete),
    ):
        if keys:
            raise InputError(f"{path}: under {name!r} these are {what}: {', '.join(keys)}. Nothing was imported.")
    claimed, size = sum(value.nbytes for value in tensors.values()), path.stat().st_size
    if claimed > size:
        raise InputError(
            f"{path}: the weights under {name!r} have {claimed} bytes in a file of {size}: they share data. Save each on its own."
        )
    return {key: value.detach() for key, value in tensors.items()}


def _is_complete(value: Tensor) -> bool:
    """Whether every element has bytes of its own, in one contiguous block."""
    if value.layout is not torch.strided or value.device.type != "cpu" or not value.is_contiguous():
        return False
    return value.untyped_storage().nbytes() >= value.nbytes


def _count(path: Path, content: Mapping[Any, Any], name: str) -> int:
    value = content.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        # containers by type name only: lists that share lists are short in the file, but their text may be endless
        shown = f"a {type(value).__name__}" if isinstance(value, (list, tuple, Mapping, set)) else reprlib.repr(value)
        raise InputError(
            f"{path}: {name} is {shown}; expected a whole number. Is it a checkpoint of the published code?"
        )
    return value


def _plain_settings(path: Path, value: Any) -> dict[str, Any]:
    """The configuration with namespaces as dictionaries, at every depth; bounded, because a pickle can contain itself."""
    left = _MAX_SETTINGS

    def plain(part: Any, depth: int) -> Any:
        nonlocal left
        if isinstance(part, argparse.Namespace):
            part = vars(part)
        if not isinstance(part, Mapping):
            return part
        left -= len(part)
        if left < 0 or depth > 20:
            raise InputError(f"{path}: its configuration has more than {_MAX_SETTINGS} entries or is nested in itself.")
        return {str(key): plain(item, depth + 1) for key, item in part.items()}

    found = plain(value, 0)
    return found if isinstance(found, dict) else {}


def _walk(values: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield str(key), value
            yield from _walk(value)
