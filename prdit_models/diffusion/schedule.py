"""Times at which a sampler evaluates the network, and the coefficients of the steps between them."""

import math
from dataclasses import dataclass

import torch

from prdit_models.diffusion.sampler import SAMPLERS, Sampler

TF_PREDICTOR_STEP = 4
TF_NOISE = 0.95  # factor on the noise of its corrector


@dataclass(frozen=True)
class Step:
    """Coefficients of one sampler step from a visited time to the next lower one.

    Attributes:
        t: visited time.
        target: next lower time (0 at the end).
        angle, target_angle: β of both.
        sin, cos: of β(t).
        advance: angle travelled along the drift, k·(β(t) - β(target)); k is the predictor step where a corrector follows,
            else 1.
        alpha: factor on the predicted state, 1 without corrector.
        noise: factor on fresh noise of the process's std; 0 without corrector.
        corrects: whether fresh noise is drawn by the corrector.
        evaluations: of the network.
    """

    t: float
    target: float
    angle: float
    target_angle: float
    sin: float
    cos: float
    advance: float
    alpha: float
    noise: float
    corrects: bool
    evaluations: int


@dataclass(frozen=True)
class Transition:
    """Coefficients of one sampler step of the process `ddpm`, to the next lower visited time or, from the last, to the image.

    Attributes:
        signal, noise: factors on image and noise at the visited time, sqrt(ᾱ) and sqrt(1 - ᾱ).
        target_signal, target_noise: at the next lower one; 1 and 0 at the end.
        image_weight, state_weight: of the posterior's mean, which is image_weight·x0 + state_weight·x_t.
        std: of the fresh noise of an ancestral step; 0 at the end.
    """

    signal: float
    noise: float
    target_signal: float
    target_noise: float
    image_weight: float
    state_weight: float
    std: float


def respaced_times(num_steps: int, num_train_steps: int = 1000) -> list[int]:
    """Visited times of the published schedule in decreasing order: multiples of ⌊T / n⌋ below T.

    Only divisors of T give exactly n evaluations (n = 300 of 1000 gives 334); that is the published rule.

    Raises: ValueError: if n is not in [1, T].
    Source: SPEC §3.
    """
    if not 1 <= num_steps <= num_train_steps:
        raise ValueError(f"num_steps is {num_steps}; expected 1 to {num_train_steps}, the steps the process has.")
    return list(range(0, num_train_steps, num_train_steps // num_steps))[::-1]


def even_times(num_intervals: int, num_train_steps: int = 1000) -> list[float]:
    """Times T(1-1/T)·(1 - i/n)², i = 0 … n-1: evenly spaced in their square root, denser towards the image.

    Near t = 0 the network's estimates decide fine detail; on Gaussian data this spacing has a third of the error of equal angles
    at 10 and 20 evaluations (docs/samplers.md).
    """
    return [(num_train_steps - 1) * (1 - index / num_intervals) ** 2 for index in range(num_intervals)]


def plan(sampler: Sampler, num_train_steps: int = 1000) -> list[Step]:
    """Every step of a sampler, in order.

    Published coefficients are formed in float32 in the published order of operations: near t = 0, `1 - a·a` cancels and
    float32 differs from exact arithmetic by 2.4e-3.

    `predictor-corrector-tf` jumps 4 steps, adds noise of 0.95 times the process's std, and has a corrector also where the jump
    ends at t = 0.

    Raises: ValueError: if the published schedule has no such number of steps.
    Source: SPEC §3, §9; §3.2 (e).
    """
    is_published, is_tf = sampler.schedule == "published", sampler.name == "predictor-corrector-tf"
    k = sampler.predictor_step if sampler.name == "predictor-corrector" else TF_PREDICTOR_STEP if is_tf else 1
    if is_published:
        visited: list[float] = [float(t) for t in respaced_times(sampler.num_steps, num_train_steps)]
    else:
        visited = even_times(_even_intervals(sampler), num_train_steps)
    dtype = torch.float32 if is_published else torch.float64
    times, targets = torch.tensor(visited, dtype=dtype), torch.tensor([*visited[1:], 0.0], dtype=dtype)
    landing = times - k * (times - targets)
    corrects = ((landing >= 0) & (times > 0) if is_tf else landing > 0) & (k > 1)
    angle, target_angle, landing_angle = (
        part / num_train_steps * (math.pi / 2) for part in (times, targets, landing.clamp(min=0))
    )
    ratio = torch.cos(target_angle) / torch.cos(landing_angle)
    alpha = torch.where(corrects, ratio, torch.ones_like(ratio))
    noise = torch.sqrt(torch.clamp(1.0 - alpha * alpha, min=0.0)) * (TF_NOISE if is_tf else 1.0)
    advance = torch.where(corrects, float(k), 1.0) * (angle - target_angle)
    numbers = (angle, target_angle, torch.sin(angle), torch.cos(angle), advance, alpha, noise)
    columns = (
        visited,
        targets.tolist(),
        *(part.tolist() for part in numbers),
        corrects.tolist(),
        _evaluations(sampler, visited),
    )
    return [Step(*row) for row in zip(*columns, strict=True)]


def num_evaluations(sampler: Sampler, num_train_steps: int = 1000) -> int:
    """Evaluations of the network a sampler makes."""
    return sum(step.evaluations for step in plan(sampler, num_train_steps))


def _even_intervals(sampler: Sampler) -> int:
    return sampler.num_steps // 2 + 1 if SAMPLERS[sampler.name].both_ends else sampler.num_steps


def _evaluations(sampler: Sampler, visited: list[float]) -> list[int]:
    """Evaluations of each step: a sampler that evaluates both ends of a step does so unless it ends at t = 0."""
    single = [1] * len(visited)
    if not SAMPLERS[sampler.name].both_ends:
        return single
    double = [1 if target == 0.0 else 2 for target in [*visited[1:], 0.0]]
    if sampler.schedule == "even" and sampler.num_steps % 2 == 0:
        double[0] = 1  # an even number of evaluations: the first step, where all steppers agree, takes one
    return double
