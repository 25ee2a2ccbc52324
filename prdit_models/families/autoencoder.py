"""The KL-regularised autoencoder of LDM (MONAI): stage A of latent diffusion, with an adversarial term and its critic.

Source: Rombach et al. 2022 and Pinaya et al. 2022, as configured in MONAI's 3D latent diffusion tutorial.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prdit_models.diffusion.process import Process
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
)
from prdit_models.networks.autoencoder import (
    AutoencoderWithCritic,
    CodecConfig,
    check_installed,
    divergence,
    latents_of,
    least_squares,
    without_values,
)

_RANGE = 2.0  # of model values, from -1 to 1: what a PSNR refers to
_DEVIATIONS = (
    "No perceptual term in the autoencoder's loss (published: LPIPS with SqueezeNet, weight 1e-3): its weights would have to be "
    "downloaded.",
    "Model range [-1, 1] by one window of HU for all scans, instead of [0, 1] by percentiles of each crop.",
    "Whole volumes, or cubic crops where the settings say so, instead of random crops of 112 x 128 x 80 voxels.",
    "The critic starts after a number of steps, instead of after six epochs.",
    "The critic sees a reconstruction by the autoencoder as it was just updated, with latent noise of its own.",
)


@dataclass(frozen=True)
class AutoencoderSettings:
    """Settings of an autoencoder; the defaults are the tutorial's, for GPUs with 32 GB.

    Attributes:
        channels: width of each level; every level but the last halves the edge.
        latent_channels: of the latents.
        res_blocks: residual blocks per level.
        groups: of the group norms.
        attention: self-attention at the last level and at the lowest edge (the tutorial's notebook: yes).
        reconstruction: `l1`: mean absolute error; `l2`: mean squared error.
        kl_weight: of the divergence from N(0, 1), which is a SUM over a volume's latents: larger volumes need a smaller weight.
        adversarial_weight: of the critic, in the autoencoder's loss and in its own.
        critic_start: steps of the autoencoder before the critic is trained and heard.
        critic_channels: width of the critic's first layer.
        critic_layers: how often the critic halves the edge.
        crop: edge of random boxes that are trained on instead of whole volumes, voxels; 0: whole volumes.

    Raises: ValueError: at construction, for a value out of range.
    """

    channels: tuple[int, ...] = (64, 128, 256)
    latent_channels: int = 8
    res_blocks: int = 2
    groups: int = 32
    attention: bool = False
    reconstruction: Literal["l1", "l2"] = "l1"
    kl_weight: float = 1e-7
    adversarial_weight: float = 1e-2
    critic_start: int = 500
    critic_channels: int = 32
    critic_layers: int = 3
    crop: int = 0

    def __post_init__(self) -> None:
        for name in ("kl_weight", "adversarial_weight", "critic_start", "crop"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more.")
        for name in ("critic_channels", "critic_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")


class Autoencoder:
    """What latent diffusion starts from; see `Family` for the methods. Of itself it draws nothing."""

    title = "autoencoder of LDM (MONAI)"
    settings = AutoencoderSettings
    processes: tuple[str, ...] = ()
    offers = "kl latents"
    needs = ""
    scale = 1
    turns: tuple[str, ...] = ("autoencoder", "critic")

    def describe(self, settings: AutoencoderSettings, given: Given) -> Description:
        """Shape of the autoencoder and of its critic."""
        check_installed(attention=settings.attention)
        refuse_conditioning(f"an {self.title}", given)
        codec = CodecConfig(
            size=given.size,
            channels=settings.channels,
            latent_channels=settings.latent_channels,
            res_blocks=settings.res_blocks,
            groups=settings.groups,
            attention=settings.attention,
        )
        if settings.crop > given.size or settings.crop % codec.factor:
            raise ValueError(
                f"crop is {settings.crop}; expected a multiple of {codec.factor} (what the levels reduce an edge by) and at most "
                f"the view's size {given.size}, or 0 for whole volumes."
            )
        edge = settings.crop or given.size
        left = edge // 2**settings.critic_layers
        if left < 3:  # two more convolutions take away a voxel each, and a norm needs two
            raise ValueError(
                f"A critic that halves the edge {settings.critic_layers} times leaves {left} of {edge} voxels, and needs 3. Set a "
                "smaller critic_layers, or train on larger volumes."
            )
        return {
            "codec": codec.to_dict(),
            "critic_channels": settings.critic_channels,
            "critic_layers": settings.critic_layers,
        }

    def deviations(self, description: Mapping[str, Any], process: Process | None) -> tuple[str, ...]:
        """What of a model differs from the published one, in sentences."""
        published = {name: value for name, value in CodecConfig(0).to_dict().items() if name != "size"}
        published_critic = {name: getattr(AutoencoderSettings, name) for name in ("critic_channels", "critic_layers")}
        critic = {name: description.get(name, value) for name, value in published_critic.items()}  # latents: it is gone
        return (
            *_DEVIATIONS,
            *other_shape("Autoencoder", description["codec"], published),
            *other_shape("Its critic", critic, published_critic),
        )

    def build(
        self, description: Mapping[str, Any], *, attention: str = "auto", checkpointing: bool = False
    ) -> nn.Module:
        """Both networks."""
        return AutoencoderWithCritic(
            CodecConfig.from_dict(description["codec"]),
            description["critic_channels"],
            description["critic_layers"],
            attention=attention,
            checkpointing=checkpointing,
        )

    def begin(self, module: nn.Module, settings: AutoencoderSettings, start: Mapping[str, Tensor] | None) -> None:
        """Nothing: PyTorch's initial weights, the critic's from N(0, 0.02)."""

    def freeze(self, module: nn.Module, settings: AutoencoderSettings) -> None:
        """Nothing."""

    def optimizers(self, module: Any, training: Training) -> dict[str, torch.optim.Optimizer]:
        """Two Adam with betas 0.9 and 0.999; the autoencoder's counts its steps."""
        found = {
            "autoencoder": adam(module.codec, training.lr, training.weight_decay),
            "critic": adam(module.critic, training.lr, training.weight_decay),
        }
        # Steps and not calls: several batches may make one step, and a step may be skipped.
        found["autoencoder"].register_step_post_hook(lambda *_: module.steps.add_(1))
        return found

    def draw(
        self,
        turn: str,
        description: Mapping[str, Any],
        training: Training,
        shape: tuple[int, ...],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Noise `eps` of the latents, and the `corner` of the crop in voxels where there is one."""
        config, settings = CodecConfig.from_dict(description["codec"]), training.settings
        edge = (settings.crop or config.size) // config.factor
        found = {"eps": torch.randn((config.latent_channels, *(edge,) * 3), generator=generator)}
        if settings.crop:
            found["corner"] = torch.randint(0, config.size - settings.crop + 1, (3,), generator=generator)
        return found

    def losses(self, turn: str, network: Callable[..., Any], batch: Batch, training: Training) -> Losses | None:
        """Reconstruction, divergence and adversarial term, or the critic's loss; nothing of a critic that has not started."""
        module: Any = network
        settings = training.settings
        volumes, eps = cropped(batch.volumes, batch.draws.get("corner"), settings.crop), batch.draws["eps"]
        if turn == "critic":
            # The step of this turn's autoencoder is counted already.
            return self._of_critic(module, volumes, eps, settings) if module.has_taken(settings.critic_start) else None
        moments = module.codec.moments(volumes)
        rebuilt = module.codec.decode(latents_of(moments, eps))
        distance = rebuilt - volumes
        found = {
            "loss_reconstruction": (distance.abs() if settings.reconstruction == "l1" else distance.square()).mean(),
            "loss_kl": divergence(moments),
        }
        loss = found["loss_reconstruction"] + settings.kl_weight * found["loss_kl"]
        if module.has_taken(settings.critic_start - 1):
            found["loss_adversarial"] = least_squares(module.judged(rebuilt), 1.0)
            loss = loss + settings.adversarial_weight * found["loss_adversarial"]
        return {"loss": loss} | found

    @staticmethod
    def _of_critic(module: Any, volumes: Tensor, eps: Tensor, settings: AutoencoderSettings) -> Losses:
        with torch.no_grad():
            rebuilt = module.codec.decode(latents_of(module.codec.moments(volumes), eps))
        fake, real = least_squares(module.judged(rebuilt), 0.0), least_squares(module.judged(volumes), 1.0)
        # The weight changes nothing that Adam sees but its eps; it is the published loss.
        return {"loss": settings.adversarial_weight * 0.5 * (fake + real)}

    @torch.no_grad()
    def validate(self, module: Any, held_out: HeldOut, training: Training, batch_size: int) -> dict[str, float]:
        """Of whole volumes rebuilt from the mean of their latents: `loss` (the reconstruction's), `psnr` in dB, `kl`."""
        device = next(module.parameters()).device
        sums = {"loss": 0.0, "psnr": 0.0, "kl": 0.0}
        for start in range(0, len(held_out.volumes), batch_size):
            volumes = held_out.volumes[start : start + batch_size].to(device)
            moments = module.codec.moments(volumes)
            distance = module.codec.decode(moments.chunk(2, 1)[0]) - volumes
            squared = distance.square().flatten(1).mean(1).double()
            of_l1 = training.settings.reconstruction == "l1"
            sums["loss"] += float(distance.abs().flatten(1).mean(1).double().sum() if of_l1 else squared.sum())
            sums["psnr"] += float((10.0 * torch.log10(_RANGE**2 / squared)).sum())
            sums["kl"] += float(divergence(moments)) * len(volumes)
        return {name: value / len(held_out.volumes) for name, value in sums.items()}

    def evaluations(self, process: Process | None, request: Request) -> int:
        """None: it draws nothing."""
        return 0

    def check(self, description: Mapping[str, Any], process: Process | None, request: Request) -> None:
        """Always refuses. Raises: ValueError."""
        raise ValueError(
            "Sampling needs a model that makes latents, got their autoencoder. Train a latent-diffusion on it (start), then sample "
            "that."
        )

    def generate(
        self,
        module: nn.Module,
        process: Process | None,
        request: Request,
        generators: Sequence[torch.Generator],
        callback: Callback | None = None,
    ) -> Tensor:
        """Always refuses, as `check`."""
        self.check({}, process, request)
        raise AssertionError  # never reached


def other_shape(name: str, ours: Mapping[str, Any], published: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence about a network's settings that are not the published ones; none where all are."""
    differing = [
        f"{each.replace('_', ' ')} {_listed(ours[each])} (published: {_listed(value)})"
        for each, value in published.items()
        if ours[each] != value
    ]
    return (f"{name} of another shape: {'; '.join(differing)}.",) if differing else ()


def _listed(value: Any) -> str:
    words = {True: "yes", False: "no"}
    if isinstance(value, list | tuple):
        return ", ".join(map(_listed, value))
    return words[value] if isinstance(value, bool) else str(value)


def adam(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam over the trained parameters of a module: betas 0.9 and 0.999, eps 1e-8.

    Source: Kingma & Ba 2015, the published optimiser of both stages of LDM (MONAI).
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.Adam(trained, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=True)


def cropped(volumes: Tensor, corners: Tensor | None, edge: int) -> Tensor:
    """A box of each volume, (B, C, edge, edge, edge), at its own corner (z, y, x); the volumes themselves without corners."""
    if corners is None:
        return volumes
    if without_values(corners):
        return volumes[:, :, :edge, :edge, :edge].clone()
    boxes = [
        volume[:, z : z + edge, y : y + edge, x : x + edge]
        for volume, (z, y, x) in zip(volumes, corners.tolist(), strict=True)
    ]
    return torch.stack(boxes)


FAMILY = Autoencoder()
