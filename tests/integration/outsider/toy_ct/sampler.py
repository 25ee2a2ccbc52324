"""A sampler: the drift in the middle of each step."""

import math

from prdit_models.diffusion.steppers import Solver


def midpoint(x, found, step, previous, estimate, fresh_noise):
    """Euler's method to the middle of the step, then the whole step by the drift found there."""
    length = step.angle - step.target_angle
    if step.evaluations == 1:
        return x + length * found.drift
    middle = (step.angle + step.target_angle) / 2
    time = 1000 * middle / (math.pi / 2)
    there = estimate(x + length / 2 * found.drift, time, math.sin(middle), math.cos(middle))
    return x + length * there.drift


SOLVER = Solver({"cosine": midpoint}, both_ends=True)
