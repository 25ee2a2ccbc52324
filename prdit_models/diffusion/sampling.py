"""From noise to volumes: one state in memory, whatever the number of steps."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.flow import FlowProcess
from prdit_models.diffusion.parametrization import PARAMETRIZATION, Estimates, Heads
from prdit_models.diffusion.sampler import Sampler
from prdit_models.diffusion.schedule import Step, num_evaluations, plan
from prdit_models.diffusion.steppers import STEPPERS

Denoiser = Callable[[Tensor, Tensor], Tensor]
NoiseSource = Callable[[tuple[int, ...]], Tensor]
Callback = Callable[[int, int, Tensor], None]

__all__ = ["Callback", "Denoiser", "NoiseSource", "SampleResult", "Sampler", "evaluations", "sample"]


@dataclass(frozen=True)
class SampleResult:
    """What a sampler returns.

    Attributes:
        x: final state, shape (B, C, S, S, S), model range, not clipped.
        x0: the network's own image estimate at the last evaluation, whatever the parametrisation; same shape.
    """

    x: Tensor
    x0: Tensor


def evaluations(sampler: Sampler, process: CosineProcess | FlowProcess) -> int:
    """Evaluations of the network a sampler makes.

    Raises: ValueError: if the process has no such sampler or schedule.
    """
    if isinstance(process, FlowProcess):
        return _flow_steps(sampler) * (2 if sampler.name == "heun" else 1)
    return num_evaluations(sampler, process)


def generator_noise(process: CosineProcess | FlowProcess, generators: Sequence[torch.Generator]) -> NoiseSource:
    """Noise whose volume i comes from generator i alone, so that it does not depend on the batch it is drawn in."""

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.stack([process.noise(shape[1:], generator) for generator in generators])

    return draw


@torch.no_grad()
def sample(
    model: Denoiser,
    process: CosineProcess | FlowProcess,
    sampler: Sampler,
    *,
    volume_size: int,
    generators: Sequence[torch.Generator],
    in_channels: int = 1,
    device: torch.device | str = "cpu",
    callback: Callback | None = None,
    noise_source: NoiseSource | None = None,
) -> SampleResult:
    """Draw one volume per generator.

    One state is kept whatever the number of steps; nothing is clipped. Noise is drawn where each generator lives and
    moved, so a seed means the same volume on every device (up to rounding). A model with `prepared(times)` computes what depends
    on time alone once for the schedule.

    Args:
        model: maps (x (B, C, S, S, S), 0-d t) to (B, O, S, S, S) as the process's prediction says; in the mode it should run in.
        process: the process the model was trained with.
        sampler: stepper, schedule, parametrisation and number of evaluations.
        volume_size: S in voxels.
        generators: one for each volume of the batch.
        in_channels: C.
        device: where the model runs.
        callback: called as (done, total, x0_hat) after every evaluation, x0_hat the network's image estimate.
        noise_source: replaces the generators' noise: called with the full shape, first for the initial state, then whenever a
            step draws fresh noise, in order, and returns noise of the process's std.
    Raises: ValueError: if the process has no such sampler, there are no generators, or the model's output does not fit.
    Source: SPEC §3; steppers name their own.
    """
    total = evaluations(sampler, process)
    if not generators:
        raise ValueError("sample got no generators; pass one torch.Generator for each volume of the batch.")
    draw = noise_source or generator_noise(process, generators)
    shape = (len(generators), in_channels, volume_size, volume_size, volume_size)

    def fresh_noise() -> Tensor:
        return draw(shape).to(device)

    def report(done: int, image: Tensor) -> None:
        if callback is not None:
            callback(done, total, image)

    if isinstance(process, FlowProcess):
        return _integrate_flow(model, process, sampler, fresh_noise(), report)
    steps = plan(sampler, process)
    times = torch.tensor(sorted({time for step in steps for time in _visited(step)}))
    with _prepared(model, times):
        return _walk(model, process, sampler, steps, fresh_noise, report)


def _walk(
    model: Denoiser,
    process: CosineProcess,
    sampler: Sampler,
    steps: list[Step],
    fresh_noise: Callable[[], Tensor],
    report: Callable[[int, Tensor], None],
) -> SampleResult:
    x, done = fresh_noise(), 0
    previous: tuple[Step, Tensor] | None = None
    heads = Heads(x, x)
    parametrize, stepper = PARAMETRIZATION[sampler.parametrization], STEPPERS[sampler.name]

    def evaluate(state: Tensor, t: float, sin: float, cos: float) -> Heads:
        nonlocal done, heads
        output = model(state, torch.tensor(t, device=state.device)).to(state.dtype)
        heads = Heads(*process.estimates(output, state, sin, cos))
        done += 1
        report(done, heads.x0)
        return heads

    def estimate(state: Tensor, t: float, sin: float, cos: float) -> Estimates:
        return parametrize(state, evaluate(state, t, sin, cos), sin, cos)

    for step in steps:
        if step.t == 0.0:  # the published schedule looks once more at t = 0 and moves no more
            evaluate(x, step.t, step.sin, step.cos)
            break
        found = estimate(x, step.t, step.sin, step.cos)
        x = stepper(x, found, step, previous, estimate, fresh_noise)
        previous = (step, found.x0)
    return SampleResult(x=x, x0=heads.x0.clone())


def _visited(step: Step) -> tuple[float, ...]:
    return (step.t, step.target) if step.evaluations == 2 else (step.t,)


def _prepared(model: Denoiser, times: Tensor) -> Any:
    prepare = getattr(model, "prepared", None)
    return nullcontext() if prepare is None else prepare(times)


def _flow_steps(sampler: Sampler) -> int:
    if sampler.name not in ("euler", "heun"):
        raise ValueError(f"Flow matching is sampled by 'euler' or 'heun' (sample.sampler), got {sampler.name!r}.")
    if sampler.parametrization != "velocity":
        raise ValueError(
            f"Flow matching predicts its velocity, got parametrization {sampler.parametrization!r}; use 'velocity'."
        )
    if sampler.name == "heun" and sampler.num_steps % 2:
        raise ValueError(
            f"num_steps is {sampler.num_steps}; Heun's method on flow matching evaluates twice a step: use "
            f"{sampler.num_steps + 1}."
        )
    return sampler.num_steps // 2 if sampler.name == "heun" else sampler.num_steps


def _integrate_flow(
    model: Denoiser, process: FlowProcess, sampler: Sampler, x: Tensor, report: Callable[[int, Tensor], None]
) -> SampleResult:
    """From noise (t = 0) to the volume (t = 1) in equal steps of time (SPEC §3.1)."""
    num_steps, done = _flow_steps(sampler), 0
    grid = [step / num_steps for step in range(num_steps + 1)]
    x0 = x

    def velocity(state: Tensor, t: float) -> Tensor:
        nonlocal done, x0
        found = model(state, process.model_time(torch.tensor(t, device=state.device))).to(state.dtype)
        if found.shape != state.shape:
            raise ValueError(
                f"The model returned {tuple(found.shape)} for a state {tuple(state.shape)}; flow matching needs one velocity a "
                "voxel. Was the model built with out_channels 1?"
            )
        done += 1
        x0 = state + (1.0 - t) * found
        report(done, x0)
        return found

    with _prepared(model, process.model_time(torch.tensor(grid))):
        for t, target in itertools.pairwise(grid):
            v = velocity(x, t)
            if sampler.name == "heun":
                v = (v + velocity(x + v / num_steps, min(target, 1.0))) / 2
            x = x + v / num_steps
    return SampleResult(x=x, x0=x0.clone())
