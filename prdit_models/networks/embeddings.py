"""Sinusoidal tables for diffusion time and token position, and the time embedder."""

import math

import torch
from torch import Tensor, nn

from prdit_models.networks.linear import FullPrecisionLinear

TIME_TABLE_WIDTH = 256
ROTARY_WAVELENGTHS_MM = (32.0, 1024.0)  # from two tokens of the finest grid to four times the published box

RotaryTable = tuple[Tensor, Tensor]


def timestep_embedding(t: Tensor, width: int = TIME_TABLE_WIDTH, max_period: float = 10_000.0) -> Tensor:
    """Cosines then sines of t at geometric frequencies.

    Args:
        t: diffusion step, integer or float, shape (B,).
        width: table width; an odd one gets a trailing zero.
        max_period: largest period, in steps over 2π.
    Returns: shape (B, width), float32. The order of operations is float32 throughout, as published: arguments reach
        1000 rad, where float32 and exact values differ by 6e-5.
    Source: SPEC §1.3.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    arguments = t[:, None].to(torch.float32) * frequencies[None]
    table = torch.cat([torch.cos(arguments), torch.sin(arguments)], dim=-1)
    return nn.functional.pad(table, (0, width % 2))


def position_table(grid_size: int, hidden_size: int) -> Tensor:
    """Sines and cosines of the normalised token centre along w, h and d.

    Args:
        grid_size: tokens along one axis, G.
        hidden_size: row width H, divisible by 6.
    Returns: shape (G³, H), float32; rows in C order of (d, h, w).
    Raises: ValueError: if H is not divisible by 6.
    Source: SPEC §1.6.
    """
    if hidden_size % 6:
        raise ValueError(
            f"hidden_size {hidden_size} must be divisible by 6: a sine and a cosine for each of three axes."
        )
    centres = (torch.arange(grid_size, dtype=torch.float32) + 0.5) / grid_size
    exponents = torch.linspace(0.0, 1.0, hidden_size // 6, dtype=torch.float32)
    frequencies = 2.0 * math.pi * (0.95 * grid_size / 2.0) ** exponents  # 1 to 0.475·G cycles, below Nyquist
    angles = centres[:, None] * frequencies[None]
    axis = torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)  # (G, H/3)
    shape = (grid_size, grid_size, grid_size, hidden_size // 3)
    along_w = axis[None, None, :].expand(shape)
    along_h = axis[None, :, None].expand(shape)
    along_d = axis[:, None, None].expand(shape)
    return torch.cat([along_w, along_h, along_d], dim=-1).reshape(grid_size**3, hidden_size)


def rotary_table(grid_size: int, pitch_mm: float, head_width: int) -> RotaryTable:
    """Cosines and sines of the token centres' positions in mm, for `rotate`.

    Positions are counted from the volume's centre and wavelengths are fixed in mm, so that models of other voxel sizes see the
    same angles for the same anatomy.

    Args:
        grid_size: tokens along one axis, G.
        pitch_mm: distance of neighbouring tokens.
        head_width: width D of an attention head; D // 6 pairs per axis are rotated, the rest is unchanged.
    Returns: cosines and sines, each (G³, 1, 3·(D // 6)), float32; tokens in C order of (d, h, w), pairs of d, then h, then w.
    Source: RoFormer (Su et al. 2021), by axis.
    """
    pairs = head_width // 6
    shortest, longest = ROTARY_WAVELENGTHS_MM
    wavelengths = shortest * (longest / shortest) ** torch.linspace(0.0, 1.0, pairs, dtype=torch.float64)
    centres = (torch.arange(grid_size, dtype=torch.float64) + 0.5 - grid_size / 2) * pitch_mm
    angles = centres[:, None] * (2.0 * math.pi / wavelengths)
    shape = (grid_size, grid_size, grid_size, pairs)
    by_axis = (angles[:, None, None], angles[None, :, None], angles[None, None, :])
    table = torch.cat([axis.expand(shape) for axis in by_axis], dim=-1).reshape(grid_size**3, 1, 3 * pairs)
    return table.cos().float(), table.sin().float()


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotate the leading pairs of every head of x (B, N, heads, D) by a `rotary_table`: same shape and dtype."""
    cos, sin = (part.to(x.dtype) for part in table)
    width = 2 * cos.shape[-1]
    first, second = x[..., :width].unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)
    return torch.cat([rotated, x[..., width:]], dim=-1)


class TimeEmbedder(nn.Module):
    """Conditioning vectors of both branches from the diffusion step.

    Args:
        hidden_size: H.
        token_width: d, width of the local branch's conditioning.
        has_refiner: whether a second head of width H exists (depth > 0).
    Source: SPEC §1.3.
    """

    def __init__(self, hidden_size: int, token_width: int, *, has_refiner: bool) -> None:
        super().__init__()
        self.mlp = nn.Sequential(FullPrecisionLinear(TIME_TABLE_WIDTH, hidden_size), nn.SiLU())
        self.coarse_head = FullPrecisionLinear(hidden_size, token_width)
        self.fine_head = FullPrecisionLinear(hidden_size, hidden_size) if has_refiner else None

    def forward(self, t: Tensor) -> Tensor:
        """Shared features of t (B,), shape (B, H); the two heads are applied by the network that has the branches."""
        features: Tensor = self.mlp(timestep_embedding(t).to(self.coarse_head.weight.dtype))
        return features
