"""Guided sampling on Gaussian data, where the posterior is known: volumes x0 ~ N(m, S) of 4³ correlated voxels, y = A x0 + noise.

The denoiser is exact, E[x0 | x_t] = m + a·S·(a²S + s²)⁻¹·(x_t - a·m), so all that is off in the samples is the guide's and the
sampler's. Samplers without noise of their own map the initial noise to volumes, so the draws of it are made to have exactly the
mean 0 and the covariance they should: the moments of a guide that is affine in the residual (`projection`) are then exact as well,
those of the others are Monte Carlo with less variance than chance gives.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prdit_models.diffusion.process import Denoiser, Process
from prdit_models.diffusion.sampling import Sampler, sample
from prdit_models.diffusion.steering import Guide
from prdit_models.intensity import HounsfieldWindow
from prdit_models.inverse.model_range import InModelRange
from tests.oracles.operators import Operator

SIZE = 4
VOXELS = SIZE**3
MEAN, STD = -0.4, 0.3
CORRELATION_LENGTH = 1.5  # voxels
WINDOW = HounsfieldWindow()
NOISE_HU = 100.0
DRAWS = 3 * VOXELS


@functools.cache
def covariance(correlated: bool) -> Tensor:
    """S, shape (64, 64): white, or a squared exponential on top of a tenth of white noise."""
    if not correlated:
        return STD**2 * torch.eye(VOXELS, dtype=torch.float64)
    axis = torch.arange(SIZE, dtype=torch.float64)
    places = torch.cartesian_prod(axis, axis, axis)
    squared = torch.cdist(places, places).square()
    smooth = torch.exp(-squared / (2 * CORRELATION_LENGTH**2))
    found: Tensor = STD**2 * (0.9 * smooth + 0.1 * torch.eye(VOXELS, dtype=torch.float64))
    return found


def image_of(x: Tensor, signal: float, noise: float, correlated: bool) -> Tensor:
    """E[x0 | x_t] for x_t = signal·x0 + noise·N(0, 1), shape (B, 1, 4, 4, 4); differentiable."""
    middle = signal**2 * covariance(correlated) + noise**2 * torch.eye(VOXELS, dtype=torch.float64)
    gain = signal * torch.linalg.solve(middle, covariance(correlated))  # both are functions of S: they commute
    return MEAN + ((x.flatten(1) - signal * MEAN) @ gain).view(x.shape)


def network(process: Process, correlated: bool) -> Denoiser:
    """The exact network of a process, for `sample`."""

    def cosine(x: Tensor, t: Tensor) -> Tensor:
        beta = math.pi * float(t) / 2000
        image = image_of(x, math.cos(beta), math.sin(beta) * process.noise_std, correlated)
        return torch.cat([(x - math.cos(beta) * image) / math.sin(beta), image], dim=1)

    def flow(x: Tensor, time: Tensor) -> Tensor:
        t = float(time) / 1000
        return (image_of(x, t, 1 - t, correlated) - x) / (1 - t)

    def ddpm(x: Tensor, t: Tensor) -> Tensor:
        kept = float(process.alpha_bars[int(t)])  # type: ignore[attr-defined]
        return image_of(x, math.sqrt(kept), math.sqrt(1 - kept), correlated)

    return {"cosine": cosine, "flow": flow, "ddpm": ddpm}[process.name]


@dataclass(frozen=True)
class Problem:
    """An operator, a measurement of one volume from the data, and the posterior in closed form.

    Attributes:
        measured: operator and measurement.
        mean: of the posterior, shape (64,).
        covariance: of the posterior, shape (64, 64), model range.
        correlated: whether the data's voxels are.
    """

    measured: InModelRange
    mean: Tensor
    covariance: Tensor
    correlated: bool

    @classmethod
    def of(cls, operator: Operator, correlated: bool, seed: int = 0) -> "Problem":
        """A problem of one true volume, drawn by a seed."""
        generator, prior = torch.Generator().manual_seed(seed), covariance(correlated)
        root = torch.linalg.cholesky(prior)
        truth = MEAN + (root @ torch.randn(VOXELS, dtype=torch.float64, generator=generator)).view(1, 1, *[SIZE] * 3)
        clean = operator.forward(WINDOW.to_hu(truth))
        noise = operator.noise_std * torch.randn(clean.shape, dtype=torch.float64, generator=generator)
        measured = InModelRange(operator, WINDOW, clean + noise)
        basis = torch.eye(VOXELS, dtype=torch.float64).view(VOXELS, 1, *[SIZE] * 3)
        matrix = measured.linear(basis).flatten(1).T  # (measurements, 64)
        spread = matrix @ prior @ matrix.T + operator.noise_std**2 * torch.eye(len(matrix), dtype=torch.float64)
        gain = torch.linalg.solve(spread, matrix @ prior).T
        surprise = measured.residual(torch.full_like(truth, MEAN)).flatten()
        return cls(measured, MEAN + gain @ surprise, prior - gain @ matrix @ prior, correlated)


@dataclass(frozen=True)
class Fit:
    """How far samples are from the posterior.

    Attributes:
        mean_error: error of the mean over the posterior's standard deviation, each as root mean square over voxels.
        std_error: standard deviation of the samples (root mean square over voxels) over that of the posterior, minus 1.
        covariance_error: Frobenius norm of the covariance's error, over that of the covariance.
    """

    mean_error: float
    std_error: float
    covariance_error: float


def fit(problem: Problem, process: Process, sampler: Sampler, guide: Guide | None) -> Fit:
    """What a sampler without noise of its own makes of a guide, for 192 draws of initial noise."""
    noise = _balanced_noise() * process.noise_std

    def source(shape: tuple[int, ...]) -> Tensor:
        return noise.view(shape)

    generators = [torch.Generator() for _ in range(DRAWS)]
    drawn = sample(
        network(process, problem.correlated),
        process,
        sampler,
        volume_size=SIZE,
        generators=generators,
        noise_source=source,
        guide=guide,
    ).x.flatten(1)
    mean = drawn.mean(0)
    found = (drawn - mean).T @ (drawn - mean) / DRAWS
    scale = problem.covariance.diagonal().mean().sqrt()
    return Fit(
        float((mean - problem.mean).square().mean().sqrt() / scale),
        float((found.diagonal().mean() / problem.covariance.diagonal().mean()).sqrt()) - 1.0,
        float(torch.linalg.norm(found - problem.covariance) / torch.linalg.norm(problem.covariance)),
    )


@functools.cache
def _balanced_noise() -> Tensor:
    """Draws (192, 64) of N(0, 1) in pairs of both signs, whitened: mean 0 and covariance 1 exactly."""
    half = torch.randn(DRAWS // 2, VOXELS, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    values = torch.cat([half, -half])
    root = torch.linalg.cholesky(values.T @ values / DRAWS)
    return torch.linalg.solve_triangular(root, values.T, upper=False).T.contiguous()
