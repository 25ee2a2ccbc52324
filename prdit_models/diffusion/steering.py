"""Sampling towards a measurement: what a guide is, and what a sampler does with one."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

LARGEST_RMS = 10.0  # of an image estimate in model range [-1, 1] or of a state: beyond, nothing is an image any more
LARGEST_GROWTH = 10.0  # of the residual, over that of the first evaluation


class DivergedError(ValueError):
    """Guided sampling went astray: the guide is too strong for the number of steps."""


class Level(NamedTuple):
    """How noisy a state is: x_t = signal·x0 + noise·N(0, 1).

    Attributes:
        signal: factor on the volume.
        noise: standard deviation of the noise in the state, in model units, the process's std included.
        share: of the schedule that is left, t/T; 1 is pure noise, 0 the volume.
    """

    signal: float
    noise: float
    share: float


class Change(NamedTuple):
    """What a guide does at one evaluation.

    Attributes:
        step: added to the image estimate, or to the state where the guide moves that; (B, C, D, H, W).
        residual: root mean square of what the image estimate left unexplained of the measurement, per volume, shape (B,).
    """

    step: Tensor
    residual: Tensor


class Guide(Protocol):
    """Pulls samples towards a measurement.

    Attributes:
        strength: 0 is none.
        differentiates: whether `change` differentiates the image estimate with respect to the state, through the network.
        moves_state: whether its change is added to the state after the step, instead of to the image estimate before it.
    """

    @property
    def strength(self) -> float: ...  # noqa: D102
    @property
    def differentiates(self) -> bool: ...  # noqa: D102
    @property
    def moves_state(self) -> bool: ...  # noqa: D102

    def change(self, image: Tensor, state: Tensor, level: Level) -> Change | None:
        """The change at one evaluation, of volume i by itself; None: no change.

        Args:
            image: an image estimate of the state, model range, (B, C, D, H, W); with `differentiates`, a function of the state
                whose graph is kept.
            state: x_t, same shape.
            level: of the state.
        """

    def ended(self, state: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Where the sampler ended, as it is returned: final state and the network's last image, each (B, C, D, H, W)."""


class Steering:
    """One guided run of a sampler: applies a guide and watches that it does not diverge.

    Args:
        guide: what changes image estimates or states.
    """

    def __init__(self, guide: Guide) -> None:
        self.guide = guide
        self._first_residual: Tensor | None = None
        self._move: Tensor | None = None

    def differentiating(self) -> AbstractContextManager[object]:
        """Inside, operations are recorded where the guide needs gradients."""
        return torch.enable_grad() if self.guide.differentiates else nullcontext()

    def seen(self, state: Tensor) -> Tensor:
        """The state as the network should see it: as the start of a graph where the guide needs gradients."""
        return state.detach().requires_grad_() if self.guide.differentiates else state

    def corrected(self, image: Tensor, state: Tensor, level: Level) -> Tensor:
        """An image estimate with the guide's change, without a graph.

        Raises: DivergedError: residual or image have grown beyond all measure.
        """
        change = self._change(image, state, level)
        found = image.detach() if change is None else image.detach() + change.step
        self._watch("the image estimate", found)
        return found

    def move(self, image: Tensor, state: Tensor, level: Level) -> None:
        """Keep the guide's change until `moved`; where a step evaluates twice, that of its start counts.

        Raises: DivergedError: the residual has grown beyond all measure.
        """
        change = self._change(image, state, level)
        if self._move is None and change is not None:
            self._move = change.step

    def moved(self, state: Tensor, factor: float = 1.0) -> Tensor:
        """A state after a step with the change that `move` kept.

        Raises: DivergedError: the state has grown beyond all measure.
        """
        if self._move is None:
            return state
        found, self._move = state + factor * self._move, None
        self._watch("the state", found)
        return found

    def steered(self, image: Tensor, state: Tensor, level: Level) -> Tensor:
        """`corrected`, or `move` and the image as it is: for processes whose networks have one estimate."""
        if not self.guide.moves_state:
            return self.corrected(image, state, level)
        self.move(image, state, level)
        return image.detach()

    def _change(self, image: Tensor, state: Tensor, level: Level) -> Change | None:
        change = self.guide.change(image, state, level)
        if change is None:
            return None
        if self._first_residual is None:
            self._first_residual = change.residual
        grown = ~(change.residual <= LARGEST_GROWTH * self._first_residual)  # a NaN counts
        if bool(grown.any()):
            place = int(grown.int().argmax())
            raise DivergedError(
                f"Guided sampling diverged: what volume {place} of the batch leaves of the measurement unexplained went from "
                f"{float(self._first_residual[place]):.4g} (root mean square) to {float(change.residual[place]):.4g} at "
                f"t/T = {level.share:.3f}. {self._remedy()}"
            )
        return change

    def _watch(self, what: str, volumes: Tensor) -> None:
        sizes = rms(volumes)
        if not bool((sizes <= LARGEST_RMS).all()):
            raise DivergedError(
                f"Guided sampling diverged: {what} has a root mean square of {float(sizes.max()):.4g} where volumes lie in "
                f"[-1, 1] (limit {LARGEST_RMS:g}). {self._remedy()}"
            )

    def _remedy(self) -> str:
        return f"Use a lower strength (it is {self.guide.strength:g}) or more steps."


def products(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of the rows of (B, …), shape (B,); of row i by itself, so its bits do not depend on the batch.

    A sum over one axis of all rows may be split between threads in another way for one row; BLAS sums by alignment.
    """
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)])


def rms(values: Tensor) -> Tensor:
    """Root mean square of each row of (B, …), shape (B,), as `products`."""
    return (products(values, values) / values[0].numel()).sqrt()


def share_of(signal: float, noise: float) -> float:
    """t/T of the cosine process at the same ratio of noise to signal: atan(noise/signal)/(π/2)."""
    return math.atan2(noise, signal) / (math.pi / 2)
