"""Settings of a sampler: name, schedule, number of evaluations. Imports no PyTorch, so that configurations can use it."""

from dataclasses import dataclass
from typing import Any

from prdit_models.registry import Registry

_STEPPERS = "prdit_models.diffusion.steppers"
# `Solver`s: how each sampler makes a step, for every process it works with.
SAMPLERS: Registry[Any] = Registry(
    "sampler",
    "prdit.samplers",
    {
        "euler": f"{_STEPPERS}:EULER",
        "predictor-corrector": f"{_STEPPERS}:PREDICTOR_CORRECTOR",
        "predictor-corrector-tf": f"{_STEPPERS}:PREDICTOR_CORRECTOR_TF",
        "rotation": f"{_STEPPERS}:ROTATION",
        "heun": f"{_STEPPERS}:HEUN",
        "dpmpp-2m": f"{_STEPPERS}:DPMPP_2M",
        "dpmpp-2m-sde": f"{_STEPPERS}:DPMPP_2M_SDE",
        "ancestral": f"{_STEPPERS}:ANCESTRAL",
        "ddim": f"{_STEPPERS}:DDIM",
    },
    needs=("steppers", "both_ends"),
)
SCHEDULES = ("even", "published")
PARAMETRIZATIONS = ("velocity", "image")
DEFAULT_PREDICTOR_STEP = 2


@dataclass(frozen=True)
class Sampler:
    """How volumes are drawn: a stepper on a schedule, and how it combines the network's two estimates.

    Attributes:
        name: one of `SAMPLERS`.
        num_steps: evaluations of the network (`heun` makes two per step). The published schedule gives exactly that number only for
            divisors of T, see `respaced_times`; `heun` on it evaluates at both ends of every step.
        schedule: `even`: exactly num_steps evaluations from t = T(1 - 1/T) down, evenly spaced in the square root of time, none at
            t = 0; of the process `ddpm` evenly spaced in time, the last at t = 0. `published`: multiples of ⌊T/n⌋, the last
            evaluation at t = 0.
        predictor_step: k of `predictor-corrector`: the predictor advances k steps, the corrector goes k - 1 back by adding noise.
        parametrization: `velocity`: the published drift of both estimates, image and noise as it and the state determine them.
            `image`: the image alone, noise from the state.

    Raises: ValueError: at construction, for a name, a number of steps or a predictor step that does not exist.
    """

    name: str = "predictor-corrector"
    num_steps: int = 50
    schedule: str = "even"
    predictor_step: int = DEFAULT_PREDICTOR_STEP
    parametrization: str = "velocity"

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise ValueError(f"Unknown sampler {self.name!r}; expected one of {list(SAMPLERS.names())}.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"Unknown schedule {self.schedule!r}; expected one of {list(SCHEDULES)}.")
        if self.parametrization not in PARAMETRIZATIONS:
            raise ValueError(
                f"Unknown parametrization {self.parametrization!r}; expected one of {list(PARAMETRIZATIONS)}."
            )
        for field in ("num_steps", "predictor_step"):
            if type(getattr(self, field)) is not int:
                raise ValueError(f"{field} is {getattr(self, field)!r}; expected a whole number.")
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; expected at least 1, such as 50.")
        if self.predictor_step < 1:
            raise ValueError(
                f"predictor_step is {self.predictor_step}; expected 1 (no corrector) or more (published: 2)."
            )
        longest = max(self.num_steps, DEFAULT_PREDICTOR_STEP)  # the published step stays usable on one evaluation
        if self.name == "predictor-corrector" and self.predictor_step > longest:
            raise ValueError(
                f"predictor_step {self.predictor_step} is longer than the schedule of {self.num_steps} steps; use at most "
                f"{self.num_steps}."
            )
        if self.name != "predictor-corrector" and self.predictor_step != DEFAULT_PREDICTOR_STEP:
            raise ValueError(
                f"predictor_step {self.predictor_step} with sampler {self.name!r}, which has none; leave it out or use "
                "'predictor-corrector'."
            )


def samplers_of(process: str) -> tuple[str, ...]:
    """Names of the samplers that work with a process."""
    return tuple(name for name in SAMPLERS.names() if process in SAMPLERS[name].steppers)


def stepper_of(name: str, process: str) -> Any:
    """How a sampler makes a step on a process.

    Raises: ValueError: there is no such sampler, or it does not work with the process.
    """
    found = SAMPLERS[name].steppers
    if process not in found:
        known = ", ".join(samplers_of(process))
        raise ValueError(
            f"Sampler {name!r} works with {', '.join(found)}, not with the process {process!r}, which is sampled by: {known} "
            "(sample.sampler)."
        )
    return found[process]
