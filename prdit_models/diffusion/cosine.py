"""The cosine process: a rotation by π/2 from the volume to noise, and the loss of a network that predicts both."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from prdit_models.diffusion.parametrization import PARAMETRIZATION, Estimates, Heads, Parametrize, from_image
from prdit_models.diffusion.process import VALIDATION_SHARES, Denoiser, Report, SampleResult, prepared
from prdit_models.diffusion.sampler import Sampler, stepper_of
from prdit_models.diffusion.schedule import Step, num_evaluations, plan
from prdit_models.diffusion.steering import Guide, Level, Steering
from prdit_models.diffusion.times import check_steps, draw_steps

PREDICTIONS = {"noise_image": 2, "image": 1}  # output channels for each channel of the volume
SINE_FLOOR = (
    0.05  # below this sine, dividing by it would amplify errors of the image estimate (JiT clamps at the same value)
)


@dataclass(frozen=True)
class CosineProcess:
    """Forward process x_t = cos(β)·x0 + sin(β)·eps with β = πt/2T.

    Attributes:
        noise_std: standard deviation of eps in model units (published: 0.5; TF-PRDiT: 1). It belongs to the process: a
            checkpoint is usable only with the value it was trained with.
        num_steps: T.
        prediction: `noise_image`, both from two output channels (published), or `image`, x0 alone from one, trained with the
            velocity's loss (JiT, Li & He 2025).
    Source: SPEC §2.
    """

    name: ClassVar[str] = "cosine"

    noise_std: float = 0.5
    num_steps: int = 1000
    prediction: str = "noise_image"

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction is {self.prediction!r}; expected one of {list(PREDICTIONS)}.")
        if not self.noise_std > 0 or not math.isfinite(self.noise_std):
            raise ValueError(f"noise_std is {self.noise_std}; expected a positive number (published: 0.5).")
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; expected at least 1 (published: 1000).")

    @property
    def outputs(self) -> int:
        """Output channels of a network for each channel of the volume."""
        return PREDICTIONS[self.prediction]

    def model_time(self, t: Tensor) -> Tensor:
        """The time the network sees: the step itself."""
        return t

    def validation_times(self) -> dict[str, Tensor]:
        """Steps at which losses are validated, by name."""
        steps = [round(share * self.num_steps) for share in VALIDATION_SHARES]
        return {f"t{step:03d}": torch.tensor(step) for step in steps}

    def angle(self, t: Tensor) -> Tensor:
        """β of integer steps t, formed in float32 as published: (t / T)·(π / 2)."""
        return (t.to(torch.float32) / self.num_steps) * (math.pi / 2)

    def draw_times(
        self,
        batch: int,
        generator: torch.Generator | None = None,
        *,
        distribution: str = "uniform",
        mean: float = 0.0,
        std: float = 1.0,
    ) -> Tensor:
        """Random integer steps in [0, T), shape (B,), `uniform` (published), or see `prdit_models.diffusion.times.draw_steps`."""
        return draw_steps(self.num_steps, batch, generator, distribution, mean, std)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Gaussian noise of the process's std, float32, on the generator's device."""
        device = generator.device if generator is not None else None
        return torch.randn(shape, generator=generator, device=device).mul_(self.noise_std)

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Noise a clean volume to step t: x_t = cos(β)·x0 + sin(β)·eps.

        Args:
            x0: clean volume in model range [-1, 1], shape (B, C, D, H, W).
            t: diffusion step in [0, T), integer, shape (B,).
            eps: noise with the process's std, same shape as x0.
        Returns: x_t, same shape.
        Raises: ValueError: if shapes differ or t is out of range.
        Source: PRDiT (ICLR 2026), forward process; SPEC §2.
        """
        if x0.shape != eps.shape or t.shape != x0.shape[:1]:
            raise ValueError(
                f"q_sample got x0 {tuple(x0.shape)}, eps {tuple(eps.shape)}, t {tuple(t.shape)}; expected equal shapes "
                "(B, C, D, H, W) and t (B,)."
            )
        check_steps(t, self.num_steps)
        angle = self.angle(t).view(-1, *[1] * (x0.dim() - 1)).to(x0.device)
        return torch.cos(angle) * x0 + torch.sin(angle) * eps

    def sample_losses(self, model_output: Tensor, x0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared errors of the noise and of the image estimate, per volume, of a network that predicts both.

        Args:
            model_output: (B, 2·C, D, H, W), noise channels first.
            x0: clean volume, (B, C, D, H, W).
            eps: noise with the process's std, same shape.
        Returns: (noise, image), each (B,).
        Raises: ValueError: if shapes do not fit.
        Source: SPEC §2.
        """
        self._check_output(model_output, x0, eps)
        eps_hat, x0_hat = model_output.chunk(2, dim=1)
        return (eps_hat - eps).square().flatten(1).mean(1), (x0_hat - x0).square().flatten(1).mean(1)

    def losses(self, model_output: Tensor, x0: Tensor, eps: Tensor, t: Tensor | None = None) -> dict[str, Tensor]:
        """What a training minimises, `loss`, and its parts, as 0-d batch means.

        For `noise_image`: `loss_noise` + `loss_image` (see `sample_losses`). For `image`: the squared error of the velocity
        dx_t/dβ = cos(β)·eps - sin(β)·x0 that the estimate implies. With eps_hat = (x_t - cos(β)·x0_hat)/sin(β) the errors are
        -cos(β)/sin(β)·e and e for e = x0_hat - x0, so that of the velocity is -(cos²(β)/sin(β) + sin(β))·e = -e/sin(β):
        loss = mean |e|² / max(sin β, 0.05)².

        Args:
            model_output: (B, O, D, H, W), O as the prediction needs.
            x0, eps: clean volume and noise, (B, C, D, H, W).
            t: the steps, (B,); only `image` needs them.
        Raises: ValueError: if shapes do not fit, or steps are missing.
        """
        if self.prediction == "noise_image":
            noise, image = (part.mean() for part in self.sample_losses(model_output, x0, eps))
            return {"loss": noise + image, "loss_noise": noise, "loss_image": image}
        self._check_output(model_output, x0, eps)
        if t is None or t.shape != x0.shape[:1]:
            raise ValueError(
                f"The loss of prediction 'image' depends on the steps; got t {t}, expected ({x0.shape[0]},)."
            )
        squared = (model_output - x0).square().flatten(1).mean(1)
        weight = torch.sin(self.angle(t)).clamp(min=SINE_FLOOR).square().to(squared.device)
        return {"loss": (squared / weight).mean(), "loss_image": squared.mean()}

    def estimates(self, model_output: Tensor, x: Tensor, sin: float, cos: float) -> tuple[Tensor, Tensor]:
        """The network's own (eps_hat, x0_hat) at one angle, whatever it predicts.

        Args:
            model_output: (B, O, D, H, W).
            x: the state it was computed from, (B, C, D, H, W).
            sin, cos: of the state's β.
        Raises: ValueError: if the output does not fit the state.
        """
        self._check_output(model_output, x, x)
        if self.prediction == "noise_image":
            eps_hat, x0_hat = model_output.chunk(2, dim=1)
            return eps_hat, x0_hat
        return (x - cos * model_output) / max(sin, SINE_FLOOR), model_output

    def evaluations(self, sampler: Sampler) -> int:
        """Evaluations of the network a sampler makes.

        Raises: ValueError: there is no such sampler of this process, or no such schedule.
        """
        stepper_of(sampler.name, self.name)
        return num_evaluations(sampler, self.num_steps)

    def integrate(
        self,
        model: Denoiser,
        sampler: Sampler,
        fresh_noise: Callable[[], Tensor],
        report: Report,
        guide: Guide | None = None,
    ) -> SampleResult:
        """Integrate from noise to volumes along a schedule of angles (SPEC §3).

        Args:
            model: maps (x (B, C, S, S, S), 0-d t) to (B, O, S, S, S).
            sampler: stepper, schedule, parametrisation and number of evaluations.
            fresh_noise: noise of the process's std, of the state's shape; first the initial state.
            report: called with (evaluations done, image estimate).
            guide: corrects image estimates; the noise beside a corrected one is what it leaves in the state.
        """
        steps = plan(sampler, self.num_steps)
        times = torch.tensor(sorted({time for step in steps for time in _visited(step)}))
        with prepared(model, times):
            return self._walk(model, sampler, steps, fresh_noise, report, None if guide is None else Steering(guide))

    def _walk(
        self,
        model: Denoiser,
        sampler: Sampler,
        steps: list[Step],
        fresh_noise: Callable[[], Tensor],
        report: Report,
        steering: Steering | None,
    ) -> SampleResult:
        x, done, total = fresh_noise(), 0, sum(step.evaluations for step in steps)
        previous: tuple[Step, Tensor] | None = None
        image, corrects = x, any(step.corrects for step in steps)
        parametrize, stepper = PARAMETRIZATION[sampler.parametrization], stepper_of(sampler.name, self.name)

        def evaluate(state: Tensor, t: float, sin: float, cos: float) -> Heads:
            nonlocal done
            output = model(state, torch.tensor(t, device=state.device)).to(state.dtype)
            done += 1
            return Heads(*self.estimates(output, state, sin, cos))

        def finish(own: Tensor) -> None:
            nonlocal image
            image = own
            report(done, own)

        def estimate(state: Tensor, t: float, sin: float, cos: float) -> Estimates:
            if steering is None:
                heads = evaluate(state, t, sin, cos)
                finish(heads.x0)
                return parametrize(state, heads, sin, cos)
            found, own = self._guided(steering, evaluate, parametrize, (state, t, sin, cos), done + 1 == total)
            finish(own)
            return found

        for step in steps:
            if step.t == 0.0:  # the published schedule ends with an evaluation at t = 0, without a step
                finish(evaluate(x, step.t, step.sin, step.cos).x0)
                break
            found = estimate(x, step.t, step.sin, step.cos)
            x = stepper(x, found, step, previous, estimate, fresh_noise)
            if steering is not None:  # published: together with the corrector, where there is one
                x = steering.moved(x, step.alpha if step.corrects or not corrects else 0.0)
            previous = (step, found.x0)
        return SampleResult(x=x, x0=image.clone())

    def _guided(
        self,
        steering: Steering,
        evaluate: Callable[[Tensor, float, float, float], Heads],
        parametrize: Parametrize,
        at: tuple[Tensor, float, float, float],
        last: bool,
    ) -> tuple[Estimates, Tensor]:
        """Estimates with the measurement in them, and the image to be reported.

        Steps follow the image of the parametrisation, corrected. The last evaluation's own image is corrected too, since it is what
        may be returned.
        """
        state, t, sin, cos = at
        level = Level(cos, sin * self.noise_std, t / self.num_steps)
        with steering.differentiating():
            seen = steering.seen(state)
            heads = evaluate(seen, t, sin, cos)
            found = parametrize(seen, heads, sin, cos)
            if steering.guide.moves_state:
                steering.move(heads.x0, seen, level)
                return Estimates(*(part.detach() for part in found)), heads.x0.detach()
            image = steering.corrected(found.x0, seen, level)
            own = steering.corrected(heads.x0, seen, level) if last else image
        return from_image(state, heads._replace(x0=image), sin, cos), own

    def to_dict(self) -> dict[str, Any]:
        """The process as a checkpoint stores it."""
        return {"name": self.name, **asdict(self)}

    def _check_output(self, model_output: Tensor, x0: Tensor, eps: Tensor) -> None:
        channels = PREDICTIONS[self.prediction]
        expected = (x0.shape[0], channels * x0.shape[1], *x0.shape[2:])
        if tuple(model_output.shape) != expected or eps.shape != x0.shape:
            raise ValueError(
                f"The model returned {tuple(model_output.shape)} for a state {tuple(x0.shape)} and noise {tuple(eps.shape)}; "
                f"prediction {self.prediction!r} needs {expected}. Was the model built with out_channels {channels}?"
            )


def _visited(step: Step) -> tuple[float, ...]:
    return (step.t, step.target) if step.evaluations == 2 else (step.t,)
