"""From noise to volumes: the published predictor-corrector and its Euler special case, memory flat in steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prdit_models.diffusion import CosineProcess

Denoiser = Callable[[Tensor, Tensor], Tensor]
NoiseSource = Callable[[tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class SampleResult:
    """What a sampler returns.

    Attributes:
        x: final state, shape (B, C, S, S, S), model range, not clipped.
        x0: image estimate of the last evaluation (at t = 0), same shape.
    """

    x: Tensor
    x0: Tensor


@dataclass(frozen=True)
class StepCoefficients:
    """Numbers of one sampler step from time t to the next lower visited time.

    Attributes:
        t: visited time.
        target: next lower visited time (0 at the end).
        sin: sin β(t).
        cos: cos β(t).
        advance: angle travelled along the drift, k·(β(t) - β(target)); k is the predictor step where a corrector follows,
            else 1.
        alpha: factor on the predicted state, 1 without corrector.
        noise: factor on fresh noise of unit scale, relative to the process's std; 0 without corrector.
        corrects: whether fresh noise is drawn.
    """

    t: int
    target: int
    sin: float
    cos: float
    advance: float
    alpha: float
    noise: float
    corrects: bool


def respaced_times(num_steps: int, num_train_steps: int = 1000) -> list[int]:
    """Visited times in decreasing order: multiples of ⌊T / n⌋ below T.

    Only divisors of T give exactly n evaluations (n = 300 of 1000 gives 334): the published rule, kept.

    Raises: ValueError: if n is not in [1, T].
    Source: SPEC §3.
    """
    if not 1 <= num_steps <= num_train_steps:
        raise ValueError(f"num_steps is {num_steps}; expected 1 to {num_train_steps}, the steps the process has.")
    return list(range(0, num_train_steps, num_train_steps // num_steps))[::-1]


def step_coefficients(process: CosineProcess, num_steps: int, predictor_step: int = 2) -> list[StepCoefficients]:
    """Coefficients of every step, formed in float32 in the published order of operations.

    The order matters: near t = 0, `1 - a·a` cancels and float32 differs from exact arithmetic by 2.4e-3.

    Args:
        process: the process that was trained.
        num_steps: requested steps, see `respaced_times`.
        predictor_step: k >= 1. The predictor jumps k visited steps along the local drift, the corrector goes k - 1 back by
            adding noise; 1 is plain Euler in angle (published as "DDIM").
    Raises: ValueError: if num_steps or predictor_step is out of range.
    Source: SPEC §3, §9.
    """
    if predictor_step < 1:
        raise ValueError(f"predictor_step is {predictor_step}; expected 1 (no corrector) or more (published: 2).")
    visited = respaced_times(num_steps, process.num_steps)
    times = torch.tensor(visited)
    targets = torch.tensor([*visited[1:], 0])
    landing = times - predictor_step * (times - targets)
    corrects = (landing > 0) & (predictor_step > 1)
    angle, target_angle = process.angle(times), process.angle(targets)
    ratio = torch.cos(target_angle) / torch.cos(process.angle(landing.clamp(min=0)))
    alpha = torch.where(corrects, ratio, torch.ones_like(ratio))
    noise = torch.sqrt(torch.clamp(1.0 - alpha * alpha, min=0.0))
    advance = torch.where(corrects, float(predictor_step), 1.0) * (angle - target_angle)
    columns = (torch.sin(angle), torch.cos(angle), advance, alpha, noise)
    rows = zip(visited, targets.tolist(), *(column.tolist() for column in columns), corrects.tolist(), strict=True)
    return [StepCoefficients(*row) for row in rows]


def generator_noise(process: CosineProcess, generators: Sequence[torch.Generator]) -> NoiseSource:
    """Noise whose volume i comes from generator i alone, so that it does not depend on the batch it is drawn in."""

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.stack([process.noise(shape[1:], generator) for generator in generators])

    return draw


@torch.no_grad()
def sample(
    model: Denoiser,
    process: CosineProcess,
    *,
    volume_size: int,
    num_steps: int,
    predictor_step: int = 2,
    generators: Sequence[torch.Generator],
    in_channels: int = 1,
    device: torch.device | str = "cpu",
    callback: Callable[[int, int], None] | None = None,
    noise_source: NoiseSource | None = None,
) -> SampleResult:
    """Draw one volume per generator.

    One state is kept whatever the number of steps; nothing is clipped. Noise is drawn where each generator lives and
    moved, so a seed means the same volume on every device (up to rounding).

    Args:
        model: maps (x (B, C, S, S, S), 0-d t) to (B, 2·C, S, S, S), noise channels first; in the mode it should run in.
        process: the process the model was trained with.
        volume_size: S in voxels.
        num_steps: requested steps, see `respaced_times`.
        predictor_step: see `step_coefficients`.
        generators: one for each volume of the batch.
        in_channels: C.
        device: where the model runs.
        callback: called as (done, total) after every evaluation.
        noise_source: replaces the generators' noise: called with the full shape, first for the initial state, then for every
            corrector in order, and returns noise of the process's std.
    Raises: ValueError: if a step count is out of range, there are no generators, or the model's output does not fit.
    Source: SPEC §3.
    """
    steps = step_coefficients(process, num_steps, predictor_step)
    if not generators:
        raise ValueError("sample got no generators; pass one torch.Generator for each volume of the batch.")
    draw = noise_source or generator_noise(process, generators)
    shape = (len(generators), in_channels, volume_size, volume_size, volume_size)
    x = draw(shape).to(device)
    x0_hat = x
    for done, step in enumerate(steps, start=1):
        output = model(x, torch.tensor(step.t, device=x.device)).to(x.dtype)
        if output.shape != (shape[0], 2 * in_channels, *shape[2:]):
            raise ValueError(
                f"The model returned {tuple(output.shape)} for x {shape}; the sampler needs noise and image estimates, "
                f"(B, {2 * in_channels}, S, S, S)."
            )
        eps_hat, x0_hat = output.chunk(2, dim=1)
        drift = step.sin * x0_hat - step.cos * eps_hat  # -dx/dβ
        x = x + step.advance * drift
        if step.corrects:
            x = step.alpha * x + step.noise * draw(shape).to(device)
        if callback is not None:
            callback(done, len(steps))
    return SampleResult(x=x, x0=x0_hat.clone())
