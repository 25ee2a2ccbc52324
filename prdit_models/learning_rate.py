"""The learning rate over a training, as a share of its configured value."""

import math
from typing import Literal


def warmup_factor(step: int, warmup: int) -> float:
    """Linear from 1/W at step 0 to 1 at step W - 1, then constant; 1 without warm-up (as published).

    Args:
        step: n, 0-based.
        warmup: W >= 0 steps.
    """
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def decay_factor(step: int, steps: int, decay: float, shape: Literal["linear", "cosine"] = "linear") -> float:
    """Constant, then falling to 0 over the last `decay` of a training: with u = min(1, (N - n)/(decay·N)) at step n of N, u where
    linear, (1 - cos(πu))/2 where cosine.

    The step after the last one would have rate 0, so no step is spent on it. Source: constant rate with linear cooldown, Hägele et
    al. 2024; half a cosine, Loshchilov & Hutter 2017.

    Args:
        step: n, 0-based, in [0, N).
        steps: N >= 1.
        decay: share of the training, in [0, 1]; 0 keeps the rate constant (as published).
        shape: of the fall.
    Raises: ValueError: for values out of range.
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay is {decay}; expected a share of the training in [0, 1], such as 0.6.")
    if not 0 <= step < steps:
        raise ValueError(f"step is {step}; expected 0 to {steps - 1}.")
    left = 1.0 if decay == 0.0 else min(1.0, (steps - step) / (decay * steps))
    return left if shape == "linear" else (1.0 - math.cos(math.pi * left)) / 2.0


def decay_start(steps: int, decay: float) -> int:
    """First 0-based step whose rate is below the constant one; N where there is no decay."""
    return next(
        (step for step in range(max(0, math.floor((1.0 - decay) * steps) - 1), steps) if steps - step < decay * steps),
        steps,
    )
