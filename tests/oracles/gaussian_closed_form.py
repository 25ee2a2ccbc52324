"""What every sampler makes of Gaussian data, worked out as numbers: no tensors, no sampler, nothing of the product.

The exact posterior means are affine in the state, so a step of any sampler maps (state, last image estimate) affinely and adds
independent noise. Mean and 2x2 covariance of that pair are carried from step to step, float64, straight from the formulas of
SPEC §3 and of the papers.
"""

import itertools
import math

import numpy as np

MEAN, SPREAD, NOISE_STD = -0.4, 0.3, 0.5
ETA = 0.5


def visited_times(name: str, schedule: str, n: int) -> list[float]:
    """Times of evaluation that a step starts from, and 0."""
    if schedule == "published":
        return [float(t) for t in range(0, 1000, 1000 // n)][::-1]
    intervals = n // 2 + 1 if name == "heun" else n
    return [999 * (1 - i / intervals) ** 2 for i in range(intervals)] + [0.0]


def final_moments(name: str, schedule: str, n: int) -> tuple[float, float]:
    """Mean and standard deviation of a sampler's final state."""
    times = visited_times(name, schedule, n)
    mean = np.zeros(2)  # of (x, image of the step before)
    covariance = np.diag([NOISE_STD**2, 0.0])
    before: float | None = None
    for index, (t, target) in enumerate(itertools.pairwise(times)):
        single = name == "heun" and (target == 0.0 or (schedule == "even" and n % 2 == 0 and index == 0))
        matrix, shift, noise = _step("rotation" if single else name, t, target, before)
        mean = matrix @ mean + shift
        covariance = matrix @ covariance @ matrix.T + np.diag([noise**2, 0.0])
        before = t
    return float(mean[0]), math.sqrt(covariance[0, 0])


def _beta(t: float) -> float:
    return math.pi * t / 2000


def _posterior(beta: float) -> tuple[float, float, float, float]:
    """(a, b, c, d): image a·x + b, noise c·x + d."""
    cos, sin = math.cos(beta), math.sin(beta)
    variance = cos**2 * SPREAD**2 + sin**2 * NOISE_STD**2
    gain, noise_gain = cos * SPREAD**2 / variance, sin * NOISE_STD**2 / variance
    return gain, MEAN - gain * cos * MEAN, noise_gain, -noise_gain * cos * MEAN


def _drift(beta: float) -> tuple[float, float]:
    a, b, c, d = _posterior(beta)
    return math.sin(beta) * a - math.cos(beta) * c, math.sin(beta) * b - math.cos(beta) * d


def _step(name: str, t: float, target: float, before: float | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Matrix and shift of (x, last image) and standard deviation of the noise added to x."""
    beta, end = _beta(t), _beta(target)
    a, b, c, d = _posterior(beta)
    f, g = _drift(beta)
    h = beta - end
    on_image, noise = 0.0, 0.0
    if name == "euler":
        on_x, constant = 1 + h * f, h * g
    elif name == "predictor-corrector":
        landing = 2 * target - t
        if landing > 0:
            keep = math.cos(end) / math.cos(_beta(landing))
            on_x, constant = keep * (1 + 2 * h * f), keep * 2 * h * g
            noise = math.sqrt(max(1 - keep**2, 0.0)) * NOISE_STD
        else:
            on_x, constant = 1 + h * f, h * g
    elif name == "predictor-corrector-tf":
        landing = t - 4 * (t - target)
        if landing >= 0:
            keep = math.cos(end) / math.cos(_beta(landing))
            on_x, constant = keep * (1 + 4 * h * f), keep * 4 * h * g
            noise = 0.95 * math.sqrt(max(1 - keep**2, 0.0)) * NOISE_STD
        else:
            on_x, constant = 1 + h * f, h * g
    elif name == "rotation":
        on_x, constant = math.cos(end) * a + math.sin(end) * c, math.cos(end) * b + math.sin(end) * d
    elif name == "heun":
        f2, g2 = _drift(end)
        on_x, constant = 1 + h / 2 * (f + f2 * (1 + h * f)), h / 2 * (g + g2 + f2 * h * g)
    elif target == 0.0:
        on_x, constant = a, b
    else:
        growth = _growth(t, target)
        eta = ETA if name == "dpmpp-2m-sde" else 0.0
        add = math.cos(end) * (1 - math.exp(-(1 + eta**2) * growth))
        noise = math.sin(end) * math.sqrt(1 - math.exp(-2 * eta**2 * growth)) * NOISE_STD
        weight = 0.0 if before is None else growth / (2 * _growth(before, t))
        on_x = math.sin(end) / math.sin(beta) * math.exp(-(eta**2) * growth) + add * (1 + weight) * a
        constant, on_image = add * (1 + weight) * b, -add * weight
    return np.array([[on_x, on_image], [a, 0.0]]), np.array([constant, b]), noise


def _growth(t: float, target: float) -> float:
    """Of the log signal-to-noise ratio λ = log cot β."""
    return math.log(math.tan(_beta(t)) / math.tan(_beta(target)))
