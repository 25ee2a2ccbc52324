"""The interface of a process: how volumes are noised, the loss of a network that removes the noise, and sampling."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from prdit_models.diffusion.sampler import Sampler
from prdit_models.diffusion.steering import Guide
from prdit_models.registry import Registry

Denoiser = Callable[[Tensor, Tensor], Tensor]
Report = Callable[[int, Tensor], None]

# Where losses are validated, as shares of the time a network sees: spread over the schedule.
VALIDATION_SHARES = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)


@dataclass(frozen=True)
class SampleResult:
    """What a sampler returns.

    Attributes:
        x: final state, shape (B, C, S, S, S), model range, not clipped.
        x0: the network's own image estimate at the last evaluation, whatever the parametrisation, as its guide corrects it; same
            shape.
    """

    x: Tensor
    x0: Tensor


class Process(Protocol):
    """A forward process from volumes to noise, the loss of a network that reverses it, and the integration of the reverse.

    Frozen dataclasses whose fields are settings; a checkpoint stores them by `to_dict`.

    Attributes:
        name: as in the table of processes.
        noise_std: standard deviation of the noise in model units.
        num_steps: scale T of the time a network sees.
        prediction: what a network predicts.
        outputs: output channels of a network for each channel of the volume.
    """

    name: ClassVar[str]

    @property
    def noise_std(self) -> float: ...  # noqa: D102
    @property
    def num_steps(self) -> int: ...  # noqa: D102
    @property
    def prediction(self) -> str: ...  # noqa: D102
    @property
    def outputs(self) -> int: ...  # noqa: D102

    def draw_times(
        self, batch: int, generator: torch.Generator | None, *, distribution: str, mean: float, std: float
    ) -> Tensor:
        """Random times of a training batch, shape (B,); `distribution` is `uniform` or `logit-normal` (mean, std of the logit)."""

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Noise of the process's std, float32."""

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Volumes x0 (B, C, D, H, W) noised by eps to times t (B,)."""

    def model_time(self, t: Tensor) -> Tensor:
        """The time the network is given for times t of the process."""

    def losses(self, model_output: Tensor, x0: Tensor, eps: Tensor, t: Tensor) -> dict[str, Tensor]:
        """What a training minimises, `loss`, and its parts, as 0-d batch means."""

    def validation_times(self) -> dict[str, Tensor]:
        """0-d times at which losses are validated, by name (`t050`: model time 50)."""

    def evaluations(self, sampler: Sampler) -> int:
        """Evaluations of the network a sampler makes. Raises: ValueError: the process has no such sampler."""

    def integrate(
        self,
        model: Denoiser,
        sampler: Sampler,
        fresh_noise: Callable[[], Tensor],
        report: Report,
        guide: Guide | None = None,
    ) -> SampleResult:
        """Integrate from noise to volumes; `report(evaluations done, image estimate)` after every evaluation.

        `guide` is passed only where there is one: a process without guided sampling needs no such parameter.
        """

    def to_dict(self) -> dict[str, Any]:
        """The process as a checkpoint stores it."""


PROCESSES: Registry[type[Process]] = Registry(
    "process",
    "prdit.processes",
    {
        "cosine": "prdit_models.diffusion.cosine:CosineProcess",
        "flow": "prdit_models.diffusion.flow:FlowProcess",
        "ddpm": "prdit_models.diffusion.ddpm:DDPMProcess",
    },
    needs=(
        "draw_times",
        "noise",
        "q_sample",
        "model_time",
        "losses",
        "validation_times",
        "evaluations",
        "integrate",
        "to_dict",
    ),
)


def process_from_dict(values: Mapping[str, Any]) -> Process:
    """The process a checkpoint stores; one without a name is the cosine process.

    Raises: ValueError: for a process this version does not know, or settings it does not have.
    """
    settings = dict(values)
    kind = PROCESSES[settings.pop("name", "cosine")]
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(f"The process {kind.name!r} cannot be made of {settings}: {error}.") from error


def prepared(model: Denoiser, times: Tensor) -> AbstractContextManager[Any]:
    """The model's own `prepared(times)`, where it has one: what depends on time alone is computed once for a schedule."""
    prepare = getattr(model, "prepared", None)
    return nullcontext() if prepare is None else prepare(times)


def constrained(model: Denoiser, image: Tensor) -> Tensor:
    """The model's own `constrained(image)`, where it has one: what no volume can have is taken out of an image estimate."""
    constrain = getattr(model, "constrained", None)
    return image if constrain is None else constrain(image)
