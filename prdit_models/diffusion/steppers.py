"""One step of each sampler, in the angle β of the process: x_t = cos(β)·x0 + sin(β)·eps.

A stepper maps the state at β to the state at the next lower angle β'. `previous` is the step before with its image estimate,
`estimate(x, t, sin β, cos β)` evaluates the network, `fresh_noise()` draws noise of the process's std. The parametrisation defines
image, noise and drift.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from prdit_models.diffusion.parametrization import Estimates
from prdit_models.diffusion.schedule import Step, Transition

SDE_ETA = 0.5  # share of fresh noise; 1 is the reverse SDE itself, whose standard deviation in 20 steps is 4 % off on Gaussian data


Evaluate = Callable[[Tensor, float, float, float], Estimates]
Previous = tuple[Step, Tensor] | None
Velocity = Callable[[Tensor, float], Tensor]
FlowStepper = Callable[[Tensor, Velocity, float, float], Tensor]  # (x, velocity at (x, t), t, length) -> x
TransitionStepper = Callable[[Tensor, Tensor, Transition, Callable[[], Tensor]], Tensor]  # (x, image, step, noise) -> x
Stepper = Callable[[Tensor, Estimates, Step, Previous, Evaluate, Callable[[], Tensor]], Tensor]


def predictor_corrector(
    x: Tensor, found: Estimates, step: Step, _: Previous, __: Evaluate, fresh_noise: Callable[[], Tensor]
) -> Tensor:
    """Along the drift -dx/dβ by `step.advance`, then back by fresh noise; without corrector this is Euler's method in angle.

    Source: SPEC §3 ("cold" is predictor step 1, "hot" 2), §9.
    """
    x = x + step.advance * found.drift
    return step.alpha * x + step.noise * fresh_noise() if step.corrects else x


def rotation(x: Tensor, found: Estimates, step: Step, *_: object) -> Tensor:
    """cos(β')·image + sin(β')·noise, exact where the estimates are constant (DDIM, Song et al. 2021)."""
    return math.cos(step.target_angle) * found.x0 + math.sin(step.target_angle) * found.eps


def heun(x: Tensor, found: Estimates, step: Step, _: Previous, estimate: Evaluate, __: object) -> Tensor:
    """The drift's mean over both ends of the step (Karras et al. 2022, algorithm 1); steps of one evaluation are rotations."""
    if step.evaluations == 1:
        return rotation(x, found, step)
    length = step.angle - step.target_angle
    end = estimate(x + length * found.drift, step.target, math.sin(step.target_angle), math.cos(step.target_angle))
    return x + 0.5 * length * (found.drift + end.drift)


def dpmpp_2m(x: Tensor, found: Estimates, step: Step, previous: Previous, *_: object) -> Tensor:
    """Second-order multistep in λ = log cot β on the image estimate (DPM-Solver++(2M), Lu et al. 2022).

    x' = sin(β')/sin(β)·x + sin(β-β')/sin(β)·D, the exact solution for a constant image D; D is extrapolated from two estimates,
    except in the last step, which returns the estimate itself.
    """
    image = found.x0
    if step.target_angle == 0.0:
        return image
    if previous is not None:
        image = image + (_log_cot_step(step) / (2.0 * _log_cot_step(previous[0]))) * (image - previous[1])
    keep = math.sin(step.target_angle) / math.sin(step.angle)
    return keep * x + (math.sin(step.angle - step.target_angle) / math.sin(step.angle)) * image


def dpmpp_2m_sde(
    x: Tensor, found: Estimates, step: Step, previous: Previous, _: Evaluate, fresh_noise: Callable[[], Tensor]
) -> Tensor:
    """The multistep solver of the reverse SDE with a share η of its noise (DPM-Solver++(2M) SDE, Lu et al. 2022, midpoint form).

    With h = λ' - λ: x' = sin(β')/sin(β)·e^(-η²h)·x + cos(β')·(1 - e^(-(1+η²)h))·D + sin(β')·sqrt(1 - e^(-2η²h))·eps'.
    """
    if step.target_angle == 0.0:
        return found.x0
    h, share = _log_cot_step(step), SDE_ETA**2
    image = found.x0
    if previous is not None:
        image = image + (0.5 * h / _log_cot_step(previous[0])) * (image - previous[1])
    keep = math.sin(step.target_angle) / math.sin(step.angle) * math.exp(-share * h)
    add = math.cos(step.target_angle) * -math.expm1(-(1.0 + share) * h)
    noise = math.sin(step.target_angle) * math.sqrt(-math.expm1(-2.0 * share * h))
    return keep * x + add * image + noise * fresh_noise()


def _log_cot_step(step: Step) -> float:
    """λ' - λ for λ = log cot β: how much the signal-to-noise ratio grows in a step."""
    return math.log(math.tan(step.angle) / math.tan(step.target_angle))


def euler_in_time(x: Tensor, velocity: Velocity, t: float, length: float) -> Tensor:
    """x + length·v(x, t) (SPEC §3.1)."""
    return x + length * velocity(x, t)


def heun_in_time(x: Tensor, velocity: Velocity, t: float, length: float) -> Tensor:
    """The velocity's mean over both ends of the step (SPEC §3.1)."""
    v = velocity(x, t)
    return x + length * (v + velocity(x + length * v, min(t + length, 1.0))) / 2


def ancestral(x: Tensor, image: Tensor, step: Transition, fresh_noise: Callable[[], Tensor]) -> Tensor:
    """A draw from the posterior of the next lower state, given this one and the image (Ho et al. 2020, algorithm 2)."""
    mean = step.image_weight * image + step.state_weight * x
    return mean + step.std * fresh_noise() if step.std else mean


def ddim(x: Tensor, image: Tensor, step: Transition, _: object) -> Tensor:
    """sqrt(ᾱ')·image + sqrt(1 - ᾱ')·noise with the noise that the image leaves in the state (DDIM, Song et al. 2021, η = 0)."""
    eps = (x - step.signal * image) / step.noise
    return step.target_signal * image + step.target_noise * eps


@dataclass(frozen=True)
class Solver:
    """How a sampler makes one step, for each process it works with.

    Attributes:
        steppers: by the process's name: a `Stepper` for `cosine`, a `FlowStepper` for `flow`, a `TransitionStepper` for `ddpm`.
        both_ends: whether it evaluates the network at both ends of a step.
    """

    steppers: Mapping[str, Callable[..., Tensor]]
    both_ends: bool = False


EULER = Solver({"cosine": predictor_corrector, "flow": euler_in_time})
PREDICTOR_CORRECTOR = Solver({"cosine": predictor_corrector})
PREDICTOR_CORRECTOR_TF = Solver({"cosine": predictor_corrector})  # with coefficients of its own, see `schedule.plan`
ROTATION = Solver({"cosine": rotation})
HEUN = Solver({"cosine": heun, "flow": heun_in_time}, both_ends=True)
DPMPP_2M = Solver({"cosine": dpmpp_2m})
DPMPP_2M_SDE = Solver({"cosine": dpmpp_2m_sde})
ANCESTRAL = Solver({"ddpm": ancestral})
DDIM = Solver({"ddpm": ddim})
