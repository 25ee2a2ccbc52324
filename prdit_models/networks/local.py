"""The local denoiser: every token on its own, conditioned on time."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from prdit_models.networks.config import ModelConfig
from prdit_models.networks.linear import FullPrecisionLinear, Linear

MODULATION_NORM_EPS = 1e-6
GATED_NORM_EPS = 1e-5
RMS_EPS = 1e-5  # TF-PRDiT's, used by every RMS norm here

Norm = Callable[[Tensor], Tensor]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x · (1 + scale) + shift`, shift and scale (B or 1, 1, width) broadcast over tokens."""
    return torch.addcmul(shift, x, 1.0 + scale)


def plain_norm(x: Tensor) -> Tensor:
    """Layer norm without parameters, eps 1e-6, as used before every modulation."""
    return F.layer_norm(x, (x.shape[-1],), eps=MODULATION_NORM_EPS)


def rms_norm(x: Tensor) -> Tensor:
    """`x / sqrt(mean(x²) + 1e-5)` over the last axis, without parameters (SPEC §3.2)."""
    return F.rms_norm(x, (x.shape[-1],), eps=RMS_EPS)


def modulation_norm(arithmetic: str, norm: str) -> Norm:
    """The norm before modulations in the local MLPs and the blocks."""
    return rms_norm if arithmetic == "tf" or norm == "rms" else plain_norm


def recomputed(checkpointing: bool, work: Callable[..., Tensor], *inputs: object) -> Tensor:
    """`work(*inputs)`; with checkpointing its activations are not kept but computed again in the backward pass."""
    if checkpointing and torch.is_grad_enabled():
        out: Tensor = checkpoint(work, *inputs, use_reentrant=False, preserve_rng_state=False)  # no dropout anywhere
        return out
    return work(*inputs)


class GatedMLP(nn.Module):
    """`W₂·LN(silu(W_g z + b_g) · (W_x z + b_x)) + b₂`, all of one width (SPEC §1.4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1_g = Linear(width, width)
        self.fc1_x = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=GATED_NORM_EPS)
        self.fc2 = Linear(width, width)

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, N, width) to the same shape."""
        out: Tensor = self.fc2(self.norm(F.silu(self.fc1_g(z)) * self.fc1_x(z)))
        return out


class TokenDenoiser(nn.Module):
    """Two modulated gated MLPs, one residual around both, a modulated linear read-out.

    Args:
        token_width: raw token width d.
        output_width: predicted values per token, s³·O.
        norm: before the two modulations.
        normalized_modulation: RMS-normalise the six modulations together (TF-PRDiT, SPEC §3.2 b).
        checkpointing: recompute each MLP in the backward pass instead of keeping its activations.
    Source: SPEC §1.4.
    """

    def __init__(
        self,
        token_width: int,
        output_width: int,
        *,
        norm: Norm = plain_norm,
        normalized_modulation: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.mlp1 = GatedMLP(token_width)
        self.mlp2 = GatedMLP(token_width)
        self.linear_final = Linear(token_width, output_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), FullPrecisionLinear(token_width, 6 * token_width))
        self._norm = norm
        self._normalized_modulation = normalized_modulation

    def modulation(self, condition: Tensor) -> Tensor:
        """The six shifts and scales for a condition (B or 1, d): shape (B or 1, 1, 6d)."""
        out: Tensor = self.adaLN_modulation(condition)[:, None]
        return rms_norm(out) if self._normalized_modulation else out

    def forward(self, tokens: Tensor, modulation: Tensor) -> Tensor:
        """Denoise tokens (B, N, d) under a `modulation`: shape (B, N, s³·O)."""
        shift1, scale1, shift2, scale2, shift3, scale3 = modulation.chunk(6, dim=-1)

        h = recomputed(self.checkpointing, self._gated, self.mlp1, tokens, shift1, scale1)
        h = recomputed(self.checkpointing, self._gated, self.mlp2, h, shift2, scale2)
        out: Tensor = self.linear_final(modulate(h + tokens, shift3, scale3))
        return out

    def _gated(self, mlp: GatedMLP, h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        out: Tensor = mlp(modulate(self._norm(h), shift, scale))
        return out


class LocalBranch(nn.Module):
    """The `coarse.*` keys of a checkpoint: a `TokenDenoiser` under the name `mlp_denoise`.

    Args:
        config: shape of the network it belongs to.
        checkpointing: see `TokenDenoiser`.
    """

    def __init__(self, config: ModelConfig, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.mlp_denoise = TokenDenoiser(
            config.token_width,
            config.output_width,
            norm=modulation_norm(config.arithmetic, config.norm),
            normalized_modulation=config.arithmetic == "tf",
            checkpointing=checkpointing,
        )

    def modulation(self, condition: Tensor) -> Tensor:
        """See `TokenDenoiser.modulation`."""
        return self.mlp_denoise.modulation(condition)

    def forward(self, tokens: Tensor, modulation: Tensor) -> Tensor:
        """See `TokenDenoiser.forward`."""
        out: Tensor = self.mlp_denoise(tokens, modulation)
        return out
