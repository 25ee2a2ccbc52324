"""Flow matching: a straight line from noise to the volume, and a network that predicts its velocity (PRDiT-FM)."""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from prdit_models.diffusion.process import VALIDATION_SHARES, Denoiser, Report, SampleResult, prepared
from prdit_models.diffusion.sampler import SAMPLERS, Sampler, stepper_of
from prdit_models.diffusion.steering import Guide, Level, Steering, share_of
from prdit_models.diffusion.times import logit_normal


@dataclass(frozen=True)
class FlowProcess:
    """x_t = (1-t)·eps + t·x0 for t in [0, 1], eps ~ N(0, 1), velocity x0 - eps.

    Time runs opposite to `CosineProcess`: t = 0 is noise. The network is given `model_time(t)` = 1000·t.

    Attributes:
        noise_std: 1, by definition of the variant.
        num_steps: scale of the time the network sees.
        prediction: `velocity`.
    Source: SPEC §3.1.
    """

    name: ClassVar[str] = "flow"

    noise_std: float = 1.0
    num_steps: int = 1000
    prediction: str = "velocity"

    def __post_init__(self) -> None:
        if (self.noise_std, self.num_steps, self.prediction) != (1.0, 1000, "velocity"):
            raise ValueError(
                f"Flow matching has noise_std 1, time scale 1000 and prediction 'velocity', got {self.noise_std}, "
                f"{self.num_steps}, {self.prediction!r}."
            )

    @property
    def outputs(self) -> int:
        """Output channels of a network for each channel of the volume: its velocity."""
        return 1

    def model_time(self, t: Tensor) -> Tensor:
        """The time the network sees."""
        return t * float(self.num_steps)

    def validation_times(self) -> dict[str, Tensor]:
        """Times at which losses are validated, by the time the network sees."""
        return {f"t{round(self.num_steps * share):03d}": torch.tensor(share) for share in VALIDATION_SHARES}

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Unit Gaussian noise, float32, on the generator's device."""
        return torch.randn(shape, generator=generator, device=None if generator is None else generator.device)

    def draw_times(
        self,
        batch: int,
        generator: torch.Generator | None = None,
        *,
        distribution: str = "uniform",
        mean: float = 0.0,
        std: float = 1.0,
    ) -> Tensor:
        """Random times in [0, 1), shape (B,), on the generator's device.

        Args:
            batch: B.
            generator: source of the numbers.
            distribution: `uniform` (published), or `logit-normal`, see `prdit_models.diffusion.times`.
            mean, std: of the logit.
        Raises: ValueError: for an unknown distribution or a std that is not positive.
        """
        if distribution == "uniform":
            return torch.rand((batch,), generator=generator, device=None if generator is None else generator.device)
        return logit_normal(batch, generator, distribution, mean, std)

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = (1-t)·eps + t·x0 for x0 and eps (B, C, D, H, W) and t (B,).

        Raises: ValueError: if shapes do not fit or a time lies outside [0, 1].
        Source: SPEC §3.1.
        """
        if x0.shape != eps.shape or t.shape != x0.shape[:1]:
            raise ValueError(
                f"q_sample got x0 {tuple(x0.shape)}, eps {tuple(eps.shape)}, t {tuple(t.shape)}; expected equal shapes "
                "(B, C, D, H, W) and t (B,)."
            )
        if t.numel() and not (float(t.min()) >= 0.0 and float(t.max()) <= 1.0):
            raise ValueError(f"t lies in [{float(t.min())}, {float(t.max())}]; expected times in [0, 1].")
        share = t.view(-1, *[1] * (x0.dim() - 1)).to(x0.device)
        return (1.0 - share) * eps + share * x0

    def sample_losses(self, velocity: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        """Mean squared error of the velocity (B, C, D, H, W) for each volume, shape (B,).

        Raises: ValueError: if shapes do not fit.
        Source: SPEC §3.1.
        """
        self._check_output(velocity, x0)
        return (velocity - (x0 - eps)).square().flatten(1).mean(1)

    def losses(self, model_output: Tensor, x0: Tensor, eps: Tensor, t: Tensor | None = None) -> dict[str, Tensor]:
        """What a training minimises, `loss`: the mean of `sample_losses`; it does not depend on the times."""
        return {"loss": self.sample_losses(model_output, x0, eps).mean()}

    def reconstruct(self, x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        """The volume a velocity (B, C, D, H, W) points to from x_t at times t, (B,) or 0-d: x_t + (1-t)·v."""
        return x_t + (1.0 - t.view(-1, *[1] * (x_t.dim() - 1))) * velocity

    def evaluations(self, sampler: Sampler) -> int:
        """Evaluations of the network a sampler makes.

        Raises: ValueError: there is no such sampler of this process, or it cannot make that number of evaluations.
        """
        solver = SAMPLERS[sampler.name]
        stepper_of(sampler.name, self.name)
        if sampler.parametrization != "velocity":
            raise ValueError(
                f"Flow matching predicts its velocity, got parametrization {sampler.parametrization!r}; use 'velocity'."
            )
        if solver.both_ends and sampler.num_steps % 2:
            raise ValueError(
                f"num_steps is {sampler.num_steps}; {sampler.name!r} on flow matching evaluates twice per step: use "
                f"{sampler.num_steps + 1}."
            )
        return sampler.num_steps

    def integrate(
        self,
        model: Denoiser,
        sampler: Sampler,
        fresh_noise: Callable[[], Tensor],
        report: Report,
        guide: Guide | None = None,
    ) -> SampleResult:
        """Integrate from noise (t = 0) to the volume (t = 1) in equal steps of time (SPEC §3.1).

        Args:
            model: maps (x (B, C, S, S, S), 0-d model time) to (B, C, S, S, S).
            sampler: stepper and number of evaluations; flow matching has one schedule.
            fresh_noise: the initial state.
            report: called with (evaluations done, image estimate).
            guide: corrects the image a velocity points to, and with it the velocity.
        """
        solver, done = SAMPLERS[sampler.name], 0
        num_intervals = self.evaluations(sampler) // (2 if solver.both_ends else 1)
        stepper = stepper_of(sampler.name, self.name)
        grid = [step / num_intervals for step in range(num_intervals + 1)]
        x = fresh_noise()
        x0, steering = x, None if guide is None else Steering(guide)

        def network(state: Tensor, t: float) -> tuple[Tensor, Tensor]:
            nonlocal done
            found = model(state, self.model_time(torch.tensor(t, device=state.device))).to(state.dtype)
            self._check_output(found, state)
            done += 1
            return found, self.reconstruct(state, found, torch.tensor(t, device=state.device))

        def velocity(state: Tensor, t: float) -> Tensor:
            nonlocal x0
            if steering is None:
                found, x0 = network(state, t)
            else:
                with steering.differentiating():
                    seen = steering.seen(state)
                    found, own = network(seen, t)
                    x0 = steering.steered(own, seen, Level(t, (1.0 - t) * self.noise_std, share_of(t, 1.0 - t)))
                found = found.detach() if t == 1.0 else (x0 - state) / (1.0 - t)
            report(done, x0)
            return found

        with prepared(model, self.model_time(torch.tensor(grid))):
            for t, target in itertools.pairwise(grid):
                x = stepper(x, velocity, t, target - t)
                if steering is not None:
                    x = steering.moved(x)
        return SampleResult(x=x, x0=x0.clone())

    def to_dict(self) -> dict[str, Any]:
        """The process as a checkpoint stores it."""
        return {"name": self.name, **asdict(self)}

    @staticmethod
    def _check_output(velocity: Tensor, state: Tensor) -> None:
        if velocity.shape != state.shape:
            raise ValueError(
                f"The model returned {tuple(velocity.shape)} for volumes {tuple(state.shape)}; flow matching needs one velocity "
                "per voxel. Was the model built with out_channels 1?"
            )
