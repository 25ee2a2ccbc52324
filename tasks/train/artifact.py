"""The files of the checkpoint that a training ends with."""

import json
from typing import TYPE_CHECKING

from storage.checkpoints import WEIGHTS_FILES, save_tensors
from storage.documents.checkpoint import Gates
from storage.files import write_text_atomic
from tasks.train.best import finite
from tasks.train.spec import METRICS
from tasks.train.state import arrays
from tasks.train.validation import Losses

if TYPE_CHECKING:
    from tasks.train.loop import Training


def write_artifact(training: "Training", raw: Losses, ema: Losses) -> None:
    """Write weights, averages, description and points into the stage's directory.

    Args:
        training: that has come to its last step.
        raw, ema: its last validation.
    Raises: UnwritableError.
    """
    directory, held = training.spec.directory, training.arrays
    step, model, averaged = training.progress.step, arrays(held.parameters), arrays(held.ema)
    if training.best:
        step, raw, ema, model, averaged = training.best.take()
    save_tensors(directory / WEIGHTS_FILES["raw"], held.whole(model))
    save_tensors(directory / WEIGHTS_FILES["ema"], held.whole(averaged))
    if training.power:
        training.power.keep(training.progress.updates)
        training.power.write_index()
    raw, ema = finite(raw), finite(ema)
    gates = Gates(
        first_loss=training.progress.first_loss,
        last_loss=training.progress.last_loss,
        val_loss=raw.get("loss"),
        val_loss_ema=ema.get("loss"),
        val_loss_ema_parts={name: value for name, value in ema.items() if name != "loss"},
    )
    training.assembly.info.to_document(step=step, seed=training.config.seed, gates=gates).save(directory)
    # Times stay in scratch: a repeated training must give the same artifact, or every later stage runs again.
    write_text_atomic(directory / METRICS, "".join(json.dumps(point) + "\n" for point in training.points.lasting()))
