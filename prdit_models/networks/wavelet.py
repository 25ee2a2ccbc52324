"""WDM-3D: one level of the 3D Haar transform, and the U-Net that denoises its eight subbands.

Written from the paper (Friedrich et al., "WDM: 3D Wavelet Diffusion Models for High-Resolution Medical Image Synthesis", DGM4MICCAI
2024) and the configuration of its authors' public code, whose U-Net is that of Dhariwal & Nichol (2021) with added skips.
"""

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prdit_models.networks.embeddings import timestep_embedding
from prdit_models.networks.local import recomputed
from prdit_models.optional import optional

SUBBANDS = ("LLL", "LLH", "LHL", "LHH", "HLL", "HLH", "HHL", "HHH")  # along (D, H, W); L low, H high
LLL_SCALE = 3.0  # LLL of a volume in [-1, 1] reaches 2.83; divided by this it stays within 0.943
MULTIPLIERS = (1, 2, 2, 4, 4, 4)  # of 256³; smaller volumes leave out the last ones
LOWEST_EDGE = 4
BLOCKS_PER_LEVEL = 2
GROUP_EPS = 1e-5


# -- the transform ------------------------------------------------------------------------------------------------------


def transforms() -> Any:
    """The package of the wavelet transforms. Raises: ValueError: it is not installed."""
    return optional("ptwt", "baselines", "The wavelet transform of family 'wdm'")


def to_subbands(volumes: Tensor) -> Tensor:
    """Orthonormal Haar transform, LLL divided by 3: what the network works on.

    On pairs (a, b) of every axis: low (a + b)/√2, high (a - b)/√2. In float64, which neither autocast nor TF32 rounds.

    Args:
        volumes: shape (B, 1, S, S, S), S even.
    Returns: shape (B, 8, S/2, S/2, S/2), channels in the order of `SUBBANDS`.
    """
    low, details = transforms().wavedec3(volumes.double(), "haar", mode="zero", level=1)
    bands = [low / LLL_SCALE, *(details[_key(name)] for name in SUBBANDS[1:])]
    return torch.cat(bands, dim=1).to(volumes.dtype)


def to_volumes(subbands: Tensor) -> Tensor:
    """The inverse of `to_subbands`: (B, 8, S/2, S/2, S/2) to (B, 1, S, S, S)."""
    bands = subbands.double().split(1, dim=1)
    details = {_key(name): band for name, band in zip(SUBBANDS[1:], bands[1:], strict=True)}
    found: Tensor = transforms().waverec3((LLL_SCALE * bands[0], details), "haar")
    return found.to(subbands.dtype)


def _key(name: str) -> str:
    """What the package calls a subband: approximation and detail."""
    return name.replace("L", "a").replace("H", "d")


# -- the network --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WaveletConfig:
    """Shape of the U-Net of one volume size.

    Attributes:
        size: edge S of the volume in voxels; the subbands have half of it.
        base_width: channels of the finest level.
        multipliers: channels of each level, in base widths; every further level halves the edge.
        groups: of the group norms.
    Raises: ValueError: at construction, for a size that the levels do not divide, or widths that the groups do not.
    """

    size: int
    base_width: int
    multipliers: tuple[int, ...]
    groups: int

    def __post_init__(self) -> None:
        if self.base_width % self.groups or self.base_width % 2:
            raise ValueError(
                f"base_width {self.base_width} with {self.groups} groups: the width must be even and divisible by the groups, "
                f"which share its channels equally. Use a multiple of {self.groups if self.groups % 2 == 0 else 2 * self.groups}."
            )
        stride = 2 ** len(self.multipliers)
        if self.size % stride or not self.multipliers:
            raise ValueError(
                f"size is {self.size}; the wavelet transform and {max(len(self.multipliers) - 1, 0)} halvings of the U-Net need a "
                f"multiple of {max(stride, 2)}."
            )

    @property
    def edge(self) -> int:
        """Edge of the subbands."""
        return self.size // 2

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-ready dictionary."""
        return {**asdict(self), "multipliers": list(self.multipliers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_dict()` output. Raises: ValueError: for unknown or missing keys."""
        try:
            return cls(**{**values, "multipliers": tuple(values["multipliers"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"A wavelet U-Net cannot be made of {dict(values)}: {error}.") from error


def wavelet_config(size: int, base_width: int = 64, groups: int = 32) -> WaveletConfig:
    """The network of a volume size: published at 128 and 256; at others as many levels as keep the lowest edge at 4 or more.

    Raises: ValueError: a size that the levels do not divide, or widths that the groups do not.
    """
    levels = sum(size // 2 // 2**level >= LOWEST_EDGE for level in range(len(MULTIPLIERS)))
    stride = 2**levels
    if not levels or size % stride:
        below = size // stride * stride if levels else 2 * LOWEST_EDGE
        near = f"{below} or {below + stride}" if levels else f"{below}"
        raise ValueError(
            f"size is {size}; the wavelet transform and the U-Net halve it {levels or 1} times and need at least {2 * LOWEST_EDGE} "
            f"voxels. Use a view.size of {near}."
        )
    return WaveletConfig(size, base_width, MULTIPLIERS[:levels], groups)


class ResidualBlock(nn.Module):
    """GN, SiLU, [resample], conv; plus time; GN, SiLU, conv (zero at first); plus the input, resampled alike.

    Args:
        width, out_width: channels i and o.
        time_width: of the time embedding.
        groups: of the norms.
        resample: `down`: means of 2³; `up`: nearest neighbour; empty: none.
    """

    def __init__(self, width: int, out_width: int, time_width: int, groups: int, resample: str = "") -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = nn.GroupNorm(groups, width, eps=GROUP_EPS)
        self.conv1 = nn.Conv3d(width, out_width, 3, padding=1)
        self.time = nn.Linear(time_width, out_width)
        self.norm2 = nn.GroupNorm(groups, out_width, eps=GROUP_EPS)
        self.conv2 = zeroed(nn.Conv3d(out_width, out_width, 3, padding=1))
        self.skip = nn.Identity() if width == out_width else nn.Conv3d(width, out_width, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, i, d, h, w) and SiLU of the time embedding, (B or 1, time_width), to (B, o, …)."""
        h = self.conv1(self._resampled(F.silu(self.norm1(x))))
        h = h + self.time(time)[:, :, None, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        out: Tensor = self.skip(self._resampled(x)) + h
        return out

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool3d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x


class WaveletUNet(nn.Module):
    """The denoiser of the subbands. Outputs of the encoder are added to what the decoder has and the sum is halved.

    Each block of the decoder takes one output of the encoder, the newest first, and ends in the width of the next one.

    Args:
        config: shape of the network.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: WaveletConfig, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = checkpointing
        base, time_width = config.base_width, 4 * config.base_width
        widths = [multiplier * base for multiplier in config.multipliers]

        def block(width: int, out_width: int, resample: str = "") -> ResidualBlock:
            return ResidualBlock(width, out_width, time_width, config.groups, resample)

        self.time = nn.Sequential(nn.Linear(base, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.first = nn.Conv3d(len(SUBBANDS), base, 3, padding=1)
        encoder, taken = [], [base]
        for level, width in enumerate(widths):
            if level:
                encoder.append(block(taken[-1], taken[-1], "down"))
                taken.append(taken[-1])
            for _ in range(BLOCKS_PER_LEVEL):
                encoder.append(block(taken[-1], width))
                taken.append(width)
        self.encoder = nn.ModuleList(encoder)
        self.middle = nn.ModuleList(block(taken[-1], taken[-1]) for _ in range(2))
        decoder = []
        taken.reverse()
        for place, (width, next_width) in enumerate(itertools.pairwise([*taken, base]), start=1):
            decoder.append(block(width, next_width))
            if place % (BLOCKS_PER_LEVEL + 1) == 0 and place < len(taken):
                decoder.append(block(next_width, next_width, "up"))
        self.decoder = nn.ModuleList(decoder)
        self.norm = nn.GroupNorm(config.groups, base, eps=GROUP_EPS)
        self.last = zeroed(nn.Conv3d(base, len(SUBBANDS), 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the clean subbands, or their noise.

        Args:
            x: noisy subbands, shape (B, 8, S/2, S/2, S/2).
            t: integer step, 0-d or shape (B,).
        Returns: same shape as x.
        Raises: ValueError: if a shape does not fit the configuration.
        """
        edge = self.config.edge
        if x.dim() != 5 or tuple(x.shape[1:]) != (len(SUBBANDS), edge, edge, edge):
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this network takes (B, {len(SUBBANDS)}, {edge}, {edge}, {edge})."
            )
        time = F.silu(self.time(timestep_embedding(t.reshape(-1), self.config.base_width)))
        h = self.first(x)
        kept = [h]
        for block in self.encoder:
            h = recomputed(self.checkpointing, block, h, time)
            kept.append(h)
        for block in self.middle:
            h = recomputed(self.checkpointing, block, h, time)
        for block in self.decoder:
            if block.resample != "up":
                h = (h + kept.pop()) / 2
            h = recomputed(self.checkpointing, block, h, time)
        out: Tensor = self.last(F.silu(self.norm(h)))
        return out


def zeroed(layer: nn.Conv3d) -> nn.Conv3d:
    """The layer with weights and bias 0, so that what it ends adds nothing at first."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
