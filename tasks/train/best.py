"""The weights of the lowest validation loss, kept on disk while a training goes on."""

import math
from pathlib import Path

from storage.checkpoints import Tensors, load_tensors, save_tensors
from storage.documents.training_state import BestValidation
from storage.errors import DamagedArtifactError
from storage.files import sha256_file

Losses = dict[str, float]


class BestWeights:
    """Trained weights and their EMA at the validation with the lowest EMA loss so far.

    The record is part of the resume state. A training resumed from before the files' step reaches that step again with the
    same numbers and writes the same files again, so files and record agree at the end.

    Args:
        directory: where the two files go, made on first use.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.record: BestValidation | None = None

    def offer(self, step: int, raw: Losses, ema: Losses, weights: Tensors, averaged: Tensors) -> None:
        """Keep these weights if their EMA loss is below the best so far."""
        loss = ema["loss"]
        if not math.isfinite(loss) or (self.record is not None and not loss < self.record.loss):
            return
        hashes = {}
        for name, tensors in (("model", weights), ("ema", averaged)):
            path = self.directory / f"{name}.safetensors"
            save_tensors(path, tensors)
            hashes[name] = sha256_file(path)
        self.record = BestValidation(step=step, loss=loss, raw=finite(raw), ema=finite(ema), files=hashes)

    def take(self) -> tuple[int, Losses, Losses, Tensors, Tensors]:
        """(step, raw losses, EMA losses, weights, EMA weights) of the best validation.

        Raises: DamagedArtifactError: nothing was kept, or the files are not those recorded.
        """
        if self.record is None:
            raise DamagedArtifactError(f"No best weights in {self.directory}: no validation had a finite loss.")
        for name, digest in self.record.files.items():
            path = self.directory / f"{name}.safetensors"
            if not path.is_file() or sha256_file(path) != digest:
                raise DamagedArtifactError(
                    f"{path} is not what was written at step {self.record.step}; remove its stage folder."
                )
        weights, averaged = (load_tensors(self.directory / f"{name}.safetensors") for name in ("model", "ema"))
        return self.record.step, self.record.raw, self.record.ema, weights, averaged


def finite(losses: Losses) -> Losses:
    """The losses that are finite: JSON has no others."""
    return {name: value for name, value in losses.items() if math.isfinite(value)}
