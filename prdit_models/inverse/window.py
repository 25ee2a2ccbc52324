"""Volumes that lie in the model's window and have a measurement."""

import torch
from torch import Tensor

from prdit_models.diffusion.steering import rms
from prdit_models.inverse.conjugate_gradients import solve
from prdit_models.inverse.model_range import InModelRange

_ROUNDS, _STEPS = 8, 5
_OF_NOISE, _OF_FIRST = 0.1, 1e-5  # what may be left of a measurement: of its noise, and of what the clamp left at first
_PROGRESS = (
    0.98  # of what is left, over that of the round before: above it, volumes in the window cannot have the measurement
)


@torch.no_grad()
def within_window(measured: InModelRange, volumes: Tensor, wanted: Tensor) -> Tensor:
    """Volumes without voxels beyond the window that have the measurements wanted, as far as such volumes can, near those given.

    Where a sampler ends, voxels of air scatter around -1000 HU, an end of the window, and their mean is the measured one. Clamping
    alone raises that mean (docs/guided.md has figures). Here the voxels inside the window, and those at an end that leave it, take
    what a clamp changed of the measurement by the smallest step; then voxels are clamped again, until little is left. A volume in
    the window that has its measurement is returned as it is; the bits of a volume do not depend on the others.

    Args:
        measured: operator, and the window.
        volumes: in model range, (B, 1, D, H, W).
        wanted: measurements, (B, …), such as those that the volumes have before they are clamped.
    Returns: same shape as volumes.
    Source: projected gradients with an active set, Bertsekas 1982.
    """
    low, high = measured.window.model_lower, measured.window.model_upper
    found = volumes.clamp(low, high)
    goal, before = None, None
    for _ in range(_ROUNDS):
        left = wanted - measured.forward(found)
        size = rms(left)
        if goal is None or before is None:
            goal = (_OF_FIRST * size).clamp(min=_OF_NOISE * measured.noise_std)
            undone = size > goal
        else:
            undone = undone & (size > goal) & (size < _PROGRESS * before)
        if not bool(undone.any()):
            break
        before = size
        rows = undone.view(-1, *[1] * (found.dim() - 1))
        found = torch.where(rows, (found + _step(measured, found, left)).clamp(low, high), found)
    return found


def _step(measured: InModelRange, volumes: Tensor, left: Tensor) -> Tensor:
    """The smallest step with the measurement that is left, of voxels that it does not push beyond the window."""
    pull = measured.adjoint(left)
    window = measured.window
    free = ((volumes > window.model_lower) | (pull > 0)) & ((volumes < window.model_upper) | (pull < 0))

    def normal(step: Tensor) -> Tensor:
        return free * measured.adjoint(measured.linear(step))

    return solve(normal, free * pull, _STEPS, _OF_FIRST)
