"""Post-hoc EMA: averages of power-function profiles, from which any other length is put together after the training.

An average of profile γ weighs the weights of step τ in proportion to τ^γ, so its length grows with the training; σ_rel is the
profile's standard deviation over the training's length. Two lengths are tracked, snapshots of them are kept now and then, and the
average of any length near them is the combination of snapshots whose profile is nearest to the wanted one.

Source: Karras et al. 2024 (EDM2), section 3 and appendix C.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prdit_models.ema import ema_update

SIGMA_RELS = (0.05, 0.10)  # the two lengths EDM2 tracks
LONGEST = 1.0 / math.sqrt(12.0)  # of γ = 0, the plain mean of all steps
RANK_TOLERANCE = (
    1e-12  # neighbouring snapshots are nearly the same profile: what float64 cannot tell apart is not amplified
)


class Snapshot(NamedTuple):
    """An average as it was kept.

    Attributes:
        step: optimiser steps done, at least 1.
        gamma: exponent of its profile.
    """

    step: int
    gamma: float


def sigma_rel_of(gamma: float) -> float:
    """Standard deviation of the profile τ^γ on [0, 1]: sqrt(γ+1) / ((γ+2)·sqrt(γ+3)).

    Raises: ValueError: for a negative γ.
    Source: EDM2, appendix C.
    """
    _check_gamma(gamma)
    return math.sqrt(gamma + 1.0) / ((gamma + 2.0) * math.sqrt(gamma + 3.0))


def gamma_of(sigma_rel: float) -> float:
    """Exponent of the profile of a relative length: the largest root of γ³ + 7γ² + (16 - σ⁻²)γ + 12 - σ⁻² = 0.

    Raises: ValueError: unless 0 < sigma_rel <= 1/sqrt(12), the length of the plain mean.
    Source: EDM2, appendix C, algorithm 2.
    """
    if not 0.0 < sigma_rel <= LONGEST:
        raise ValueError(
            f"sigma_rel is {sigma_rel}; expected above 0 and at most {LONGEST:.4f} (the mean of all steps); EDM2 uses 0.05 to 0.15."
        )
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return max(float(roots.real.max()), 0.0)


def power_decay(step: int, gamma: float) -> float:
    """Decay of the update after optimiser step t: (1 - 1/t)^(γ+1); 0 at the first step, which copies.

    Raises: ValueError: if step is below 1 or γ negative.
    Source: EDM2, section 3.1.
    """
    _check_gamma(gamma)
    if step < 1:
        raise ValueError(f"step is {step}; expected at least 1: the profile begins with the first optimiser step.")
    return float((1.0 - 1.0 / step) ** (gamma + 1.0))


def power_update(tracked: Mapping[float, Iterable[Tensor]], parameters: Iterable[Tensor], step: int) -> None:
    """Move every tracked average towards the weights of optimiser step t, in place.

    Nothing but the averages has to be stored to resume. The average's start is forgotten at step 1.

    Args:
        tracked: tensors of each average by its γ (`gamma_of` of each of `SIGMA_RELS`).
        parameters: current weights, in the same order and shapes.
        step: t, optimiser steps done, counting this one.
    Raises: ValueError: if step is below 1, a γ negative, or numbers or shapes differ.
    """
    current = list(parameters)
    for gamma, averages in tracked.items():
        ema_update(averages, current, power_decay(step, gamma))


def coefficients(
    snapshots: Sequence[Snapshot | tuple[int, float]], sigma_rel: float, step: int | None = None
) -> NDArray[np.float64]:
    """Factors of the snapshots whose sum has the profile nearest to the wanted one, in the mean square over the training.

    They add up to 1 (a constraint EDM2 does not have), so weights that never moved, such as frozen ones, stay what they are.

    Args:
        snapshots: (step, γ) of what was kept, in any order.
        sigma_rel: wanted length, relative to `step`.
        step: end of the wanted average; default: that of the latest snapshot.
    Returns: one factor a snapshot, in the order given.
    Raises: ValueError: without snapshots; for one given twice or later than `step`; for a length or exponent out of range.
    Source: EDM2, appendix C, algorithm 3.
    """
    if not snapshots:
        raise ValueError("There are no snapshots to make an average of; expected at least one (step, gamma).")
    steps = np.array([float(taken) for taken, _ in snapshots])
    gammas = np.array([float(gamma) for _, gamma in snapshots])
    wanted = gamma_of(sigma_rel)
    for taken, gamma in snapshots:
        power_decay(taken, gamma)  # its checks
    if len(set(zip(steps, gammas, strict=True))) < len(steps):
        raise ValueError(f"A snapshot is given twice in {[tuple(pair) for pair in snapshots]}; expected each once.")
    end = steps.max() if step is None else float(step)
    if steps.max() > end:
        raise ValueError(
            f"Step {int(steps.max())} of a snapshot lies after the wanted step {step}; leave it out or ask for a later step."
        )
    steps = steps / end
    count = len(steps)
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = _overlap(steps[:, None], gammas[:, None], steps[None], gammas[None])
    system[count, count] = 0.0
    right = np.append(_overlap(steps, gammas, np.ones(count), np.full(count, wanted)), 1.0)
    found = np.linalg.lstsq(system, right, rcond=RANK_TOLERANCE)[0][:count]
    result: NDArray[np.float64] = found / found.sum()
    return result


def reconstruct(
    snapshots: Sequence[Snapshot | tuple[int, float]],
    weights: Iterable[Mapping[str, Tensor]],
    sigma_rel: float,
    step: int | None = None,
) -> dict[str, Tensor]:
    """The average of any length from snapshots.

    Args:
        snapshots: (step, γ) of each.
        weights: their tensors by name, in the same order; read one by one, so a generator need not hold all in memory.
        sigma_rel, step: see `coefficients`.
    Returns: tensors by name, summed in float64, in the dtype of the first snapshot.
    Raises: ValueError: see `coefficients`; if the number of weights, or their names or shapes, differ.
    """
    factors = coefficients(snapshots, sigma_rel, step)
    total: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    count = 0
    for kept in weights:
        if count == len(factors):
            raise ValueError(f"More weights than the {len(factors)} snapshots; expected one set each.")
        if not count:
            dtypes = {name: tensor.dtype for name, tensor in kept.items()}
            total = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in kept.items()}
        if {name: tensor.shape for name, tensor in kept.items()} != {name: part.shape for name, part in total.items()}:
            raise ValueError(
                f"Weights of snapshot {tuple(snapshots[count])} differ from those of {tuple(snapshots[0])} in names or shapes; "
                "expected snapshots of one training."
            )
        for name, tensor in kept.items():
            total[name].add_(tensor.detach().to("cpu", torch.float64), alpha=float(factors[count]))
        count += 1
    if count < len(factors):
        raise ValueError(f"{count} sets of weights for {len(factors)} snapshots; expected one each.")
    return {name: tensor.to(dtypes[name]) for name, tensor in total.items()}


def _overlap(
    step_a: NDArray[np.float64], gamma_a: NDArray[np.float64], step_b: NDArray[np.float64], gamma_b: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Integral of the product of two profiles (γ+1)·τ^γ/t^(γ+1) on [0, t]: it ends at the earlier t, where the earlier one is
    (γ+1)/t and the later one has grown to (t/t')^γ' of its end."""
    first = step_a <= step_b
    early, late = np.where(first, step_a, step_b), np.where(first, step_b, step_a)
    gamma_late = np.where(first, gamma_b, gamma_a)
    grown = (early / late) ** gamma_late
    result: NDArray[np.float64] = (gamma_a + 1.0) * (gamma_b + 1.0) / (gamma_a + gamma_b + 1.0) * grown / late
    return result


def _check_gamma(gamma: float) -> None:
    if not 0.0 <= gamma < math.inf:
        raise ValueError(f"gamma is {gamma}; expected a number of at least 0 (`gamma_of` gives it for a length).")
