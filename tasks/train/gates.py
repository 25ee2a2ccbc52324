"""What a configuration may demand of the trainings before a run counts as good."""

from typing import Any

from pydantic import Field

from storage.artifacts import Ref
from storage.checkpoints import load_checkpoint_info
from tasks.config import StageConfig


class GatesConfig(StageConfig):
    """Demands on the trainings, checked after the report is written, so that a failure can be looked at."""

    max_local_loss_ratio: float | None = Field(None, gt=0, description="stage 1's last loss ≤ this × its first loss")
    global_below_local: bool = Field(False, description="stage 2's validation loss (EMA) below stage 1's")


def check_gates(config: GatesConfig, local: Ref, global_: Ref) -> tuple[dict[str, Any], list[str]]:
    """Compare two checkpoints with the demands.

    Returns: the figures, and a sentence for each demand not met.
    """
    first, second = load_checkpoint_info(local)["gates"], load_checkpoint_info(global_)["gates"]
    ratio = first["last_loss"] / first["first_loss"]
    figures = {
        "local_loss_ratio": ratio,
        "local_val_loss_ema": first["val_loss_ema"],
        "global_val_loss_ema": second["val_loss_ema"],
    }
    failed = []
    if config.max_local_loss_ratio is not None and not ratio <= config.max_local_loss_ratio:
        failed.append(
            f"stage 1 ended at {ratio:.2f} of its first loss; gates.max_local_loss_ratio asks for ≤ {config.max_local_loss_ratio}"
        )
    if config.global_below_local and not second["val_loss_ema"] < first["val_loss_ema"]:
        failed.append(
            f"stage 2's validation loss {second['val_loss_ema']:.5f} is not below stage 1's {first['val_loss_ema']:.5f}; "
            "gates.global_below_local asks for that"
        )
    return figures, failed


def refiner_figures(refiner: Ref) -> dict[str, Any]:
    """What the record keeps of stage 3; its losses are those of a finer level and compare with no other stage's."""
    return {"refiner_val_loss_ema": load_checkpoint_info(refiner)["gates"]["val_loss_ema"]}
