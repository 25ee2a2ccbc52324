"""The weights of the lowest validation loss, kept on disk while a training goes on."""

from pathlib import Path
from typing import Any

from storage.checkpoints import Tensors, load_tensors, save_tensors
from storage.errors import DamagedArtifactError
from storage.files import sha256_file

Losses = dict[int, float]


class BestWeights:
    """Trained weights and their EMA at the validation with the lowest mean EMA loss so far.

    The record travels in the resume state. A training resumed from before the file's step comes to that step again with the
    same numbers and writes the same file again, so file and record agree at the end.

    Args:
        directory: where the two files go, made on first use.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.record: dict[str, Any] | None = None

    def offer(self, step: int, raw: Losses, ema: Losses, weights: Tensors, averaged: Tensors) -> None:
        """Keep these weights if their mean EMA loss is below the best so far."""
        loss = sum(ema.values()) / len(ema)
        if self.record is not None and not loss < self.record["loss"]:
            return
        hashes = {}
        for name, tensors in (("model", weights), ("ema", averaged)):
            path = self.directory / f"{name}.safetensors"
            save_tensors(path, tensors)
            hashes[name] = sha256_file(path)
        by_t = {"raw": {str(t): value for t, value in raw.items()}, "ema": {str(t): value for t, value in ema.items()}}
        self.record = {"step": step, "loss": loss, "by_t": by_t, "files": hashes}

    def take(self) -> tuple[int, Losses, Losses, Tensors, Tensors]:
        """(step, raw losses, EMA losses, weights, EMA weights) of the best validation.

        Raises: DamagedArtifactError: nothing was kept, or the files are not those that were.
        """
        if self.record is None:
            raise DamagedArtifactError(f"No best weights in {self.directory}: no validation had a finite loss.")
        for name, digest in self.record["files"].items():
            path = self.directory / f"{name}.safetensors"
            if not path.is_file() or sha256_file(path) != digest:
                raise DamagedArtifactError(
                    f"{path} is not what was kept at step {self.record['step']}; remove its stage folder."
                )
        raw, ema = ({int(t): value for t, value in self.record["by_t"][kind].items()} for kind in ("raw", "ema"))
        weights, averaged = (load_tensors(self.directory / f"{name}.safetensors") for name in ("model", "ema"))
        return self.record["step"], raw, ema, weights, averaged
