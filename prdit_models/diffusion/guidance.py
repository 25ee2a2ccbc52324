"""Sampling towards conditions: classifier-free guidance."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from prdit_models.conditions import Conditions, takes_conditions
from prdit_models.diffusion.process import prepared


class Guided:
    """A model with conditions, called by the samplers as one without: uncond + w·(cond - uncond).

    Args:
        model: a network that takes conditions: `model(x, t, conditions)`, with `config`.
        conditions: one row per volume.
        scale: w; 1 is the conditional model itself (one evaluation), above 1 amplifies the conditions (both in one doubled batch).
    Raises: ValueError: if the scale is not a positive number or the model takes no conditions.
    Source: Ho & Salimans (2022).
    """

    def __init__(self, model: Any, conditions: Conditions, scale: float = 1.0) -> None:
        if not scale > 0:
            raise ValueError(f"guidance scale is {scale}; expected above 0 (1: the conditions as they were trained).")
        if not takes_conditions(model.config.to_dict()):
            raise ValueError("The model was trained without labels and conditions; sample it without any.")
        self.model = model
        self.conditions = conditions
        self.scale = scale

    def prepared(self, times: Tensor) -> AbstractContextManager[None]:
        """See `PRDiT.prepared`; steps with labels or values are not prepared."""
        return prepared(self.model, times)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict for x (B, C, S, S, S) at a common step t."""
        if self.scale == 1.0:
            out: Tensor = self.model(x, t, self.conditions)
            return out
        nothing = self.conditions.nothing(self.model.config.num_classes)
        steps = t.expand(2 * x.shape[0])  # conditions differ within the batch, so each row has its own modulations
        both: Tensor = self.model(torch.cat([x, x]), steps, self.conditions.joined(nothing))
        conditional, unconditional = both.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)
