"""HA-GAN: a generative adversarial network that is trained on slabs and draws whole volumes.

Sun et al., "Hierarchical amortized GAN for 3D high resolution medical image synthesis", IEEE JBHI 26(8), 2022. Layers, losses, the
order of updates and their settings are those of the authors' public code, as configured there; what differs is said by
`deviations`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, softplus

from prdit_models.diffusion.process import Process
from prdit_models.families.family import (
    VALIDATION_SEED,
    Batch,
    Callback,
    Description,
    Given,
    HeldOut,
    Losses,
    Request,
    Training,
    refuse_conditioning,
    refuse_conditions,
    refuse_guide,
)
from prdit_models.networks.hagan import HAGAN, REDUCTION, SLABS, Shape, decimated, slices

_VALIDATION_DRAWN = 8  # volumes that a held-out volume is compared with
_ENCODERS = ("slab_encoder", "code_encoder")
_PUBLISHED_SIZES = (128, 256)


@dataclass(frozen=True)
class HAGANSettings:
    """Settings of HA-GAN; defaults are those of the authors' public code unless named otherwise.

    `lr` of the training is the generator's (published: 1e-4). Published besides: batch 4, 80,000 steps, float32, no clipping
    (clip_norm: 1e9), no average of weights (ema_decay: 0), no skipped steps (spike_factor: 0).

    Attributes:
        critic_lr: learning rate of the critic.
        encoder_lr: of both encoders.
        encoders: train the two encoders, which reconstruct volumes; the generator, and so what is drawn, does not depend on them.
        any_start: a slab starts at any slice (published); default: at every fourth, so that the generator's slab, which is cut from
            features of four slices each, starts where the critic is told that it does. Else it starts up to three slices before.
        width_divisor: what all numbers of channels are divided by: 1 (published), 2, 4, 8 or 16, for small volumes and tests.

    Raises: ValueError: at construction, for a value out of range.
    """

    critic_lr: float = 4e-4
    encoder_lr: float = 1e-4
    encoders: bool = True
    any_start: bool = False
    width_divisor: int = 1

    def __post_init__(self) -> None:
        for name in ("critic_lr", "encoder_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected above 0.")
        Shape(_PUBLISHED_SIZES[0], self.width_divisor)


class HAGANFamily:
    """Four optimisers that step in turn; see `Family` for the methods."""

    title = "HA-GAN"
    settings = HAGANSettings
    processes: tuple[str, ...] = ()
    offers = ""
    needs = ""
    scale = 1
    turns = ("critic", "generator", *_ENCODERS)

    def describe(self, settings: HAGANSettings, given: Given) -> Description:
        """Volume size, width, and whether there are encoders.

        Raises: ValueError: a size that the layers do not divide, or labels.
        """
        Shape(given.size, settings.width_divisor)
        refuse_conditioning("HA-GAN", given)
        return {"size": given.size, "width_divisor": settings.width_divisor, "encoders": settings.encoders}

    def deviations(self, description: Mapping[str, Any], settings: HAGANSettings) -> tuple[str, ...]:
        """How a model of a description, trained with these settings, differs from the published one: sentences."""
        shape = _shape(description)
        found = [
            "Each volume has a slab of its own in each update (published: one position for a batch and its four updates).",
            "Volumes are shuffled in every epoch (published: a fixed order).",
        ]
        if not settings.any_start:
            found.append(
                "Slabs start at every fourth slice, so that the critic is told where they start (published: at any)."
            )
        if shape.size not in _PUBLISHED_SIZES:
            found.append(
                f"Adapted to {shape.size}³ (published: 128³, 256³) by the rule that the layers of those two follow."
            )
        if shape.width_divisor > 1:
            found.append(f"All widths are divided by {shape.width_divisor}.")
        if not description["encoders"]:
            found.append("It is trained without the two encoders, on which the generator does not depend.")
        return tuple(found)

    def build(
        self, description: Mapping[str, Any], *, attention: str = "auto", checkpointing: bool = False
    ) -> nn.Module:
        """The networks as PyTorch initialises them. There is no attention; slabs save what checkpointing would."""
        return HAGAN(_shape(description), encoders=description["encoders"])

    def begin(self, module: nn.Module, settings: HAGANSettings, start: Mapping[str, Tensor] | None) -> None:
        """Nothing: initial weights are PyTorch's."""

    def freeze(self, module: nn.Module, settings: HAGANSettings) -> None:
        """Nothing: what a turn does not train is frozen while its losses are computed."""

    def optimizers(self, module: Any, training: Training) -> dict[str, torch.optim.Optimizer]:
        """Adam with betas 0 and 0.999, eps 1e-8; a weight decay, if set, is AdamW's. Encoders left out have no parameters."""
        settings = training.settings
        rates = (settings.critic_lr, training.lr, settings.encoder_lr, settings.encoder_lr)
        parts = {turn: getattr(module, turn) for turn in self.turns}
        return {
            turn: torch.optim.AdamW(
                [{"params": [] if part is None else list(part.parameters()), "lr": rate}],
                betas=(0.0, 0.999),
                eps=1e-8,
                weight_decay=training.weight_decay,
                fused=True,
            )
            for (turn, part), rate in zip(parts.items(), rates, strict=True)
        }

    def draw(
        self,
        turn: str,
        description: Mapping[str, Any],
        training: Training,
        shape: tuple[int, ...],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """`start`, the slice that the volume's slab starts at, and a `code` where the turn generates."""
        of_networks, step = _shape(description), 1 if training.settings.any_start else REDUCTION
        found = {"start": step * torch.randint(of_networks.last_start // step + 1, (), generator=generator)}
        if turn not in _ENCODERS:
            found["code"] = torch.randn(of_networks.code, generator=generator)
        return found

    def losses(self, turn: str, network: Any, batch: Batch, training: Training) -> Losses | None:
        """What a turn minimises; None for an encoder that was left out. Parts that a turn does not train get no gradient."""
        if getattr(network, turn) is None:
            return None
        start = batch.draws["start"]
        with constant(*(getattr(network, other) for other in self.turns if other != turn)):
            if turn == "critic":
                with torch.no_grad():
                    generated = network.generator.views(batch.draws["code"], start)
                return critic_losses(
                    network.critic(*_seen(network, batch.volumes, start), start), network.critic(*generated, start)
                )
            if turn == "generator":
                generated = network.generator.views(batch.draws["code"], start)
                return {"loss": loss_as_real(network.critic(*generated, start)).mean()}
            reconstruct = _slab_error if turn == "slab_encoder" else _code_error
            return {"loss": reconstruct(network, batch.volumes, start).mean()}

    @torch.no_grad()
    def validate(self, module: Any, held_out: HeldOut, training: Training, batch_size: int) -> dict[str, float]:
        """`loss`: the energy score of what is drawn; beside it the losses of the turns at fixed codes and positions.

        The energy score (Gneiting & Raftery 2007) of a held-out volume X is E|X - Y| - E|Y - Y'|/2 over drawn volumes Y and Y' that
        are independent, with root mean squares over voxels as distances. Its mean over real volumes is lowest where the drawn
        volumes have the real ones' distribution, so neither averages of volumes nor copies of one are good. Losses of a GAN's turns
        say who is ahead, not how good what is drawn is.
        """
        device, shape = next(module.parameters()).device, module.shape
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        drawn = self._drawn(module, [generator] * _VALIDATION_DRAWN, batch_size).cpu()
        sums: dict[str, float] = {}
        for first in range(0, len(held_out.volumes), batch_size):
            volumes = held_out.volumes[first : first + batch_size]
            places = held_out.places[first : first + batch_size]
            found = [_drawn_for(shape, place) for place in places]
            code, start = (torch.stack([one[name] for one in found]).to(device) for name in ("code", "start"))
            real = volumes.to(device)
            logits = module.critic(*_seen(module, real, start), start)
            of_generated = module.critic(*module.generator.views(code, start), start)
            each = {
                "loss": energy_scores(volumes, drawn),
                "critic": loss_as_real(logits) + loss_as_real(-of_generated),
                "generator": loss_as_real(of_generated),
            }
            if module.slab_encoder is not None:
                each |= {
                    "slab_encoder": _slab_error(module, real, start),
                    "code_encoder": _code_error(module, real, start),
                }
            for name, values in each.items():
                sums[name] = sums.get(name, 0.0) + float(values.double().sum())
        return {name: value / len(held_out.volumes) for name, value in sums.items()}

    def evaluations(self, process: Process | None, request: Request) -> int:
        """One, whatever the sampler."""
        return 1

    def check(self, description: Mapping[str, Any], process: Process | None, request: Request) -> None:
        """Refuse conditions or a guide. Raises: ValueError."""
        refuse_guide(self, request)
        refuse_conditions("HA-GAN, which takes no labels and conditions here", "Leave it out.", request.conditions)

    def generate(
        self,
        module: nn.Module,
        process: Process | None,
        request: Request,
        generators: Sequence[torch.Generator],
        callback: Callback | None = None,
    ) -> Tensor:
        """Whole volumes in one evaluation, without truncation of codes; see `Family.generate`."""
        refuse_guide(self, request)
        volumes = self._drawn(module, generators, len(generators))
        if callback is not None:
            callback(1, 1, volumes)
        return volumes

    def _drawn(self, module: Any, generators: Sequence[torch.Generator], at_once: int) -> Tensor:
        """A volume per generator."""
        device = next(module.parameters()).device
        codes = torch.stack([torch.randn(module.shape.code, generator=generator) for generator in generators]).to(
            device
        )
        return torch.cat([module(part) for part in codes.split(at_once)])


def critic_losses(real: Tensor, generated: Tensor) -> Losses:
    """Binary cross-entropy of a critic's logits (B,): real volumes are to be 1, generated ones 0."""
    of_real, of_generated = loss_as_real(real).mean(), loss_as_real(-generated).mean()
    return {"loss": of_real + of_generated, "loss_real": of_real, "loss_generated": of_generated}


def loss_as_real(logits: Tensor) -> Tensor:
    """-log σ(logit): cross-entropy with 1, what the generator minimises over its volumes (it does not saturate)."""
    return softplus(-logits.float())


def energy_scores(volumes: Tensor, drawn: Tensor) -> Tensor:
    """Unbiased estimates of the energy score of each volume (V, …) by drawn ones (N, …), N ≥ 2; float64, (V,)."""
    to_drawn = torch.stack([torch.stack([_distance(one, other) for other in drawn]).mean() for one in volumes])
    pairs = [_distance(one, other) for i, one in enumerate(drawn) for other in drawn[:i]]
    return to_drawn - 0.5 * torch.stack(pairs).mean()


@contextmanager
def constant(*parts: nn.Module | None) -> Iterator[None]:
    """Parameters of these parts get no gradient from what is computed inside the block; gradients flow through it."""
    parameters = [p for part in parts if part is not None for p in part.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _distance(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).square().mean(dtype=torch.float64).sqrt()


def _shape(description: Mapping[str, Any]) -> Shape:
    return Shape(description["size"], description["width_divisor"])


def _seen(network: Any, volumes: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """What the critic sees of real volumes: slabs and the whole at low resolution."""
    return slices(volumes, start, network.shape.slab), decimated(volumes)


def _slab_error(network: Any, volumes: Tensor, start: Tensor) -> Tensor:
    """Mean absolute error of slabs that are encoded and decoded, of each volume."""
    slab = slices(volumes, start, network.shape.slab)
    return _error(network.generator.to_high(network.slab_encoder(slab)), slab)


def _code_error(network: Any, volumes: Tensor, start: Tensor) -> Tensor:
    """Mean of the absolute errors of slab and whole at low resolution, generated from the code of a volume, of each volume."""
    with torch.no_grad():
        features = torch.cat([network.slab_encoder(slab) for slab in volumes.chunk(SLABS, 2)], 2)
    generated = network.generator.views(network.code_encoder(features), start)
    errors = [_error(*pair) for pair in zip(generated, _seen(network, volumes, start), strict=True)]
    return 0.5 * (errors[0] + errors[1])


def _error(found: Tensor, wanted: Tensor) -> Tensor:
    return l1_loss(found.float(), wanted, reduction="none").flatten(1).mean(1)


def _drawn_for(shape: Shape, place: int) -> dict[str, Tensor]:
    """Position and code that a held-out volume is validated with."""
    generator = torch.Generator().manual_seed(VALIDATION_SEED + 1 + place)
    start = REDUCTION * torch.randint(shape.last_start // REDUCTION + 1, (), generator=generator)
    return {"start": start, "code": torch.randn(shape.code, generator=generator)}


FAMILY = HAGANFamily()
