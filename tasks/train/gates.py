"""Gates: conditions on the trainings of a run, without which it counts as failed."""

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from storage.artifacts import Ref
from storage.documents.checkpoint import Checkpoint
from tasks.run.config import StageConfig


class GatesConfig(StageConfig):
    """Conditions on the trainings, checked after the report is written, so that a failure can be inspected."""

    max_loss_ratio: dict[str, Annotated[float, Field(gt=0)] | None] = Field(
        {}, description="by training: its last loss ≤ this × its first loss; null: no gate"
    )
    below_start: tuple[str, ...] = Field(
        (), description="trainings whose validation loss (EMA) must be below that of the training they start from"
    )


def check_gates(
    config: GatesConfig, checkpoints: Mapping[str, Ref], starts: Mapping[str, str | None]
) -> tuple[dict[str, float | None], list[str]]:
    """Compare the checkpoints of a run with the gates.

    Args:
        config: the gates.
        checkpoints: by the training's name, in order.
        starts: the training each starts from, by name.
    Returns: the figures, and a sentence for each gate that failed.
    """
    losses = {name: gates for name, ref in checkpoints.items() if (gates := Checkpoint.load(ref.path).gates)}
    ratios = {
        name: found.last_loss / found.first_loss
        for name, found in losses.items()
        if found.first_loss and found.last_loss is not None
    }
    figures: dict[str, float | None] = {f"{name}_loss_ratio": ratio for name, ratio in ratios.items()}
    figures |= {f"{name}_val_loss_ema": found.val_loss_ema for name, found in losses.items()}
    failed = []
    for name, limit in config.max_loss_ratio.items():
        if limit is not None and name in losses and not ratios.get(name, float("inf")) <= limit:
            failed.append(
                f"{name} ended at {ratios.get(name, float('inf')):.2f} of its first loss; gates.max_loss_ratio asks for ≤ {limit}"
            )
    for name in config.below_start:
        start = starts.get(name)
        if name not in losses or start not in losses:
            continue
        own, below = (_or_infinite(losses[training].val_loss_ema) for training in (name, start))
        if not own < below:
            failed.append(
                f"the validation loss of {name}, {own:.5f}, is not below that of {start}, {below:.5f}; gates.below_start asks "
                "for that"
            )
    return figures, failed


def _or_infinite(loss: float | None) -> float:
    return math.inf if loss is None else loss
