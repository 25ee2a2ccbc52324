"""Samplers on Gaussian data, exactly: the denoiser in closed form, and the moments of what a sampler makes of noise.

x0 ~ N(mean, spread²) has posterior means that are affine in x_t, and every sampler is affine in the states and the noise. So one
run without noise gives the mean of the samples, and one run for each draw of noise, that draw being 1 and all others 0, gives its
share in their standard deviation: no random number is needed.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.sampling import Sampler, sample

MEAN, SPREAD, NOISE_STD = -0.4, 0.3, 0.5


@dataclass(frozen=True)
class Moments:
    """Mean minus the data's, and standard deviation over the data's minus one, of the sampler's final state."""

    mean_error: float
    relative_std_error: float
    evaluations: int


def denoiser(x: Tensor, t: Tensor) -> Tensor:
    """(E[eps | x_t], E[x0 | x_t]) as two channels; float64."""
    beta = math.pi * float(t) / 2000
    c, s = math.cos(beta), math.sin(beta)
    centred = (x - c * MEAN) / (c**2 * SPREAD**2 + s**2 * NOISE_STD**2)
    return torch.cat([s * NOISE_STD**2 * centred, MEAN + c * SPREAD**2 * centred], dim=1)


def moments(sampler: Sampler) -> Moments:
    """What a sampler makes of unit draws, by superposition."""
    process = CosineProcess(noise_std=NOISE_STD)
    draws = _run(sampler, process, rows=1)[1]
    finals, _, evaluations = _run(sampler, process, rows=draws + 1)
    mean, shares = finals[0], finals[1:] - finals[0]
    std = NOISE_STD * float(shares.square().sum().sqrt())
    return Moments(float(mean) - MEAN, std / SPREAD - 1.0, evaluations)


def _run(sampler: Sampler, process: CosineProcess, rows: int) -> tuple[Tensor, int, int]:
    """Final states (rows,) where row i + 1 gets a one in draw i and row 0 none; number of draws; evaluations."""
    draws = evaluations = 0

    def unit_noise(shape: tuple[int, ...]) -> Tensor:
        nonlocal draws
        noise = torch.zeros(shape, dtype=torch.float64)
        draws += 1
        if draws < rows:
            noise[draws] = 1.0
        return noise

    def counted(x: Tensor, t: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return denoiser(x, t)

    result = sample(
        counted,
        process,
        sampler,
        volume_size=1,
        generators=[torch.Generator() for _ in range(rows)],
        noise_source=unit_noise,
    )
    return result.x.flatten(), draws, evaluations
