"""The local denoiser: every token on its own, conditioned on time."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MODULATION_NORM_EPS = 1e-6
GATED_NORM_EPS = 1e-5


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x · (1 + scale) + shift`, shift and scale (B or 1, 1, width) broadcast over tokens."""
    return torch.addcmul(shift, x, 1.0 + scale)


def plain_norm(x: Tensor) -> Tensor:
    """Layer norm without parameters, eps 1e-6, as used before every modulation."""
    return F.layer_norm(x, (x.shape[-1],), eps=MODULATION_NORM_EPS)


class GatedMLP(nn.Module):
    """`W₂·LN(silu(W_g z + b_g) · (W_x z + b_x)) + b₂`, all of one width (SPEC §1.4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(width, width)
        self.fc1_x = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=GATED_NORM_EPS)
        self.fc2 = nn.Linear(width, width)

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, N, width) to the same shape."""
        out: Tensor = self.fc2(self.norm(F.silu(self.fc1_g(z)) * self.fc1_x(z)))
        return out


class TokenDenoiser(nn.Module):
    """Two modulated gated MLPs, one residual around both, a modulated linear read-out.

    Args:
        token_width: raw token width d.
        output_width: predicted values a token, s³·O.
    Source: SPEC §1.4.
    """

    def __init__(self, token_width: int, output_width: int) -> None:
        super().__init__()
        self.mlp1 = GatedMLP(token_width)
        self.mlp2 = GatedMLP(token_width)
        self.linear_final = nn.Linear(token_width, output_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(token_width, 6 * token_width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Denoise tokens (B, N, d) under condition (B or 1, d): shape (B, N, s³·O)."""
        shift1, scale1, shift2, scale2, shift3, scale3 = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        h = self.mlp1(modulate(plain_norm(tokens), shift1, scale1))
        h = self.mlp2(modulate(plain_norm(h), shift2, scale2))
        out: Tensor = self.linear_final(modulate(h + tokens, shift3, scale3))
        return out


class LocalBranch(nn.Module):
    """The `coarse.*` keys of a checkpoint: a `TokenDenoiser` under the name `mlp_denoise`."""

    def __init__(self, token_width: int, output_width: int) -> None:
        super().__init__()
        self.mlp_denoise = TokenDenoiser(token_width, output_width)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """See `TokenDenoiser.forward`."""
        out: Tensor = self.mlp_denoise(tokens, condition)
        return out
