"""Sampling towards a label: classifier-free guidance."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from prdit_models.diffusion.process import prepared


class Guided:
    """A model with labels, called by the samplers as one without: uncond + w·(cond - uncond).

    Args:
        model: a network with classes: `model(x, t, labels)`, with `config.num_classes`.
        labels: one per volume, shape (B,).
        scale: w; 1 is the conditional model itself (one evaluation), above 1 amplifies the label (both in one doubled batch).
    Raises: ValueError: if the scale is not a positive number or the model has no classes.
    Source: Ho & Salimans (2022).
    """

    def __init__(self, model: Any, labels: Tensor, scale: float = 1.0) -> None:
        if not scale > 0:
            raise ValueError(f"guidance scale is {scale}; expected above 0 (1: the label as it was trained).")
        if not model.config.num_classes:
            raise ValueError("The model was trained without labels (num_classes 0); sample it without one.")
        self.model = model
        self.labels = labels
        self.scale = scale

    def prepared(self, times: Tensor) -> AbstractContextManager[None]:
        """See `PRDiT.prepared`; steps with labels are not prepared."""
        return prepared(self.model, times)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict for x (B, C, S, S, S) at a common step t."""
        if self.scale == 1.0:
            out: Tensor = self.model(x, t, self.labels)
            return out
        no_label = torch.full_like(self.labels, self.model.config.num_classes)
        steps = t.expand(2 * x.shape[0])  # labels differ within the batch, so each row has its own modulations
        both: Tensor = self.model(torch.cat([x, x]), steps, torch.cat([self.labels, no_label]))
        conditional, unconditional = both.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)
