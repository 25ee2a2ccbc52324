"""Reading a PyTorch checkpoint file of other people: checked before it is believed.

Only `torch.load(weights_only=True, mmap=True)` is used: no object of the file's choosing is built, and weights stay on disk until
they are converted one by one.
"""

import argparse
import logging
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storage.files import sha256_file

logger = logging.getLogger("prdit.convert")

_BAD_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_SEVERAL = 10  # problems named in one message, of each kind


@dataclass(frozen=True)
class ForeignCheckpoint:
    """What a published checkpoint file holds.

    Attributes:
        model: raw weights, still on disk.
        ema: averaged weights, still on disk.
        missing: which of the two the file lacks (the other stands in for it), or nothing.
        config: its configuration as nested dictionaries.
        step: optimiser steps, 0 where it does not say.
        sha256: of the file.
    """

    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    missing: str
    config: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    sha256: str = ""

    def settings(self) -> Iterator[tuple[str, Any]]:
        """Every key and value of the configuration, at any depth."""
        return _walk(self.config)

    def find(self, *names: str) -> Any:
        """The first configuration value under one of these keys, at any depth; None if there is none."""
        for name in names:
            for key, value in self.settings():
                if key == name:
                    return value
        return None


def read_foreign(path: Path) -> ForeignCheckpoint:
    """Read a checkpoint dictionary of the published code, or a bare state dict (SPEC §4).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a PyTorch file, one that needs more than weights to open, or weights that cannot be trusted; every
            offending tensor is named.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    _check_archive(path)
    content = _load(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dictionary with weights.")
    found = {name: _state_dict(content[name]) for name in ("model", "ema") if isinstance(content.get(name), Mapping)}
    if not found:
        found = {"model": _state_dict(content)}
    for name, state in found.items():
        _check_tensors(path, name, state)
    model, ema = found.get("model"), found.get("ema")
    either = model or ema
    if not either:
        raise ValueError(f"{path} holds no weights: neither under 'model' or 'ema' nor as a bare state dict.")
    missing = "" if model and ema else "ema" if model else "model"
    step = content.get("train_steps", 0)
    return ForeignCheckpoint(
        model=model or either,
        ema=ema or either,
        missing=missing,
        config=_plain(content.get("config", {})),
        step=step if isinstance(step, int) else 0,
        sha256=sha256_file(path),
    )


def _check_archive(path: Path) -> None:
    """Refuse what is not an uncompressed, whole PyTorch archive, so that claimed sizes are bounded by the file's."""
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not a PyTorch checkpoint archive (or is cut short). Files older than PyTorch 1.6 must be saved again "
            "with torch.save; a broken download must be fetched again."
        )
    with zipfile.ZipFile(path) as archive:
        packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
        total = sum(entry.file_size for entry in archive.infolist())
    if packed or total > path.stat().st_size:
        raise ValueError(
            f"{path} claims {total} bytes in a file of {path.stat().st_size} (compressed: {packed[:_SEVERAL]}); PyTorch writes "
            "uncompressed archives, so this one is not trusted."
        )


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = _BAD_GLOBAL.search(str(error))
        what = f"the Python object {named.group(1)}" if named else "more than weights"
        raise ValueError(
            f"{path} contains {what}, which is not loaded: opening it would run code of the file's choosing. Where you trust "
            'the file, save its weights alone: torch.save({"model": ckpt["model"], "ema": ckpt["ema"]}, "weights.pt"), and give '
            "--variant and --volume-size."
        ) from error
    except (RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as a PyTorch checkpoint: {error}") from error


def _state_dict(values: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Tensors by key, `module.` of data-parallel training taken off."""
    return {
        str(key).removeprefix("module."): value
        for key, value in values.items()
        if not isinstance(value, (int, float, str))
    }


def _check_tensors(path: Path, name: str, state: Mapping[str, Any]) -> None:
    """Refuse what is no plain, finite, floating-point tensor backed by as many bytes as it shows."""
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    integral = [key for key, value in tensors.items() if not value.is_floating_point()]
    hollow = [
        key
        for key, value in tensors.items()
        if not value.is_contiguous() or value.untyped_storage().nbytes() < value.numel() * value.element_size()
    ]
    wild = [] if hollow or integral else [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    for what, keys in (
        ("no tensors", strange),
        ("no floating-point numbers", integral),
        ("expanded views of less data than they show", hollow),
        ("values that are not finite", wild),
    ):
        if keys:
            shown = ", ".join(keys[:_SEVERAL]) + (f" and {len(keys) - _SEVERAL} more" if len(keys) > _SEVERAL else "")
            raise ValueError(f"{path}: weights under {name!r} are {what}: {shown}. Nothing was imported.")


def _plain(value: Any) -> Any:
    """Namespaces as dictionaries, all the way down."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _walk(values: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield str(key), value
            yield from _walk(value)
