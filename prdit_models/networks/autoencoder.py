"""The KL-regularised autoencoder of latent diffusion in 3D, and its critic; networks of MONAI (extra `baselines`).

Source: Rombach et al. 2022 and Pinaya et al. 2022, in the configurations of MONAI's 3D latent diffusion tutorial.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint

CRITIC_SLOPE = 0.05  # of the leaky ReLU that MONAI's least-squares loss passes a critic's values through


def check_installed(*, attention: bool) -> None:
    """Refuse to go on without the packages that the networks come from; imports none of them.

    Args:
        attention: whether a network has attention, which MONAI makes with einops.
    Raises: ValueError: one is missing.
    """
    packages = ("monai", "einops") if attention else ("monai",)
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"The families autoencoder-kl and latent-diffusion need {' and '.join(missing)} of the extra `baselines`: "
            "pip install 'prdit[baselines]'."
        )


def monai_networks(*, attention: bool) -> Any:
    """`monai.networks.nets`, imported when it is needed: that takes seconds. Raises: ValueError: not installed."""
    check_installed(attention=attention)
    return importlib.import_module("monai.networks.nets")


def check_groups(channels: tuple[int, ...], groups: int) -> None:
    """Refuse widths that group norms cannot share. Raises: ValueError."""
    if not channels or any(width < 1 for width in channels):
        raise ValueError(
            f"channels is {list(channels)}; expected a width of at least 1 per level, such as [64, 128, 256]."
        )
    if groups < 1 or any(width % groups for width in channels):
        raise ValueError(
            f"groups is {groups}, which does not divide every width of channels {list(channels)}; choose a common divisor of them."
        )


@dataclass(frozen=True)
class CodecConfig:
    """Shape of an autoencoder.

    Attributes:
        size: edge of its volumes, voxels.
        channels: width of each level; every level but the last halves the edge.
        latent_channels: of the latents.
        res_blocks: residual blocks per level.
        groups: of the group norms.
        attention: self-attention at the last level and at the lowest edge.

    Raises: ValueError: at construction, for what does not fit together.
    """

    size: int
    channels: tuple[int, ...] = (64, 128, 256)
    latent_channels: int = 8
    res_blocks: int = 2
    groups: int = 32
    attention: bool = False

    def __post_init__(self) -> None:
        check_groups(self.channels, self.groups)
        if self.latent_channels < 1 or self.res_blocks < 1:
            raise ValueError(
                f"latent_channels is {self.latent_channels} and res_blocks {self.res_blocks}; expected at least 1 of each."
            )
        if self.size % self.factor:
            raise ValueError(
                f"{len(self.channels)} levels of channels divide the edge by {self.factor}, which does not divide the view's size "
                f"{self.size}. Choose a size that is a multiple of {self.factor}, or fewer levels."
            )

    @property
    def factor(self) -> int:
        """How many voxels an axis of the volume has for each of the latents."""
        return int(2 ** (len(self.channels) - 1))

    @property
    def latent_edge(self) -> int:
        """Edge of the latents."""
        return self.size // self.factor

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """As `to_dict` gave it."""
        return cls(**{**values, "channels": tuple(values["channels"])})

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "channels": list(self.channels)}


class Codec(nn.Module):
    """Volumes to the mean and log-variance of their latents, and latents to volumes.

    Args:
        config: its shape.
        attention: `plain`: attention as matrix products; else PyTorch's fused one.
        checkpointing: recompute encoder and decoder in the backward pass.
    """

    def __init__(self, config: CodecConfig, *, attention: str = "auto", checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        levels = len(config.channels)
        self.network = monai_networks(attention=config.attention).AutoencoderKL(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            num_res_blocks=config.res_blocks,
            channels=config.channels,
            attention_levels=[config.attention and level == levels - 1 for level in range(levels)],
            latent_channels=config.latent_channels,
            norm_num_groups=config.groups,
            norm_eps=1e-6,
            with_encoder_nonlocal_attn=config.attention,
            with_decoder_nonlocal_attn=config.attention,
            use_checkpoint=checkpointing,
            use_flash_attention=attention != "plain",
        )

    def moments(self, volumes: Tensor) -> Tensor:
        """Mean and log-variance of the latents, one after the other: (B, 1, S, S, S) to (B, 2 L, S/f, S/f, S/f), float32."""
        mean, std = self.network.encode(volumes)
        return torch.cat([mean.float(), 2.0 * std.float().log()], 1)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, L, S/f, S/f, S/f) to (B, 1, S, S, S), model range, not clipped, float32."""
        volumes: Tensor = self.network.decode(latents).float()
        return volumes


def latents_of(moments: Tensor, eps: Tensor) -> Tensor:
    """A draw of the latents: mean + σ·eps.

    Args:
        moments: mean and log-variance, shape (B, 2 L, …).
        eps: unit noise, shape (B, L, …).
    """
    mean, log_variance = moments.chunk(2, 1)
    return mean + (0.5 * log_variance).exp() * eps


def divergence(moments: Tensor) -> Tensor:
    """KL divergence of the latents from N(0, 1): the SUM over a volume's latents, the mean over the batch; 0-d.

    Source: Kingma & Welling 2014, appendix B.
    """
    mean, log_variance = moments.chunk(2, 1)
    each = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1.0)
    return each.flatten(1).sum(1).mean()


class AutoencoderWithCritic(nn.Module):
    """An autoencoder, the critic of its reconstructions, and how many steps it has taken (a buffer, so that a resume has it).

    Args:
        config: shape of the autoencoder.
        critic_channels: width of the critic's first layer.
        critic_layers: how often it halves the edge.
        attention, checkpointing: see `Codec`.
    """

    def __init__(
        self,
        config: CodecConfig,
        critic_channels: int,
        critic_layers: int,
        *,
        attention: str = "auto",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.codec = Codec(config, attention=attention, checkpointing=checkpointing)
        self.critic = monai_networks(attention=False).PatchDiscriminator(
            spatial_dims=3,
            channels=critic_channels,
            in_channels=1,
            out_channels=1,
            num_layers_d=critic_layers,
            norm="INSTANCE",
        )
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.steps: Tensor

    def judged(self, volumes: Tensor) -> Tensor:
        """What the critic says of each patch, (B, 1, …), float32: towards 1 for real, 0 for reconstructed."""
        values: Tensor = self.critic(volumes)[-1].float()
        return values

    def has_taken(self, steps: int) -> bool:
        """Whether the autoencoder has taken more than so many steps; also true where tensors have no values (planning)."""
        return without_values(self.steps) or int(self.steps) > steps


def least_squares(values: Tensor, target: float) -> Tensor:
    """Mean squared distance from a target, of a critic's values after a leaky ReLU of slope 0.05; 0-d.

    Source: Mao et al. 2017; the leaky ReLU is MONAI's (`PatchAdversarialLoss`).
    """
    return (nn.functional.leaky_relu(values, CRITIC_SLOPE) - target).square().mean()


def without_values(tensor: Tensor) -> bool:
    """Whether a tensor has a shape alone, as where memory is planned."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def recomputed(blocks: Any) -> None:
    """Have modules recompute what they need in the backward pass instead of keeping it."""
    for block in blocks:
        forward: Callable[..., Any] = block.forward
        block.forward = partial(checkpoint, forward, use_reentrant=False)
