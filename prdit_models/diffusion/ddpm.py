"""Denoising diffusion in discrete steps (DDPM, Ho et al. 2020): betas by a schedule, a network that predicts image or noise."""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prdit_models.diffusion.process import (
    VALIDATION_SHARES,
    Denoiser,
    Process,
    Report,
    SampleResult,
    constrained,
    prepared,
)
from prdit_models.diffusion.sampler import Sampler, stepper_of
from prdit_models.diffusion.schedule import Transition, respaced_times
from prdit_models.diffusion.steering import Guide, Level, Steering, share_of
from prdit_models.diffusion.times import check_steps, draw_steps

SCHEDULES = ("linear", "scaled-linear")
PREDICTIONS = ("noise", "image")
VARIANCES = ("small", "large")


@dataclass(frozen=True)
class DDPMProcess:
    """Forward process x_t = sqrt(ᾱ_t)·x0 + sqrt(1 - ᾱ_t)·eps with ᾱ_t = Π_{s ≤ t} (1 - β_s), eps ~ N(0, 1), t = 0 … T-1.

    Attributes:
        schedule: of β from `beta_start` to `beta_end`: `linear` (Ho et al. 2020), or `scaled-linear`: linear in its square root
            (latent diffusion, Rombach et al. 2022).
        beta_start, beta_end: β of the first and of the last step.
        num_steps: T.
        prediction: what the network predicts: `noise`, or the clean `image`.
        variance: of ancestral sampling: `small`, the posterior's (the right one for a single known image), or `large`, β itself
            (the right one for unit Gaussian data).
        clip: clamp image estimates to [-1, 1] while sampling.
    Raises: ValueError: at construction, for a value out of range.
    """

    name: ClassVar[str] = "ddpm"

    schedule: Literal["linear", "scaled-linear"] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_steps: int = 1000
    prediction: Literal["noise", "image"] = "noise"
    variance: Literal["small", "large"] = "small"
    clip: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("schedule", SCHEDULES), ("prediction", PREDICTIONS), ("variance", VARIANCES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {list(allowed)}.")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start is {self.beta_start} and beta_end {self.beta_end}; expected 0 < beta_start <= beta_end < 1 "
                "(published: 0.0001 and 0.02)."
            )
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; expected at least 1 (published: 1000).")

    @property
    def noise_std(self) -> float:
        """Of the noise: 1, by definition."""
        return 1.0

    @property
    def outputs(self) -> int:
        """Output channels of a network for each channel of the volume."""
        return 1

    @property
    def alpha_bars(self) -> NDArray[np.float64]:
        """ᾱ_t for t = 0 … T-1, shape (T,), float64."""
        return _alpha_bars(self.schedule, self.beta_start, self.beta_end, self.num_steps)

    def model_time(self, t: Tensor) -> Tensor:
        """The time the network sees: the step itself."""
        return t

    def validation_times(self) -> dict[str, Tensor]:
        """Steps at which losses are validated, by name."""
        steps = [min(round(share * self.num_steps), self.num_steps - 1) for share in VALIDATION_SHARES]
        return {f"t{step:03d}": torch.tensor(step) for step in steps}

    def draw_times(
        self,
        batch: int,
        generator: torch.Generator | None = None,
        *,
        distribution: str = "uniform",
        mean: float = 0.0,
        std: float = 1.0,
    ) -> Tensor:
        """Random integer steps in [0, T), shape (B,), see `prdit_models.diffusion.times.draw_steps`."""
        return draw_steps(self.num_steps, batch, generator, distribution, mean, std)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Unit Gaussian noise, float32, on the generator's device."""
        return torch.randn(shape, generator=generator, device=None if generator is None else generator.device)

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Noise clean volumes to steps t: x_t = sqrt(ᾱ_t)·x0 + sqrt(1 - ᾱ_t)·eps.

        Args:
            x0: clean volumes, or what stands for them, shape (B, C, D, H, W).
            t: integer steps in [0, T), shape (B,).
            eps: unit noise, same shape as x0.
        Raises: ValueError: if shapes differ or t is out of range.
        Source: Ho et al. 2020, equation 4.
        """
        if x0.shape != eps.shape or t.shape != x0.shape[:1]:
            raise ValueError(
                f"q_sample got x0 {tuple(x0.shape)}, eps {tuple(eps.shape)}, t {tuple(t.shape)}; expected equal shapes "
                "(B, C, D, H, W) and t (B,)."
            )
        check_steps(t, self.num_steps)
        found = torch.from_numpy(self.alpha_bars).to(x0.device)[t.to(x0.device)].view(-1, *[1] * (x0.dim() - 1))
        return found.sqrt().to(x0.dtype) * x0 + (1.0 - found).sqrt().to(x0.dtype) * eps

    def losses(self, model_output: Tensor, x0: Tensor, eps: Tensor, t: Tensor | None = None) -> dict[str, Tensor]:
        """What a training minimises, `loss`: the mean squared error of what is predicted, all times with the same weight.

        Raises: ValueError: if shapes do not fit.
        Source: Ho et al. 2020, equation 14 (L_simple).
        """
        self._check_output(model_output, x0)
        return {"loss": (model_output - (eps if self.prediction == "noise" else x0)).square().mean()}

    def visited(self, sampler: Sampler) -> list[int]:
        """Steps at which a sampler evaluates the network, decreasing to 0.

        `even`: exactly n of them, evenly spaced from T-1 to 0 (one: T-1 alone). `published`: multiples of ⌊T/n⌋ (DDIM, Song et
        al. 2021, section D.2). With n = T both are all steps.

        Raises: ValueError: n is not in [1, T].
        """
        multiples = respaced_times(sampler.num_steps, self.num_steps)
        if sampler.schedule == "published":
            return multiples
        return [round(float(step)) for step in np.linspace(self.num_steps - 1, 0, sampler.num_steps)]

    def transitions(self, times: list[int]) -> list[Transition]:
        """Coefficients of the steps between visited times, and of the last one, to the image.

        For a step from t to s: q(x_s | x_t, x0) is Gaussian with mean (sqrt(ᾱ_s)·β·x0 + sqrt(α)·(1 - ᾱ_s)·x_t)/(1 - ᾱ_t)
        and variance β·(1 - ᾱ_s)/(1 - ᾱ_t), where α = ᾱ_t/ᾱ_s and β = 1 - α.

        Source: Ho et al. 2020, equations 6 and 7; for steps that are left out, Nichol & Dhariwal 2021, section 4.
        """
        alpha_bars = [float(self.alpha_bars[t]) for t in times]
        found = []
        for here, there in itertools.pairwise([*alpha_bars, 1.0]):
            alpha = here / there
            beta, left = 1.0 - alpha, 1.0 - there
            variance = beta * left / (1.0 - here) if self.variance == "small" else beta
            found.append(
                Transition(
                    signal=math.sqrt(here),
                    noise=math.sqrt(1.0 - here),
                    target_signal=math.sqrt(there),
                    target_noise=math.sqrt(left),
                    image_weight=math.sqrt(there) * beta / (1.0 - here),
                    state_weight=math.sqrt(alpha) * left / (1.0 - here),
                    std=math.sqrt(variance) if left else 0.0,
                )
            )
        return found

    def evaluations(self, sampler: Sampler) -> int:
        """Evaluations of the network a sampler makes.

        Raises: ValueError: there is no such sampler of this process, or no such schedule.
        """
        stepper_of(sampler.name, self.name)
        if sampler.parametrization != "velocity":
            raise ValueError(
                f"A model of the process 'ddpm' has one estimate, got parametrization {sampler.parametrization!r}; leave it at "
                "'velocity' (sample.parametrization)."
            )
        return len(self.visited(sampler))

    def integrate(
        self,
        model: Denoiser,
        sampler: Sampler,
        fresh_noise: Callable[[], Tensor],
        report: Report,
        guide: Guide | None = None,
    ) -> SampleResult:
        """Integrate from noise to volumes. The state that it ends in is the image estimate of the last evaluation.

        Args:
            model: maps (x (B, C, S, S, S), 0-d integer t) to (B, C, S, S, S); may have `constrained`, see
                `prdit_models.diffusion.process.constrained`.
            sampler: stepper, schedule and number of evaluations.
            fresh_noise: unit noise of the state's shape; first the initial state.
            report: called with (evaluations done, image estimate).
            guide: corrects image estimates, after they are clamped.
        """
        stepper, times = stepper_of(sampler.name, self.name), self.visited(sampler)
        x = fresh_noise()
        image, steering = x, None if guide is None else Steering(guide)

        def network(state: Tensor, t: int, step: Transition) -> Tensor:
            output = model(state, torch.tensor(t, device=state.device)).to(state.dtype)
            return constrained(model, self.image_of(output, state, step))

        with prepared(model, torch.tensor(times)):
            for done, (t, step) in enumerate(zip(times, self.transitions(times), strict=True), start=1):
                if steering is None:
                    image = network(x, t, step)
                else:
                    with steering.differentiating():
                        seen = steering.seen(x)
                        level = Level(step.signal, step.noise, share_of(step.signal, step.noise))
                        image = steering.steered(network(seen, t, step), seen, level)
                report(done, image)
                x = stepper(x, image, step, fresh_noise)
                if steering is not None:
                    x = steering.moved(x)
        return SampleResult(x=x, x0=image.clone())

    def image_of(self, model_output: Tensor, x: Tensor, step: Transition) -> Tensor:
        """The image estimate of a network's output at a state x, clamped where `clip` is set."""
        self._check_output(model_output, x)
        image = model_output if self.prediction == "image" else (x - step.noise * model_output) / step.signal
        return image.clamp(-1.0, 1.0) if self.clip else image

    def to_dict(self) -> dict[str, Any]:
        """The process as a checkpoint stores it."""
        return {"name": self.name, **asdict(self)}

    def _check_output(self, model_output: Tensor, state: Tensor) -> None:
        if model_output.shape != state.shape:
            raise ValueError(
                f"The model returned {tuple(model_output.shape)} for a state {tuple(state.shape)}; prediction {self.prediction!r} "
                "needs the same shape. Was the model built with as many output channels as it has input channels?"
            )


def deviations_of(process: Process, published: DDPMProcess, but: str = "") -> tuple[str, ...]:
    """Fields of a process that differ from the published one, in sentences; one may be left out."""
    ours, theirs = process.to_dict(), published.to_dict()
    differing = [name for name in ours if name != but and ours[name] != theirs.get(name)]
    return tuple(f"Process: {name} {ours[name]} (published: {theirs.get(name)})." for name in differing)


@functools.cache
def _alpha_bars(schedule: str, beta_start: float, beta_end: float, num_steps: int) -> NDArray[np.float64]:
    power = 1 if schedule == "linear" else 2
    roots = np.linspace(beta_start ** (1 / power), beta_end ** (1 / power), num_steps)
    found: NDArray[np.float64] = np.cumprod(1.0 - roots**power, dtype=np.float64)
    return found
