"""Latent diffusion of LDM (MONAI): stage B, a denoiser of the latents of a frozen autoencoder.

Source: Rombach et al. 2022 and Pinaya et al. 2022, as configured in MONAI's 3D latent diffusion tutorial.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prdit_models.diffusion.ddpm import DDPMProcess, deviations_of
from prdit_models.diffusion.process import Process
from prdit_models.diffusion.sampling import sample
from prdit_models.families.autoencoder import FAMILY as AUTOENCODER
from prdit_models.families.autoencoder import adam, other_shape
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
    refuse_guide,
)
from prdit_models.networks.autoencoder import CodecConfig, check_installed, latents_of
from prdit_models.networks.latent import DenoiserConfig, LatentDiffusion
from prdit_models.networks.weights import load_weights

PUBLISHED_PROCESS = DDPMProcess(schedule="scaled-linear", beta_start=0.0015, beta_end=0.0195, prediction="noise")
_VALIDATION_SEED = 30_260  # of the latents of held-out volumes; their noise has its own


@dataclass(frozen=True)
class LatentSettings:
    """Settings of latent diffusion; the defaults are the tutorial's. View and intensity are those of the autoencoder.

    Attributes:
        channels: width of each level of the U-Net; every level but the last halves the edge.
        attention: which levels have self-attention.
        head_channels: width of an attention head.
        res_blocks: residual blocks per level.
        groups: of the group norms.
        scale_volumes: training volumes that the scale of the latents is measured on, or all there are.

    Raises: ValueError: at construction, for a value out of range.
    """

    channels: tuple[int, ...] = (256, 256, 512)
    attention: tuple[bool, ...] = (False, True, True)
    head_channels: int = 64
    res_blocks: int = 2
    groups: int = 32
    scale_volumes: int = 64

    def __post_init__(self) -> None:
        if self.scale_volumes < 1:
            raise ValueError(f"scale_volumes is {self.scale_volumes}; expected at least 1 (64 by default).")

    @property
    def denoiser(self) -> DenoiserConfig:
        """Shape of the U-Net. Raises: ValueError: it does not fit together."""
        return DenoiserConfig(self.channels, self.attention, self.head_channels, self.res_blocks, self.groups)


class Latent(Denoiser):
    """A denoiser of latents, which are drawn anew from their mean and variance whenever a volume is shown.

    Where the training stores what `encode` makes of its volumes, batches have that instead of volumes.
    """

    title = "latent diffusion (LDM, MONAI)"
    settings = LatentSettings
    processes: tuple[str, ...] = ("ddpm",)
    offers = ""
    needs = "kl latents"

    def describe(self, settings: LatentSettings, given: Given) -> Description:
        """Shapes of the autoencoder below and of the U-Net."""
        check_installed(attention=True)
        refuse_conditioning(self.title, given)
        codec, denoiser = CodecConfig.from_dict((given.start or {})["codec"]), settings.denoiser
        if codec.latent_edge % denoiser.factor:
            raise ValueError(
                f"{len(denoiser.channels)} levels of channels divide the edge by {denoiser.factor}, which does not divide the "
                f"{codec.latent_edge} of the latents (size {codec.size}, reduced by {codec.factor}). Choose fewer levels, or "
                f"train the autoencoder at a size that is a multiple of {codec.factor * denoiser.factor}."
            )
        return {"codec": codec.to_dict(), "denoiser": denoiser.to_dict()}

    def deviations(self, description: Mapping[str, Any], process: Process | None) -> tuple[str, ...]:
        """What of a model differs from the published one, in sentences; those of its autoencoder among them."""
        found = [
            *AUTOENCODER.deviations(description, None),
            "The scale of the latents is measured on many training volumes (64 or all there are) instead of one batch, and stored.",
            "Trained on latents of whole volumes, whose mean and variance are computed once, instead of on centre crops.",
            "A constant learning rate (published: multiplied by 0.1 at epochs 100 and 1,000), and no float16.",
        ]
        if not getattr(process, "clip", False):
            found.append(
                "Estimates of latents are not clipped to [-1, 1] (published samples were, by MONAI's default)."
            )
        found += other_shape("U-Net", description["denoiser"], DenoiserConfig().to_dict())
        return (*found, *deviations_of(known_process(process), PUBLISHED_PROCESS, but="clip"))

    def build(
        self, description: Mapping[str, Any], *, attention: str = "auto", checkpointing: bool = False
    ) -> nn.Module:
        """Autoencoder and U-Net."""
        return LatentDiffusion(
            CodecConfig.from_dict(description["codec"]),
            DenoiserConfig.from_dict(description["denoiser"]),
            attention=attention,
            checkpointing=checkpointing,
        )

    def begin(self, module: Any, settings: LatentSettings, start: Mapping[str, Tensor] | None) -> None:
        """Load the autoencoder; its critic stays behind."""
        weights = {
            name.removeprefix("codec."): value for name, value in (start or {}).items() if name.startswith("codec.")
        }
        load_weights(module.codec, weights, "They must be those of the autoencoder that this training starts from.")

    def freeze(self, module: Any, settings: LatentSettings) -> None:
        """The autoencoder."""
        module.codec.requires_grad_(False)

    def optimizers(self, module: Any, training: Training) -> dict[str, torch.optim.Optimizer]:
        """Adam over the U-Net."""
        return {"main": adam(module.denoiser, training.lr, training.weight_decay)}

    # -- what is computed of volumes once ---------------------------------------------------------------------------------

    def encode(self, module: Any, volumes: Tensor) -> Tensor:
        """Mean and log-variance of the latents, one after the other, (B, 2 L, E, E, E), float32."""
        moments: Tensor = module.moments(volumes)
        return moments

    def encoded_shape(self, description: Mapping[str, Any]) -> tuple[int, ...]:
        """Of what `encode` makes of one volume."""
        channels, *edges = _latent_shape(description)
        return (2 * channels, *edges)

    def prepare(self, module: Any, settings: LatentSettings, encoded: Iterable[Tensor]) -> None:
        """Set the scale: 1 over the standard deviation of all entries of the latents of the first training volumes.

        Of the draws, without drawing: their mean square is that of the mean plus the variance. Sums in float64.

        Raises: ValueError: the latents do not vary.
        """
        total = square = count = 0.0
        for moments in itertools.islice(encoded, settings.scale_volumes):
            mean, log_variance = moments.double().chunk(2, 0)
            total += float(mean.sum())
            square += float((mean.square() + log_variance.exp()).sum())
            count += mean.numel()
        variance = square / count - (total / count) ** 2
        if not variance > 0:
            raise ValueError(
                f"The latents of the training volumes have the variance {variance}: the autoencoder makes the same of all of them. "
                "Train it longer, or with a smaller kl_weight."
            )
        module.scale.fill_(variance**-0.5)

    # -- training and sampling --------------------------------------------------------------------------------------------

    def draw(
        self,
        turn: str,
        description: Mapping[str, Any],
        training: Training,
        shape: tuple[int, ...],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Time `t`, uniform, noise `eps` of the process, and noise `latent_eps` of the latents."""
        process, latent = known_process(training.process), _latent_shape(description)
        t = process.draw_times(1, generator, distribution="uniform", mean=0.0, std=1.0)
        return {
            "t": t[0],
            "eps": process.noise(latent, generator),
            "latent_eps": torch.randn(latent, generator=generator),
        }

    def losses(self, turn: str, network: Any, batch: Batch, training: Training) -> Losses | None:
        """Those of the process on scaled latents."""
        latents = _scaled(network, batch.volumes, batch.draws["latent_eps"])
        return super().losses(turn, network, replace(batch, volumes=latents), training)

    @torch.no_grad()
    def validate(self, module: Any, held_out: HeldOut, training: Training, batch_size: int) -> dict[str, float]:
        """Mean losses on latents drawn with fixed noise, see `Denoiser.validate`."""
        device, found = module.scale.device, []
        for volume, place in zip(held_out.volumes, held_out.places, strict=True):
            moments = module.moments(volume.unsqueeze(0).to(device))
            generator = torch.Generator().manual_seed(_VALIDATION_SEED + 1000 * place)
            shape = (1, moments.shape[1] // 2, *moments.shape[2:])
            found.append(_scaled(module, moments, torch.randn(shape, generator=generator).to(device)).cpu())
        latents = replace(held_out, volumes=torch.cat(found))
        return super().validate(module, latents, training, batch_size)

    def generate(
        self,
        module: Any,
        process: Process | None,
        request: Request,
        generators: Sequence[torch.Generator],
        callback: Callback | None = None,
    ) -> Tensor:
        """Latents by the process's sampler, decoded; see `Family.generate`. The callback is given latents."""
        refuse_guide(self, request)
        codec = module.codec.config
        result = sample(
            module,
            known_process(process),
            request.sampler,
            volume_size=codec.latent_edge,
            generators=generators,
            in_channels=codec.latent_channels,
            device=module.scale.device,
            callback=callback,
        )
        latents = result.x0 if request.output == "image" else result.x
        # One by one: at the full edge the decoder needs more memory than the U-Net does for many volumes.
        return torch.cat([module.decode(one) for one in latents.split(1)])


def _latent_shape(description: Mapping[str, Any]) -> tuple[int, int, int, int]:
    codec = CodecConfig.from_dict(description["codec"])
    return (codec.latent_channels, codec.latent_edge, codec.latent_edge, codec.latent_edge)


def _scaled(network: Any, volumes: Tensor, eps: Tensor) -> Tensor:
    """A draw of the scaled latents of volumes, or of what is stored of them."""
    latents: Tensor = network.scale * latents_of(network.moments(volumes), eps)
    return latents


FAMILY = Latent()
