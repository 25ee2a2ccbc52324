"""The base of families with one network that removes the noise of a process: losses, validation, sampling."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prdit_models.conditions import Conditions, takes_conditions
from prdit_models.diffusion.guidance import Guided
from prdit_models.diffusion.process import Process
from prdit_models.diffusion.sampling import sample
from prdit_models.families.family import (
    VALIDATION_SEED,
    Batch,
    Callback,
    HeldOut,
    Losses,
    Request,
    Training,
)
from prdit_models.families.refusals import refuse_conditions, refuse_guide
from prdit_models.networks.build import build_network
from prdit_models.networks.config import network_config
from prdit_models.networks.prdit import trainable_parameters

# parts of conditions, the entry of a model's description that is above 0 where it takes them, and words for messages
_TAKEN = (
    ("labels", "num_classes", "labels", "Leave it out, or name the column of labels in the training (label_column)."),
    ("values", "num_values", "conditions", "Leave them out, or name them in the training (conditions)."),
    ("mask", "mask_channels", "a mask", "Leave it out, or set mask: body-and-lungs in the training."),
)


@dataclass(frozen=True)
class DenoiserSettings:
    """Settings of every denoiser.

    Attributes:
        preset: published preset, `size/patch/depth`.
        time_distribution: of the times of training batches; `logit-normal` favours the middle of the schedule (Esser et al. 2024).
        logit_mean, logit_std: of logit-normal times.

    Raises: ValueError: at construction, for a value out of range.
    """

    preset: str
    time_distribution: Literal["uniform", "logit-normal"] = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0

    def __post_init__(self) -> None:
        if not self.logit_std > 0:
            raise ValueError(f"logit_std is {self.logit_std}; expected above 0.")


class Denoiser:
    """A family of one network that predicts what its process needs; see `Family` for the methods.

    The module is called as `module(x, t)` or, where it takes conditions, `module(x, t, conditions)`, and has `config` with
    `volume_size`, `in_channels` and `num_classes`.

    Attributes:
        guided: whether its network estimates volumes, and `generate` passes the request's guide on: only then is one accepted.
    """

    title = "denoiser"
    processes: tuple[str, ...] = ("cosine", "flow")
    scale = 1
    turns: tuple[str, ...] = ("main",)
    guided = False  # a subclass may have a `generate` that knows no guide

    def build(
        self, description: Mapping[str, Any], *, attention: str = "auto", checkpointing: bool = False
    ) -> nn.Module:
        """The network of a shape as `describe` gave it: a `PRDiT`, or a `RefinedPRDiT`."""
        network: nn.Module = build_network(
            network_config(description), attention=attention, checkpointing=checkpointing
        )
        return network

    def freeze(self, module: nn.Module, settings: Any) -> None:
        """Nothing."""

    def optimizers(self, module: nn.Module, training: Training) -> dict[str, torch.optim.Optimizer]:
        """AdamW over all trained parameters (SPEC §4)."""
        return {"main": adamw([({"lr": training.lr}, trainable_parameters(module))], training.weight_decay)}

    def draw(
        self,
        turn: str,
        description: Mapping[str, Any],
        training: Training,
        shape: tuple[int, ...],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Time `t` and noise `eps` of a volume; with conditions, the uniform number `shown` that drops them."""
        process, settings = _process(training), training.settings
        t = process.draw_times(
            1,
            generator,
            distribution=settings.time_distribution,
            mean=settings.logit_mean,
            std=settings.logit_std,
        )
        found = {"t": t[0], "eps": process.noise(shape, generator)}
        if takes_conditions(description):
            found["shown"] = torch.rand((), generator=generator, device=generator.device)
        return found

    def losses(self, turn: str, network: Callable[..., Any], batch: Batch, training: Training) -> Losses | None:
        """Losses of the process at random times (SPEC §2, §3.1)."""
        process, x_t = _process(training), self.noised(batch, training)
        t, eps = batch.draws["t"], batch.draws["eps"]
        conditions = () if batch.conditions is None else (batch.shown,)
        output = network(x_t, process.model_time(t), *conditions)
        return process.losses(output.float(), batch.volumes, eps, t)

    def noised(self, batch: Batch, training: Training) -> Tensor:
        """The batch at its random times, x_t."""
        return _process(training).q_sample(batch.volumes, batch.draws["t"], batch.draws["eps"])

    @torch.no_grad()
    def validate(self, module: nn.Module, held_out: HeldOut, training: Training, batch_size: int) -> dict[str, float]:
        """Mean loss at each of the process's validation times, and their mean as `loss`; float64 means over volumes."""
        process, device = _process(training), next(module.parameters()).device
        volumes, conditions = held_out.volumes, held_out.conditions
        found = {}
        for name, time in process.validation_times().items():
            seed = VALIDATION_SEED + round(float(process.model_time(time)))
            total = 0.0
            for start in range(0, len(volumes), batch_size):
                x0 = volumes[start : start + batch_size]
                places = held_out.places[start : start + batch_size]
                eps = torch.stack([_noise(process, tuple(x0.shape[1:]), seed + 1000 * place) for place in places])
                x0, eps = x0.to(device), eps.to(device)
                t = time.to(device).expand(len(x0))
                rows = slice(start, start + batch_size)
                shown = () if conditions is None else (conditions.rows(rows).to(device),)
                output = module(process.q_sample(x0, t, eps), process.model_time(t), *shown)
                total += float(process.losses(output.float(), x0, eps, t)["loss"]) * len(x0)
            found[name] = total / len(volumes)
        return {"loss": sum(found.values()) / len(found)} | found

    def evaluations(self, process: Process | None, request: Request) -> int:
        """Evaluations of the network."""
        return known_process(process).evaluations(request.sampler)

    def check(self, description: Mapping[str, Any], process: Process | None, request: Request) -> None:
        """Refuse requests that cannot be drawn.

        Raises: ValueError: the process has no such sampler, conditions were asked for of a model that takes no such ones, or a
            guide of a network that estimates no volumes.
        """
        refuse_guide(self, request)
        self.evaluations(process, request)
        wanted = request.conditions or Conditions()
        for part, size, what, remedy in _TAKEN:
            asked = getattr(wanted, part)
            if asked is not None and not description.get(size, 0):
                refuse_conditions(
                    f"a {self.title} that was trained without {what}", remedy, Conditions(**{part: asked})
                )

    def generate(
        self,
        module: nn.Module,
        process: Process | None,
        request: Request,
        generators: Sequence[torch.Generator],
        callback: Callback | None = None,
    ) -> Tensor:
        """Volumes by the process's sampler (SPEC §3); see `Family.generate`."""
        config: Any = module.config
        device = next(module.parameters()).device
        denoiser: Any = module
        if request.conditions is not None:
            conditions = request.conditions.to(device).repeated(len(generators))
            denoiser = Guided(module, conditions, request.guidance_scale)
        result = sample(
            denoiser,
            known_process(process),
            request.sampler,
            volume_size=config.volume_size,
            generators=generators,
            in_channels=config.in_channels,
            device=device,
            callback=callback,
            guide=request.guide,
        )
        return result.x0 if request.output == "image" else result.x


def adamw(
    groups: Sequence[tuple[dict[str, float], Sequence[nn.Parameter]]], weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW as published (SPEC §4): betas 0.9 and 0.999, eps 1e-8.

    Args:
        groups: (options such as `{"lr": 1e-4}`, parameters), empty ones are left out.
        weight_decay: of all groups.
    """
    return torch.optim.AdamW(
        [{"params": list(parameters), **options} for options, parameters in groups if parameters],
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=weight_decay,
        fused=True,
    )


def known_process(process: Process | None) -> Process:
    """The process. Raises: ValueError: there is none."""
    if process is None:
        raise ValueError("A denoiser needs a process; the training or checkpoint names none.")
    return process


def _process(training: Training) -> Process:
    return known_process(training.process)


def _noise(process: Process, shape: tuple[int, ...], seed: int) -> Tensor:
    return process.noise(shape, torch.Generator().manual_seed(seed))
