"""The interface of a model family, and the table of families."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prdit_models.conditions import Conditions
from prdit_models.diffusion.process import Process
from prdit_models.diffusion.sampler import Sampler
from prdit_models.diffusion.steering import Guide
from prdit_models.registry import Registry

VALIDATION_SEED = 20_260  # fixed, so that losses of different runs, trainings and seeds can be compared
Description = dict[str, Any]
Losses = dict[str, Tensor]
Callback = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class Given:
    """What a family needs to describe its model, besides its settings.

    Attributes:
        size: edge of its volumes in voxels.
        voxel_mm: their voxel distance.
        process: the process it is trained with; None for a family without one.
        num_classes: integer labels of the training volumes; 0: none.
        num_values: encoded numbers and categories of the training volumes; 0: none.
        mask_channels, mask_cell: channels of the coarse mask of volumes, and the edge of its cells in voxels; 0: none.
        several_grids: whether volumes of other voxel distances are shown, too.
        start: description of the model it starts from; None for a family that is trained from scratch.
    """

    size: int
    voxel_mm: float
    process: Process | None
    num_classes: int = 0
    num_values: int = 0
    mask_channels: int = 0
    mask_cell: int = 0
    several_grids: bool = False
    start: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Batch:
    """What one evaluation of the losses works on.

    Attributes:
        volumes: model range, shape (B, C, D, H, W), on the training's device.
        draws: random numbers by name, as `Family.draw` gave them for each volume, stacked: shapes (B, …).
        conditions: what is known of them; None where the model takes no conditions.
        no_label: the integer that means "no label".
        condition_dropout: share of volumes to be shown without their conditions.
    """

    volumes: Tensor
    draws: Mapping[str, Tensor] = field(default_factory=dict)
    conditions: Conditions | None = None
    no_label: int = 0
    condition_dropout: float = 0.0

    @property
    def shown(self) -> Conditions | None:
        """Its conditions; of some volumes none, by their draw `shown`, for guidance (Ho & Salimans 2022)."""
        if self.conditions is None:
            return None
        return self.conditions.dropped(self.draws["shown"] < self.condition_dropout, self.no_label)


@dataclass(frozen=True)
class HeldOut:
    """Volumes that losses are validated on, or a process's share of them.

    Attributes:
        volumes: model range, shape (V, C, D, H, W), on the CPU.
        places: number of each among all held-out volumes, on which its noise depends.
        conditions: V rows, on the CPU; None where the model takes no conditions.
    """

    volumes: Tensor
    places: Sequence[int]
    conditions: Conditions | None = None


@dataclass(frozen=True)
class Training:
    """How a family is trained: what stays the same from step to step.

    Attributes:
        settings: of the family's own type.
        process: the process; None for a family without one.
        lr, weight_decay: of the configuration, for the optimisers.
    """

    settings: Any
    process: Process | None
    lr: float = 1e-4
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Request:
    """How volumes are to be drawn from a trained model.

    Attributes:
        sampler: how volumes are drawn, for families with a process.
        output: `image`: the model's own image estimate at the last evaluation; `state`: where the sampler ends.
        conditions: what the volumes should be like, one row for all of them; None: whatever the model makes.
        guidance_scale: classifier-free guidance towards the conditions; 1: none.
        guide: towards a measurement, for families with `guided = True`; None: without.
    """

    sampler: Sampler
    output: str = "image"
    conditions: Conditions | None = None
    guidance_scale: float = 1.0
    guide: Guide | None = None


class Family(Protocol):
    """What can be trained and sampled. One object per family; what differs between trainings is passed in.

    Attributes:
        title: in words, for reports: `local denoiser`.
        settings: frozen dataclass of its settings; its `__post_init__` refuses what no training can have.
        processes: names of the processes it works with, its default first; empty for a family without one.
        offers: what a training that starts from its checkpoint gets; empty where none can start from it.
        needs: what it starts from, one of the others' `offers`; empty for a family that is trained from scratch.
        scale: edge of its volumes relative to those of the model it starts from.
        turns: names of its optimisers in the order in which they step.
    """

    title: str
    settings: type[Any]
    processes: tuple[str, ...]
    offers: str
    needs: str
    scale: int
    turns: tuple[str, ...]

    def describe(self, settings: Any, given: Given) -> Description:
        """Everything `build` needs, as JSON values: what a checkpoint stores of the model.

        Raises: ValueError: settings that do not fit each other, the volume size, the process or the model below.
        """

    def build(
        self, description: Mapping[str, Any], *, attention: str = "auto", checkpointing: bool = False
    ) -> nn.Module:
        """A fresh module of a description; its parameters and buffers are what a checkpoint stores.

        Args:
            description: as `describe` gave it.
            attention: backend, see `prdit_models.networks.attention.BACKENDS`; only for families with attention.
            checkpointing: recompute activations in the backward pass instead of keeping them.
        """

    def begin(self, module: nn.Module, settings: Any, start: Mapping[str, Tensor] | None) -> None:
        """Give a fresh module the weights its training starts with: initial ones, and those of the model below.

        Args:
            module: from `build`, on the CPU.
            settings: of the family's type.
            start: weights of the model below; None for a family that is trained from scratch.
        Raises: ValueError: weights that do not fit.
        """

    def freeze(self, module: nn.Module, settings: Any) -> None:
        """Freeze the parameters that this training does not change (`requires_grad`)."""

    def optimizers(self, module: nn.Module, training: Training) -> dict[str, torch.optim.Optimizer]:
        """One optimiser per turn, over parameters that are trained; no parameter in two of them."""

    def draw(
        self,
        turn: str,
        description: Mapping[str, Any],
        training: Training,
        shape: tuple[int, ...],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """All random numbers of one volume in one step of an optimiser, such as its time and noise.

        They depend on the generator alone, so a volume sees the same whatever batch, process or device it comes to.

        Args:
            turn: which optimiser steps.
            description: as `describe` gave it.
            training: settings and process.
            shape: of the volume, (C, D, H, W).
            generator: on the CPU.
        Returns: tensors by name, on the CPU, of the same shapes for every volume.
        """

    def losses(self, turn: str, network: Callable[..., Any], batch: Batch, training: Training) -> Losses | None:
        """What one optimiser minimises on a batch, under `loss`, and its parts: 0-d means over the batch's volumes.

        Args:
            turn: which optimiser steps.
            network: the module, or compiled code of it.
            batch: volumes, their random numbers, and conditions.
            training: settings and process.
        Returns: None where this optimiser makes no step this time, which must not depend on the batch.
        """

    def validate(self, module: nn.Module, held_out: HeldOut, training: Training, batch_size: int) -> dict[str, float]:
        """Mean losses over fixed volumes with fixed noise, `loss` and its parts; equal weights give equal numbers.

        Args:
            module: on its device.
            held_out: the volumes.
            training: settings and process.
            batch_size: volumes computed together at most.
        """

    def evaluations(self, process: Process | None, request: Request) -> int:
        """Evaluations of the network that drawing takes, for progress."""

    def check(self, description: Mapping[str, Any], process: Process | None, request: Request) -> None:
        """Refuse what cannot be drawn. Raises: ValueError: why, and what to do instead."""

    def generate(
        self,
        module: nn.Module,
        process: Process | None,
        request: Request,
        generators: Sequence[torch.Generator],
        callback: Callback | None = None,
    ) -> Tensor:
        """One volume per generator, model range, not clipped, shape (B, C, D, H, W).

        Volume i depends on generator i alone, not on the batch.

        Args:
            module: in evaluation mode, where it runs.
            process: the process it was trained with.
            request: how to draw.
            generators: on the CPU, one for each volume.
            callback: called as (evaluations done, total, image estimate).
        """


class EncodingFamily(Family, Protocol):
    """A family whose training is shown what a frozen encoder makes of volumes, such as latents, instead of volumes.

    It is computed once per volume, and kept. Where volumes are changed whenever they are shown, `Batch` and `HeldOut` have volumes,
    and the family encodes them itself.
    """

    def encode(self, module: nn.Module, volumes: Tensor) -> Tensor:
        """What the training is shown of volumes (B, C, D, H, W), without gradients, shape (B, …); of volume i by itself."""

    def encoded_shape(self, description: Mapping[str, Any]) -> tuple[int, ...]:
        """Of what `encode` makes of one volume."""

    def prepare(self, module: nn.Module, settings: Any, encoded: Iterable[Tensor]) -> None:
        """Set buffers, such as a scale, by the encoded training volumes, before the first step of a fresh training.

        Raises: ValueError: they cannot be trained on.
        """


FAMILIES: Registry[Family] = Registry(
    "family",
    "prdit.families",
    {
        "local": "prdit_models.families.local:FAMILY",
        "global": "prdit_models.families.global_:FAMILY",
        "refiner": "prdit_models.families.refiner:FAMILY",
        "local-alone": "prdit_models.families.local:ALONE",
        "autoencoder-kl": "prdit_models.families.autoencoder:FAMILY",
        "latent-diffusion": "prdit_models.families.latent:FAMILY",
        "wdm": "prdit_models.families.wavelet:FAMILY",
        "hagan": "prdit_models.families.hagan:FAMILY",
    },
    needs=(
        *("title", "settings", "processes", "offers", "needs", "scale", "turns"),
        *(
            "describe",
            "build",
            "begin",
            "freeze",
            "optimizers",
            "draw",
            "losses",
            "validate",
            "evaluations",
            "check",
            "generate",
        ),
    ),
)


def refuse_guide(family: Any, request: Request) -> None:
    """Refuse guided sampling of a family that does not say `guided = True`: that its `generate` knows guides.

    Raises: ValueError: a guide was asked for.
    """
    if request.guide is not None and not getattr(family, "guided", False):
        raise ValueError(
            f"Samples cannot be guided towards a measurement by a checkpoint of family {family.title!r}, whose network does not "
            "estimate volumes while it samples; use that of a global transformer or a refiner."
        )


def refuse_conditions(title: str, remedy: str, conditions: Conditions | None) -> None:
    """Refuse conditions of samples where a model takes none, or not these.

    Args:
        title: what it is, such as `a refined model, which takes no labels`.
        remedy: what to do instead, a sentence.
        conditions: of a request.
    Raises: ValueError: there are some.
    """
    if conditions is None:
        return
    if conditions.labels is not None:
        raise ValueError(f"A label was asked for (sample.label) of {title}. {remedy}")
    if conditions.values is None and conditions.mask is not None:
        raise ValueError(f"A mask was asked for (sample.mask) of {title}. {remedy}")
    raise ValueError(f"Conditions were asked for (sample.conditions) of {title}. {remedy}")


def refuse_conditioning(title: str, given: Given, remedy: str = "Leave it out.") -> None:
    """Refuse conditions of a training whose model takes none.

    Args:
        title: of the family, with an article where it needs one.
        given: of the training.
        remedy: what to do instead, a sentence.
    Raises: ValueError: there are some.
    """
    if given.num_classes:
        raise ValueError(f"label_column is set; {title} takes no labels. {remedy}")
    if given.num_values:
        raise ValueError(f"conditions is set; {title} takes no conditions. {remedy}")
    if given.mask_channels:
        raise ValueError(f"mask is set; {title} is shown no mask. {remedy}")


def first_drawing(
    family: Family,
    description: Mapping[str, Any],
    process: Process | None,
    samplers: Sequence[str],
    num_steps: int,
) -> Request | None:
    """How to draw from a model: by the first of these samplers that its process has; None where it draws no volumes."""
    for name in samplers:
        request = Request(Sampler(name, num_steps))
        try:
            family.check(description, process, request)
        except ValueError:
            continue
        return request
    return None


def family_of(description: Mapping[str, Any]) -> str:
    """Name of the family whose networks a description fits, for imported models.

    Raises: ValueError: no family recognises it (by a method `fits(description)`).
    """
    for name in FAMILIES.names():
        fits = getattr(FAMILIES[name], "fits", None)
        if fits and fits(description):
            return name
    raise ValueError(f"No family recognises a model of {sorted(description)}.")
