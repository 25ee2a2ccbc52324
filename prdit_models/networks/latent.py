"""The denoiser of latent diffusion in 3D, on the latents of a frozen autoencoder; networks of MONAI (extra `baselines`).

Source: Rombach et al. 2022 and Pinaya et al. 2022, in the configuration of MONAI's 3D latent diffusion tutorial.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from prdit_models.networks.autoencoder import Codec, CodecConfig, check_groups, monai_networks, recomputed


@dataclass(frozen=True)
class DenoiserConfig:
    """Shape of a U-Net on latents.

    Attributes:
        channels: width of each level; every level but the last halves the edge.
        attention: which levels have self-attention.
        head_channels: width of an attention head.
        res_blocks: residual blocks per level.
        groups: of the group norms.

    Raises: ValueError: at construction, for what does not fit together.
    """

    channels: tuple[int, ...] = (256, 256, 512)
    attention: tuple[bool, ...] = (False, True, True)
    head_channels: int = 64
    res_blocks: int = 2
    groups: int = 32

    def __post_init__(self) -> None:
        check_groups(self.channels, self.groups)
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention has {len(self.attention)} entries for {len(self.channels)} levels of channels; expected one per level."
            )
        if self.res_blocks < 1 or self.head_channels < 1:
            raise ValueError(
                f"res_blocks is {self.res_blocks} and head_channels {self.head_channels}; expected at least 1 of each."
            )
        attending = {width for width, has in zip(self.channels, self.attention, strict=True) if has}
        # The block at the lowest edge has attention whatever the levels have.
        if bad := sorted(width for width in attending | {self.channels[-1]} if width % self.head_channels):
            raise ValueError(
                f"head_channels is {self.head_channels}, which does not divide the widths {bad} of levels with attention."
            )

    @property
    def factor(self) -> int:
        """What the levels divide the latents' edge by."""
        return int(2 ** (len(self.channels) - 1))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """As `to_dict` gave it."""
        lists = {name: tuple(values[name]) for name in ("channels", "attention")}
        return cls(**{**values, **lists})

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "channels": list(self.channels), "attention": list(self.attention)}


class LatentDiffusion(nn.Module):
    """A U-Net that removes noise from scaled latents, the autoencoder they are of, and their scale.

    Args:
        codec: shape of the autoencoder.
        denoiser: shape of the U-Net.
        attention: `plain`: attention as matrix products; else PyTorch's fused one.
        checkpointing: recompute the U-Net's levels in the backward pass.

    Attributes:
        scale: 0-d buffer; the U-Net sees latents multiplied by it.
    """

    def __init__(
        self, codec: CodecConfig, denoiser: DenoiserConfig, *, attention: str = "auto", checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.codec = Codec(codec, attention=attention)
        self.denoiser = monai_networks(attention=True).DiffusionModelUNet(
            spatial_dims=3,
            in_channels=codec.latent_channels,
            out_channels=codec.latent_channels,
            num_res_blocks=denoiser.res_blocks,
            channels=denoiser.channels,
            attention_levels=denoiser.attention,
            norm_num_groups=denoiser.groups,
            norm_eps=1e-6,
            num_head_channels=denoiser.head_channels,
            use_flash_attention=attention != "plain",
        )
        if checkpointing:
            network = self.denoiser
            recomputed([*network.down_blocks, network.middle_block, *network.up_blocks])
        self.register_buffer("scale", torch.ones(()))
        self.scale: Tensor

    def forward(self, latents: Tensor, t: Tensor) -> Tensor:
        """What the process predicts of scaled latents (B, L, E, E, E) at steps t, (B,) or 0-d; same shape."""
        found: Tensor = self.denoiser(latents, t.expand(len(latents)))
        return found

    def moments(self, volumes: Tensor) -> Tensor:
        """Mean and log-variance of the latents, (B, 2 L, E, E, E), without gradients; of volumes, or of what is stored of them."""
        if volumes.shape[1] > 1:  # stored ones: a volume has one channel, and they have two at least
            return volumes
        with torch.no_grad():
            return self.codec.moments(volumes)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents to volumes (B, 1, S, S, S), model range, not clipped."""
        return self.codec.decode(latents / self.scale)
