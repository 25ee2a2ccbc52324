"""The weights of the lowest validation loss, kept on disk while a training goes on."""

import logging
import math
from collections.abc import Iterable
from pathlib import Path

from storage.checkpoints import Tensors, load_tensors, save_tensors
from storage.documents.training_state import BestValidation
from storage.errors import DamagedArtifactError
from storage.files import sha256_file
from tasks.train.state import TrainedArrays, arrays

Losses = dict[str, float]
logger = logging.getLogger("prdit.train")


class BestWeights:
    """Trained weights and their EMA at the validation with the lowest EMA loss so far, in files named by its step.

    The record is part of the resume state. Files of the records before it stay until the training ends: a training that is resumed
    from an earlier state may still need them.

    Args:
        directory: where the files go, made on first use.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.record: BestValidation | None = None

    def offer(self, step: int, raw: Losses, ema: Losses, held: TrainedArrays) -> None:
        """Keep these weights if their EMA loss is below the best so far."""
        loss = ema["loss"]
        if not math.isfinite(loss) or (self.record is not None and not loss < self.record.loss):
            return
        hashes = {}
        buffers = arrays(held.buffers)
        for name, tensors in (("model", held.parameters), ("ema", held.ema)):
            path = self._file(step, name)
            hashes[name] = save_tensors(path, arrays(tensors) | buffers)
        self.record = BestValidation(step=step, loss=loss, raw=finite(raw), ema=finite(ema), files=hashes)

    def resume(self, record: BestValidation | None) -> None:
        """Go on from the record of a resume state; without it where its files are not what was written."""
        self.record = record
        try:
            if record is not None:
                self._check(record)
        except DamagedArtifactError as error:
            logger.warning("%s The best weights are looked for from here on.", error)
            self.record = None

    def keep_only(self, records: Iterable[BestValidation | None]) -> None:
        """Remove the files of all other records."""
        kept = {self._file(record.step, name) for record in records if record for name in record.files}
        for path in self.directory.glob("step-*.safetensors"):
            if path not in kept:
                path.unlink()

    def take(self) -> tuple[int, Losses, Losses, Tensors, Tensors]:
        """(step, raw losses, EMA losses, weights, EMA weights) of the best validation.

        Raises: DamagedArtifactError: nothing was kept, or the files are not those recorded.
        """
        if self.record is None:
            raise DamagedArtifactError(f"No best weights in {self.directory}: no validation had a finite loss.")
        self._check(self.record)
        weights, averaged = (load_tensors(self._file(self.record.step, name)) for name in ("model", "ema"))
        return self.record.step, self.record.raw, self.record.ema, weights, averaged

    def _check(self, record: BestValidation) -> None:
        for name, digest in record.files.items():
            path = self._file(record.step, name)
            if not path.is_file() or sha256_file(path) != digest:
                raise DamagedArtifactError(f"{path} is not what was written at step {record.step}.")

    def _file(self, step: int, name: str) -> Path:
        return self.directory / f"step-{step:08d}-{name}.safetensors"


def finite(losses: Losses) -> Losses:
    """The losses that are finite: JSON has no others."""
    return {name: value for name, value in losses.items() if math.isfinite(value)}
