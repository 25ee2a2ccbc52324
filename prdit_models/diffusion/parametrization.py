"""From a network's estimates to what a stepper uses: noise and image of a state, and the drift that follows.

A network trained on noise and image predicts both, and in practice the two are inconsistent: cos(β)·x0_hat + sin(β)·eps_hat is not
the state it was given. If a stepper builds the next state from such a pair, the error grows with every step.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Heads(NamedTuple):
    """A network's own estimates for a state: its noise and its image, each (B, C, S, S, S)."""

    eps: Tensor
    x0: Tensor


class Estimates(NamedTuple):
    """What a stepper works with: noise, image and drift -dx/dβ, each (B, C, S, S, S)."""

    eps: Tensor
    x0: Tensor
    drift: Tensor


Parametrize = Callable[[Tensor, Heads, float, float], Estimates]


def from_velocity(x: Tensor, heads: Heads, sin: float, cos: float) -> Estimates:
    """The published drift f, and the only image and noise that agree with it and with the state.

    cos(β)·x + sin(β)·f and sin(β)·x - cos(β)·f: rotated back by β they give x and -f. The image is the mean, weighted sin² : cos²,
    of the network's own and of the one its noise implies for x, so each counts where it is well determined.

    Source: v-prediction (Salimans & Ho 2022, appendix D), drift of SPEC §3.
    """
    drift = sin * heads.x0 - cos * heads.eps
    return Estimates(sin * x - cos * drift, cos * x + sin * drift, drift)


def from_image(x: Tensor, heads: Heads, sin: float, cos: float) -> Estimates:
    """The network's image, and the noise it implies for the state: (x - cos(β)·x0_hat)/sin(β); needs sin(β) > 0."""
    eps = (x - cos * heads.x0) / sin
    return Estimates(eps, heads.x0, sin * heads.x0 - cos * eps)


PARAMETRIZATION: dict[str, Parametrize] = {"velocity": from_velocity, "image": from_image}
