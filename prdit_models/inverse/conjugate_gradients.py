"""Conjugate gradients for many systems at once, each by itself."""

from collections.abc import Callable

import torch
from torch import Tensor

from prdit_models.diffusion.steering import products


def solve(apply: Callable[[Tensor], Tensor], right: Tensor, max_steps: int, tolerance: float) -> Tensor:
    """Solve M z = right for each row, M symmetric and positive semidefinite, from z = 0.

    A row is done when its residual is below `tolerance` times that of zero; its bits do not depend on the other rows. What
    `max_steps` leave undone stays undone: the result is then what the steps found, smoother than the solution. Directions M does
    not reach are left at zero.

    Args:
        apply: M on every row of (B, …).
        right: (B, …).
        max_steps: applications of M at most.
        tolerance: relative.
    Source: Hestenes and Stiefel 1952.
    """
    found, left, direction = torch.zeros_like(right), right, right
    square = _inner(left, left)
    goal = tolerance**2 * square
    for _ in range(max_steps):
        undone = square > goal
        if not bool(undone.any()):
            break
        image = apply(direction)
        curvature = _inner(direction, image)
        usable = undone & (curvature > 0)
        length = torch.where(usable, square / curvature, 0.0)
        found, left = found + length * direction, left - length * image
        after = torch.where(usable, _inner(left, left), goal)  # a direction that M maps to zero ends its row
        direction = left + torch.where(usable, after / square, 0.0) * direction
        square = after
    return found


def _inner(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of the rows of (B, …), shaped to multiply them."""
    return products(one, other).view(-1, *[1] * (one.dim() - 1))
