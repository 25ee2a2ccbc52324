"""WDM-3D: diffusion on the eight Haar subbands of a volume, by a U-Net that predicts them without noise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prdit_models.diffusion.ddpm import DDPMProcess, deviations_of
from prdit_models.diffusion.process import Process
from prdit_models.diffusion.sampling import sample
from prdit_models.families.denoiser import Denoiser, known_process
from prdit_models.families.family import (
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
from prdit_models.networks.wavelet import (
    SUBBANDS,
    WaveletConfig,
    WaveletUNet,
    to_subbands,
    to_volumes,
    transforms,
    wavelet_config,
)

PUBLISHED_SIZES = (128, 256)
PUBLISHED_PROCESS = DDPMProcess(prediction="image", variance="large")


@dataclass(frozen=True)
class WaveletSettings:
    """Settings of WDM-3D; what is published is the default. The number of levels follows from the size.

    Attributes:
        base_width: channels of the U-Net's finest level.
        groups: of its group norms; the width must be divisible by them.
    Raises: ValueError: at construction, for a value below 1.
    """

    base_width: int = 64
    groups: int = 32

    def __post_init__(self) -> None:
        for name in ("base_width", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")


class Wavelet(Denoiser):
    """A denoiser of subbands: noise is added to them, and the loss is the mean squared error of all of them alike.

    Source: Friedrich et al., DGM4MICCAI 2024; settings of the public code of its authors.
    """

    title = "wavelet diffusion (WDM-3D)"
    settings = WaveletSettings
    processes = ("ddpm",)
    offers = ""
    needs = ""

    def describe(self, settings: WaveletSettings, given: Given) -> Description:
        """Shape of the U-Net, as `WaveletConfig` stores it."""
        transforms()
        process: Any = known_process(given.process)
        if process.prediction != "image" or process.clip:
            raise ValueError(
                f"process has prediction {process.prediction!r} and clip {process.clip}; family 'wdm' predicts clean subbands, and "
                "clamps volumes, not subbands. Set process: {name: ddpm, prediction: image, variance: large} (published)."
            )
        refuse_conditioning("family 'wdm'", given)
        return wavelet_config(given.size, settings.base_width, settings.groups).to_dict()

    def deviations(self, description: Mapping[str, Any], process: Process | None = None) -> tuple[str, ...]:
        """How models of a description differ from the published ones, and a process where it is given: sentences."""
        config, published = WaveletConfig.from_dict(description), WaveletSettings()
        levels, width, groups = len(config.multipliers), config.base_width, config.groups
        found = []
        if config.size not in PUBLISHED_SIZES:
            lowest = config.edge // 2 ** (levels - 1)
            found.append(
                f"Size {config.size} is an adaptation (published: 128, 256): {levels} levels, lowest edge {lowest}."
            )
        if (width, groups) != (published.base_width, published.groups):
            wide = f"{published.base_width} and {published.groups}"
            found.append(f"Base width {width} and {groups} groups of the norms (published: {wide}).")
        return (*found, *deviations_of(process or PUBLISHED_PROCESS, PUBLISHED_PROCESS))

    def build(
        self, description: Mapping[str, Any], *, attention: str = "auto", checkpointing: bool = False
    ) -> nn.Module:
        """The U-Net; it has no attention."""
        return WaveletUNet(WaveletConfig.from_dict(description), checkpointing=checkpointing)

    def begin(self, module: nn.Module, settings: WaveletSettings, start: Mapping[str, Tensor] | None) -> None:
        """Nothing: the network initialises itself."""

    def draw(
        self,
        turn: str,
        description: Mapping[str, Any],
        training: Training,
        shape: tuple[int, ...],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Time `t`, uniform, and noise `eps` of the subbands: noise of voxels, transformed, would have the same distribution."""
        process = known_process(training.process)
        t = process.draw_times(1, generator, distribution="uniform", mean=0.0, std=1.0)
        return {"t": t[0], "eps": process.noise((len(SUBBANDS), *(n // 2 for n in shape[1:])), generator)}

    def losses(self, turn: str, network: Callable[..., Any], batch: Batch, training: Training) -> Losses | None:
        """Those of the process on the subbands."""
        return super().losses(turn, network, replace(batch, volumes=to_subbands(batch.volumes)), training)

    def validate(self, module: nn.Module, held_out: HeldOut, training: Training, batch_size: int) -> dict[str, float]:
        """Mean losses on the subbands, see `Denoiser.validate`."""
        subbands = replace(held_out, volumes=to_subbands(held_out.volumes))
        return super().validate(module, subbands, training, batch_size)

    def check(self, description: Mapping[str, Any], process: Process | None, request: Request) -> None:
        """Refuse a sampler the process does not have, and any conditions. Raises: ValueError."""
        transforms()
        refuse_conditions("family 'wdm', which takes no labels and conditions", "Leave it out.", request.conditions)
        super().check(description, process, request)

    def generate(
        self,
        module: nn.Module,
        process: Process | None,
        request: Request,
        generators: Sequence[torch.Generator],
        callback: Callback | None = None,
    ) -> Tensor:
        """Volumes of subbands drawn by the process's sampler, whose estimates are clamped as volumes; see `Family.generate`."""
        refuse_guide(self, request)
        config: Any = module.config

        def report(done: int, total: int, subbands: Tensor) -> None:
            if callback:
                callback(done, total, to_volumes(subbands))

        result = sample(
            Clamped(module),
            known_process(process),
            request.sampler,
            volume_size=config.edge,
            generators=generators,
            in_channels=len(SUBBANDS),
            device=next(module.parameters()).device,
            callback=report if callback else None,
        )
        return to_volumes(result.x0 if request.output == "image" else result.x)


class Clamped:
    """A network of subbands whose estimates are moved to those of volumes in [-1, 1] before a sampler uses them."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's own estimate."""
        found: Tensor = self._network(x, t)
        return found

    def constrained(self, image: Tensor) -> Tensor:
        """Subbands of the volume of an estimate, clamped."""
        return to_subbands(to_volumes(image).clamp(-1.0, 1.0))


FAMILY = Wavelet()
