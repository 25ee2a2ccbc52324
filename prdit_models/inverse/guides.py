"""Guides: how a sampler is pulled towards a measurement y = A·x + b + noise of standard deviation σ.

At a state x_t = a·x0 + s·noise with the image estimate x̂(x_t), a guide approximates the image estimate with the measurement in it,
E[x0 | x_t, y] = x̂ + (s²/a)·∇ log p(y | x_t) (Tweedie's formula). The guides differ in what they take for p(y | x_t).
`docs/guided.md` compares them with the exact posterior of Gaussian data.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from prdit_models.diffusion.steering import Change, Level, products, rms
from prdit_models.inverse.conjugate_gradients import solve
from prdit_models.inverse.model_range import InModelRange
from prdit_models.inverse.window import within_window
from prdit_models.registry import Registry, made_of

# Below this signal 1/a would amplify errors of the network's derivative: E[x0 | x_t] hardly depends on x_t there.
SIGNAL_FLOOR = 0.05


@dataclass(frozen=True)
class _Guide:
    """What all guides share.

    Attributes:
        measured: operator and measurement, in model range.
        strength: factor on the change of the image; 0 is none.
        within_window: whether what is drawn is brought into the model's window at the end, with its measurement
            (`prdit_models.inverse.window`).
    """

    name: ClassVar[str]
    differentiates: ClassVar[bool] = False
    moves_state: ClassVar[bool] = False

    measured: InModelRange
    strength: float = 1.0
    within_window: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise ValueError(
                f"strength of guide {self.name!r} is {self.strength}; expected 0 (none) or more, {type(self).strength:g} by "
                "default."
            )

    def ended(self, state: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `Guide`: both within the window with the measurement of the state, which the network's image keeps only in part.

        Of a measurement without noise, with that.
        """
        if not self.within_window:
            return state, image
        measured, wanted = self.measured, self.measured.forward(state)
        if measured.noise_std == 0.0:
            wanted = wanted + measured.residual(state)
        return within_window(measured, state, wanted), within_window(measured, image, wanted)

    def to_dict(self) -> dict[str, Any]:
        """Name and settings, as a document keeps them; `guide_from_dict` makes the guide again."""
        return {"name": self.name} | {
            field.name: getattr(self, field.name) for field in fields(self) if field.name != "measured"
        }


@dataclass(frozen=True)
class DPS(_Guide):
    """Diffusion posterior sampling: p(y | x_t) is taken for p(y | x̂), a gradient through the network.

    x̂ + strength·(s²/a)·J^T·A^T·(y - A x̂ - b)/w with J = ∂x̂/∂x_t and w the larger of σ² and the mean square of the residual. The
    paper's equation has σ², and its algorithm divides by the residual's norm instead, since σ² alone overshoots as long as x̂ is
    uncertain; the residual's mean square estimates both together, so that strength 1 means the same for any number of steps,
    voxels and measurements. The paper adds its change to the state after each of 1000 steps.

    Source: Chung et al. 2023 (Diffusion Posterior Sampling for General Noisy Inverse Problems), equations 10 to 16, algorithm 1.
    """

    name: ClassVar[str] = "dps"
    differentiates: ClassVar[bool] = True

    def change(self, image: Tensor, state: Tensor, level: Level) -> Change | None:
        """See `Guide`."""
        if level.noise == 0.0:
            return None
        with torch.no_grad():
            residual = self.measured.residual(image.detach())
            size = rms(residual)
            weight = size.square().clamp(min=max(self.measured.noise_std**2, torch.finfo(size.dtype).tiny))
            pull = self.measured.adjoint(residual) / _per_volume(weight, image)
        step = level.noise**2 / max(level.signal, SIGNAL_FLOOR) * _through_network(image, state, pull)
        return Change(self.strength * _not_beyond(step, residual, self.measured), _at_least_noise(size, self.measured))


@dataclass(frozen=True)
class _Consistent(_Guide):
    """Guides that take p(x0 | x_t) for a Gaussian of variance r² around x̂, so y | x_t has the covariance r²AA^T + σ².

    r² = s²v/(a²v + s²) is what x_t leaves uncertain of a voxel of variance v.

    Attributes:
        data_std: √v in model range, 1 as in ΠGDM. That of white data would be its standard deviation (chest CT: about 0.5); where
            voxels are correlated, what x_t leaves uncertain is mostly smooth, and a larger one is nearer to it.
        solver_steps: conjugate gradients at most, for each evaluation; operators whose AA^T is a multiple of the identity (mask,
            means of blocks) take one.
        solver_tolerance: at which they end, relative.
    """

    data_std: float = 1.0
    solver_steps: int = 20
    solver_tolerance: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.data_std) and self.data_std > 0):
            raise ValueError(f"data_std is {self.data_std}; expected above 0, such as 1 in a model range of [-1, 1].")
        if self.solver_steps < 1:
            raise ValueError(f"solver_steps is {self.solver_steps}; expected at least 1, such as 20.")
        if not 0 < self.solver_tolerance < 1:
            raise ValueError(f"solver_tolerance is {self.solver_tolerance}; expected between 0 and 1, such as 1e-4.")

    def _solved(self, image: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """A^T·(AA^T + σ²/r²)⁻¹·(y - A x̂ - b), and the residual."""
        measured = self.measured
        residual = measured.residual(image)
        damping = measured.noise_std**2 / self._uncertainty(level)

        def normal(z: Tensor) -> Tensor:
            return measured.linear(measured.adjoint(z)) + damping * z

        found = solve(normal, residual, self.solver_steps, self.solver_tolerance)
        return measured.adjoint(found), residual

    def _uncertainty(self, level: Level) -> float:
        """r²."""
        variance = self.data_std**2
        return level.noise**2 * variance / (level.signal**2 * variance + level.noise**2)


@dataclass(frozen=True)
class Projection(_Consistent):
    """Data consistency without a gradient through the network: x̂ + strength·r²A^T(r²AA^T + σ²)⁻¹(y - A x̂ - b).

    The best linear estimate from x̂ and y where the error of x̂ is white with variance r². With σ = 0 it is the nearest volume to x̂
    that has the measurement. It is ΠGDM with the network's derivative J = ∂x̂/∂x_t replaced by that of white Gaussian data,
    J = (a/s²)·r².

    Source: Song et al. 2023 (Pseudoinverse-Guided Diffusion Models for Inverse Problems), section 3; without the derivative as in
    DDNM (Wang et al. 2023).
    """

    name: ClassVar[str] = "projection"

    def change(self, image: Tensor, state: Tensor, level: Level) -> Change | None:
        """See `Guide`."""
        if level.noise == 0.0:
            return None
        pull, residual = self._solved(image, level)
        return Change(self.strength * pull, _at_least_noise(rms(residual), self.measured))


@dataclass(frozen=True)
class PiGDM(_Consistent):
    """Pseudoinverse guidance: x̂ + strength·(s²/a)·J^T·A^T(r²AA^T + σ²)⁻¹(y - A x̂ - b), J = ∂x̂/∂x_t by the network.

    Source: Song et al. 2023 (Pseudoinverse-Guided Diffusion Models for Inverse Problems), equation 7.
    """

    name: ClassVar[str] = "pigdm"
    differentiates: ClassVar[bool] = True

    def change(self, image: Tensor, state: Tensor, level: Level) -> Change | None:
        """See `Guide`."""
        if level.noise == 0.0:
            return None
        with torch.no_grad():
            pull, residual = self._solved(image.detach(), level)
        gain = level.noise**2 / (max(level.signal, SIGNAL_FLOOR) * self._uncertainty(level))
        step = gain * _through_network(image, state, pull)
        change = self.strength * _not_beyond(step, residual, self.measured)
        return Change(change, _at_least_noise(rms(residual), self.measured))


@dataclass(frozen=True)
class TF(_Guide):
    """The published guide of TF-PRDiT: the state moves against the gradient of the residual's norm, none through the network.

    After the predictor x - w·∇‖y - A x̂ - b‖ by the network's own image x̂, w = strength·(1 + cos((1 - t/T)·π))/2, off at the end.
    The norm is that of each volume, in the unit of the model's range. Its gradient has the length of A^T's largest stretch at most,
    whatever the residual: the strength that fits depends on the number of steps, voxels and measurements. Published for X-rays of
    128³ with 250 steps of `predictor-corrector-tf`, on the schedule `published`.

    Attributes:
        cutoff: share of the schedule from which on it is off (published: t ≤ 20 of 1000).
        within_window: as for the others; published: false.
    Source: TF-PRDiT; SPEC §3.2 (e).
    """

    name: ClassVar[str] = "tf"
    moves_state: ClassVar[bool] = True

    strength: float = 0.7
    cutoff: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.cutoff < 1:
            raise ValueError(f"cutoff is {self.cutoff}; expected a share of the schedule, 0.02 as published.")

    def change(self, image: Tensor, state: Tensor, level: Level) -> Change | None:
        """See `Guide`."""
        if level.share <= self.cutoff:
            return None
        residual = self.measured.residual(image)
        norm = rms(residual) * math.sqrt(residual[0].numel())
        uphill = self.measured.adjoint(residual) / _per_volume(norm * self.measured.unit_scale, image)
        uphill = torch.where(_per_volume(norm, image) > 0, uphill, 0.0)
        weight = self.strength * 0.5 * (1.0 + math.cos((1.0 - level.share) * math.pi))
        return Change(weight * uphill, _at_least_noise(rms(residual), self.measured))


# Frozen dataclasses of a measurement and settings, each a `Guide`.
GUIDES: Registry[Any] = Registry(
    "guide",
    "prdit.guides",
    {
        "projection": f"{__name__}:Projection",
        "pigdm": f"{__name__}:PiGDM",
        "dps": f"{__name__}:DPS",
        "tf": f"{__name__}:TF",
    },
    needs=("name", "strength", "differentiates", "moves_state", "change", "ended", "to_dict"),
)


def guide_from_dict(values: Mapping[str, Any], measured: InModelRange) -> Any:
    """The guide of a name and settings.

    Args:
        values: `name` and settings; those left out have their defaults.
        measured: operator and measurement.
    Raises: ValueError: no such guide, a setting it does not have, or one out of range.
    """
    settings = dict(values)
    kind = GUIDES[settings.pop("name", "projection")]
    return made_of(f"the guide {kind.name!r}", kind, settings, measured)


def _through_network(image: Tensor, state: Tensor, pull: Tensor) -> Tensor:
    """J^T·pull for J = ∂image/∂state. The graph is kept: an evaluation may have two images."""
    (found,) = torch.autograd.grad(image, state, pull, retain_graph=True)
    return found


@torch.no_grad()
def _not_beyond(step: Tensor, residual: Tensor, measured: InModelRange) -> Tensor:
    """A step of the image, shortened where it would take the measurement of a volume past the point nearest to y.

    Voxels of CT are correlated. While x_t is mostly noise, the network's derivative then is much larger along smooth directions
    than that of white data, for which the guides weigh it.
    """
    moved = measured.linear(step)
    along, length = products(residual, moved), products(moved, moved)
    share = torch.where(length > 0, (along / length).clamp(0.0, 1.0), 1.0)
    return _per_volume(share, step) * step


def _per_volume(values: Tensor, volumes: Tensor) -> Tensor:
    """Values (B,), shaped to multiply volumes."""
    return values.view(-1, *[1] * (volumes.dim() - 1))


def _at_least_noise(size: Tensor, measured: InModelRange) -> Tensor:
    """Root mean squares of residuals, (B,), for judging growth: below the noise they say nothing."""
    return size.clamp(min=measured.noise_std)
