"""Sampling, from noise to volumes: one state in memory, for any number of steps."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prdit_models.diffusion.process import Denoiser, Process, SampleResult
from prdit_models.diffusion.sampler import Sampler
from prdit_models.diffusion.steering import Guide

NoiseSource = Callable[[tuple[int, ...]], Tensor]
Callback = Callable[[int, int, Tensor], None]

__all__ = ["Callback", "Denoiser", "NoiseSource", "SampleResult", "Sampler", "sample"]


def generator_noise(process: Process, generators: Sequence[torch.Generator]) -> NoiseSource:
    """Noise whose volume i comes from generator i alone, so that it does not depend on the batch it is drawn in."""

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.stack([process.noise(shape[1:], generator) for generator in generators])

    return draw


@torch.no_grad()
def sample(
    model: Denoiser,
    process: Process,
    sampler: Sampler,
    *,
    volume_size: int,
    generators: Sequence[torch.Generator],
    in_channels: int = 1,
    device: torch.device | str = "cpu",
    callback: Callback | None = None,
    noise_source: NoiseSource | None = None,
    guide: Guide | None = None,
) -> SampleResult:
    """Draw one volume per generator.

    One state is kept for any number of steps; nothing is clipped. Noise is drawn on each generator's device and then moved, so a
    seed gives the same volume on every device (up to rounding). A model with `prepared(times)` computes what depends on time alone
    once for the schedule.

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
        guide: pulls the volumes towards a measurement (`prdit_models.inverse.guides`). One of strength 0 changes no bit, and
            costs nothing.
    Raises: ValueError: if the process has no such sampler, there are no generators, or the model's output does not fit.
        DivergedError: the guide is too strong.
    Source: SPEC §3; steppers name their own.
    """
    total = process.evaluations(sampler)
    if not generators:
        raise ValueError("sample got no generators; pass one torch.Generator for each volume of the batch.")
    draw = noise_source or generator_noise(process, generators)
    shape = (len(generators), in_channels, volume_size, volume_size, volume_size)

    def fresh_noise() -> Tensor:
        return draw(shape).to(device)

    def report(done: int, image: Tensor) -> None:
        if callback is not None:
            callback(done, total, image)

    if guide is None or guide.strength == 0.0:
        return process.integrate(model, sampler, fresh_noise, report)
    found = process.integrate(model, sampler, fresh_noise, report, guide)
    return SampleResult(*guide.ended(found.x, found.x0))
