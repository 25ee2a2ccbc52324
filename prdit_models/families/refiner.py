"""The refiner (stage 3): a local denoiser one pyramid level above a model, whose output it refines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prdit_models.diffusion.process import Process
from prdit_models.families.denoiser import Denoiser, DenoiserSettings, adamw
from prdit_models.families.family import (
    Batch,
    Description,
    Given,
    Losses,
    Request,
    Training,
    refuse_conditioning,
    refuse_conditions,
)
from prdit_models.families.global_ import inherited
from prdit_models.families.local import with_depth
from prdit_models.networks.cascade import CascadeParts, low_frequency_loss
from prdit_models.networks.config import CascadeConfig, model_config, network_config
from prdit_models.networks.prdit import trainable_parameters


@dataclass(frozen=True)
class RefinerSettings(DenoiserSettings):
    """Settings of a refiner. View, intensity and process are those of the model below, a level finer.

    Attributes:
        preset: `size/patch/0` of the refining head.
        low_frequency_weight: of the refined image's pooled distance to the image of the model below.
        fine_tune_lr: learning rate of the model below where it is trained too; None: it is frozen.
    """

    preset: str = "XS/12/0"
    low_frequency_weight: float = 1.0
    fine_tune_lr: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low_frequency_weight >= 0:
            raise ValueError(f"low_frequency_weight is {self.low_frequency_weight}; expected 0 or more.")
        if self.fine_tune_lr is not None and not self.fine_tune_lr > 0:
            raise ValueError(
                f"fine_tune_lr is {self.fine_tune_lr}; expected above 0, or none to freeze the model below."
            )


class Refiner(Denoiser):
    """Works at twice the edge of the model it starts from (64 to 128, 128 to 256), which may itself be refined."""

    title = "refiner"
    settings = RefinerSettings
    processes = ("cosine",)  # its low-frequency term compares images, which a velocity is not
    offers = "denoiser"
    needs = "denoiser"
    guided = True
    scale = 2

    def describe(self, settings: RefinerSettings, given: Given) -> Description:
        """Shapes of the head and of the model below (`CascadeConfig`)."""
        below = network_config(given.start or {})
        head = model_config(settings.preset, given.size, **inherited(below.chain[0]))
        if head.depth:
            raise ValueError(
                f"preset {settings.preset!r} has depth {head.depth}; the refining head is a local denoiser, depth 0 "
                f"({with_depth(settings.preset, 0)!r})."
            )
        refuse_conditioning("a refiner", given, "Set it in the training below.")
        return CascadeConfig(head, below).to_dict()

    def begin(self, module: Any, settings: RefinerSettings, start: Mapping[str, Tensor] | None) -> None:
        """Load the model below."""
        module.load_base(start or {})

    def freeze(self, module: Any, settings: RefinerSettings) -> None:
        """The model below, unless it is trained too."""
        module.freeze_base(settings.fine_tune_lr is None)

    def optimizers(self, module: Any, training: Training) -> dict[str, torch.optim.Optimizer]:
        """One AdamW, the model below at its own rate where it is trained too."""
        below = trainable_parameters(module.base)
        inside = set(below)
        head = [parameter for parameter in trainable_parameters(module) if parameter not in inside]
        rates = [({"lr": training.settings.fine_tune_lr}, below), ({"lr": training.lr}, head)]
        return {"main": adamw(rates, training.weight_decay)}

    def losses(self, turn: str, network: Callable[..., Any], batch: Batch, training: Training) -> Losses | None:
        """Losses of the process, and the distance of the refined image from that of the level below (SPEC §9)."""
        x_t, t, eps = self.noised(batch, training), batch.draws["t"], batch.draws["eps"]
        process = training.process
        if process is None:
            raise ValueError("A refiner needs a process; the training names none.")
        parts = CascadeParts(*(part.float() for part in network(x_t, process.model_time(t), parts=True)))
        losses = process.losses(parts.upsampled + parts.head, batch.volumes, eps, t)
        low = low_frequency_loss(parts, batch.volumes.shape[1]).mean()
        weight = training.settings.low_frequency_weight
        return losses | {"loss": losses["loss"] + weight * low, "loss_low_frequency": low}

    def check(self, description: Mapping[str, Any], process: Process | None, request: Request) -> None:
        """Refuse a sampler the process does not have, and any conditions. Raises: ValueError."""
        refuse_conditions(
            "a refined model, which takes no labels and conditions: they belong to the model below",
            "Sample the checkpoint of that model, or leave them out.",
            request.conditions,
        )
        super().check(description, process, request)

    def fits(self, description: Mapping[str, Any]) -> bool:
        """Whether a network's shape is one of this family."""
        return "head" in description


FAMILY = Refiner()
