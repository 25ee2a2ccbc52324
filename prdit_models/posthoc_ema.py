"""Averages of the weights whose length is chosen after training: power-function EMA and its reconstruction from snapshots.

An average with exponent γ weighs the weights of update τ by τ^γ, so its memory grows with the training; σ_rel is its width relative
to the training's length. Two of them, kept at some updates, span all others (EDM2, Karras et al. 2024, §3.1 and appendix C).
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prdit_models.ema import ema_update

TRACKED_SIGMAS = (0.05, 0.10)
_WORST_GAP = 0.25
_WIDEST = 1.0 / math.sqrt(12.0)  # γ = 0: the plain mean of all weights


class Profile(NamedTuple):
    """Which weights an average is made of.

    Attributes:
        updates: t > 0, optimiser steps it has seen.
        gamma: γ >= 0, exponent.
    """

    updates: float
    gamma: float


def gamma_of(sigma_rel: float) -> float:
    """The exponent of an average of relative width σ_rel: σ_rel² = (γ+1) / ((γ+2)²·(γ+3)).

    Raises: ValueError: σ_rel is not in (0, 1/√12]; the widest is the plain mean.
    """
    if not 0.0 < sigma_rel <= _WIDEST + 1e-12:
        raise ValueError(
            f"sigma_rel is {sigma_rel}; expected a width in (0, {_WIDEST:.4f}], such as 0.10 (a larger one averages longer)."
        )
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return max(0.0, float(np.max(roots.real[np.abs(roots.imag) < 1e-6 * (1.0 + np.abs(roots.real))])))


def sigma_of(gamma: float) -> float:
    """The relative width of an average with exponent γ >= 0."""
    return math.sqrt((gamma + 1.0) / ((gamma + 2.0) ** 2 * (gamma + 3.0)))


def power_update(averages: Iterable[Tensor], parameters: Iterable[Tensor], updates: int, gamma: float) -> None:
    """Add the weights of update t >= 1 to an average in place: decay (1 - 1/t)^(γ+1), which is 0 at the first.

    Raises: ValueError: t < 1, or tensors that do not match.
    """
    if updates < 1:
        raise ValueError(f"updates is {updates}; the first weights are those of update 1.")
    ema_update(averages, parameters, (1.0 - 1.0 / updates) ** (gamma + 1.0))


def mixing_coefficients(kept: Sequence[Profile], wanted: Profile) -> NDArray[np.float64]:
    """How much of each kept average makes the wanted one, shape (len(kept),); they sum to 1.

    Least squares between profiles as functions of τ, under the condition that constant weights are reproduced.

    Raises: ValueError: nothing is kept, a profile is impossible, more updates are wanted than any snapshot has seen, or the
        best approximation is too far off.
    """
    if not kept:
        raise ValueError("There are no snapshots to average from; train with ema_snapshots above 0.")
    for profile in (*kept, wanted):
        if not (profile.updates > 0 and profile.gamma >= 0):
            raise ValueError(f"{profile} is not a profile; expected updates > 0 and gamma >= 0.")
    latest = max(profile.updates for profile in kept)
    if wanted.updates > latest:
        raise ValueError(
            f"Update {wanted.updates:g} lies after the last snapshot, {latest:g}; choose {latest:g} or less."
        )
    size = len(kept)
    system, right = np.ones((size + 1, size + 1)), np.ones(size + 1)
    system[:size, :size] = [[_overlap(a, b) for b in kept] for a in kept]
    system[size, size] = 0.0
    right[:size] = [_overlap(profile, wanted) for profile in kept]
    # profiles of many snapshots are nearly dependent; least squares picks the smallest of the equal answers
    solution = np.asarray(np.linalg.lstsq(system, right, rcond=1e-13)[0][:size], dtype=np.float64)
    shares: NDArray[np.float64] = solution / solution.sum()
    gap = _relative_gap(system[:size, :size], right[:size], shares, _overlap(wanted, wanted))
    if gap > _WORST_GAP:
        known = sorted({profile.updates for profile in kept})
        tracked = ", ".join(f"{sigma_of(gamma):.2g}" for gamma in sorted({profile.gamma for profile in kept}))
        raise ValueError(
            f"The snapshots cannot give an average of sigma_rel {sigma_of(wanted.gamma):.4g} as of update {wanted.updates:g}: the "
            f"nearest mix of them is {gap:.0%} off (at most {_WORST_GAP:.0%} is accepted). Choose an update among {known} and a "
            f"width nearer to those tracked ({tracked}), or keep snapshots more often."
        )
    return shares


def _relative_gap(
    system: NDArray[np.float64], right: NDArray[np.float64], shares: NDArray[np.float64], norm: float
) -> float:
    """Distance of a mix from the wanted profile, relative to that, in the mean square over τ."""
    squared = shares @ system @ shares - 2.0 * shares @ right + norm
    return math.sqrt(max(0.0, float(squared)) / norm)


def _overlap(a: Profile, b: Profile) -> float:
    """∫ p_a·p_b dτ for p(τ) = (γ+1)·τ^γ / t^(γ+1) up to t."""
    first, last = (a, b) if a.updates <= b.updates else (b, a)
    both = (a.gamma + 1.0) * (b.gamma + 1.0) / (a.gamma + b.gamma + 1.0)
    return both / last.updates * (first.updates / last.updates) ** last.gamma


def mix(average: Tensor | None, snapshot: Tensor, coefficient: float) -> Tensor:
    """Add a snapshot's share to a sum in float64 (None starts one): one snapshot in memory at a time."""
    share = snapshot.to(torch.float64) * coefficient
    return share if average is None else average.add_(share)
