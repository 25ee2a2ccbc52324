"""Exponential moving average of the weights."""

from collections.abc import Iterable

import torch
from torch import Tensor


def ema_decay(step: int, decay: float, warmup: bool = True) -> float:
    """Decay of the update after optimiser step n: min(decay, (1 + n) / (10 + n)), or the published constant.

    Without warm-up the average of a short run is still its zero-output initialisation: 0.9999 averages over 10,000 steps.

    Args:
        step: n >= 0, optimiser steps done.
        decay: ceiling, in [0, 1).
        warmup: False gives `decay` at every step, as published (SPEC §4).
    Raises: ValueError: if decay or step is out of range.
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"EMA decay is {decay}; expected a value in [0, 1) (published: 0.9999).")
    if step < 0:
        raise ValueError(f"step is {step}; expected at least 0.")
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


@torch.no_grad()
def ema_update(averages: Iterable[Tensor], parameters: Iterable[Tensor], decay: float) -> None:
    """Move averages towards parameters in place: ema ← decay·ema + (1 - decay)·w.

    Computed as ema + (1 - decay)·(w - ema), so frozen weights stay bit-identical.

    Args:
        averages: tensors to change.
        parameters: current weights, in the same order and shapes.
        decay: this step's decay (`ema_decay`); 0 copies.
    Raises: ValueError: if the two sides differ in number or shapes.
    Source: SPEC §4.
    """
    average, current = list(averages), [parameter.detach() for parameter in parameters]
    if [a.shape for a in average] != [p.shape for p in current]:
        raise ValueError(
            f"EMA of {len(average)} tensors cannot follow {len(current)} parameters: numbers or shapes differ."
        )
    if average:
        torch._foreach_lerp_(average, current, 1.0 - decay)
