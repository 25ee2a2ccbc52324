"""The global refiner: a transformer over all tokens that predicts the residual of the local estimate."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prdit_models.networks.attention import Attention
from prdit_models.networks.config import ModelConfig
from prdit_models.networks.embeddings import RotaryTable, position_table, rotary_table
from prdit_models.networks.linear import FullPrecisionLinear, Linear
from prdit_models.networks.local import Norm, modulate, modulation_norm, plain_norm, recomputed, rms_norm
from prdit_models.networks.patches import extract_patches

MLP_RATIO = 4  # of the transformer's feed-forward and of the token embedder


class PatchEmbedder(nn.Module):
    """Two-layer embedding of raw tokens with a linear skip, then a layer norm (SPEC §1.5.1)."""

    def __init__(self, token_width: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = Linear(token_width, MLP_RATIO * hidden_size)
        self.fc2 = Linear(MLP_RATIO * hidden_size, hidden_size)
        self.skip = Linear(token_width, hidden_size, bias=False)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed (B, N, d) as (B, N, H)."""
        h = F.gelu(self.fc1(tokens), approximate="tanh")
        out: Tensor = self.norm(self.fc2(h) + self.skip(tokens))
        return out


class MaskEmbedder(nn.Module):
    """A linear embedding of the cells of a coarse mask in each token: further input channels of the token embedder.

    Weights are 0 at first, without a draw: a network with one starts as, and computes what, the network without it does. It has no
    bias, so that a mask of zeros adds nothing.

    Args:
        config: of the network, with a mask.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._grid_size = config.grid_size
        self.weight = nn.Parameter(torch.zeros(config.hidden_size, config.mask_width))

    def forward(self, mask: Tensor) -> Tensor:
        """Embed shares of cells (B, M, s, s, s) as (B, N, H)."""
        cells = mask.shape[-1]
        for axis in (2, 3, 4):  # where a cell has several tokens
            mask = mask.repeat_interleave(max(1, self._grid_size // cells), axis)
        each = mask.shape[-1] // self._grid_size
        return F.linear(extract_patches(mask, each, each, 0), self.weight)


class FeedForward(nn.Module):
    """Linear, tanh-approximated GELU, linear, at four times the width."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = Linear(hidden_size, MLP_RATIO * hidden_size)
        self.fc2 = Linear(MLP_RATIO * hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, H) to the same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """One transformer block with time-dependent shifts, scales and gates (adaLN; SPEC §1.5.3)."""

    def __init__(self, config: ModelConfig, attention: str, checkpointing: bool) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.checkpointing = checkpointing
        self.attn = Attention(hidden, config.num_heads, attention, qk_norm=config.qk_norm)
        self.mlp = FeedForward(hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), FullPrecisionLinear(hidden, 6 * hidden))
        self._norm: Norm = modulation_norm(config.arithmetic, config.norm)
        self._normalized_modulation = config.arithmetic == "tf"

    def modulation(self, condition: Tensor) -> Tensor:
        """Shifts, scales and gates for a condition (B or 1, H): shape (B or 1, 1, 6H)."""
        out: Tensor = self.adaLN_modulation(condition)[:, None]
        return rms_norm(out) if self._normalized_modulation else out

    def forward(self, h: Tensor, modulation: Tensor, rotary: RotaryTable | None = None) -> Tensor:
        """Refine h (B, N, H) under a `modulation`: same shape.

        Each half is checkpointed on its own: that keeps one more h, which is less than the activations of the other half.
        """
        h = recomputed(self.checkpointing, self.mix, h, modulation, rotary)
        return recomputed(self.checkpointing, self.feed_forward, h, modulation)

    def mix(self, h: Tensor, modulation: Tensor, rotary: RotaryTable | None = None) -> Tensor:
        """The first half of `forward`: attention."""
        shift, scale, gate = modulation.chunk(6, dim=-1)[:3]
        return torch.addcmul(h, gate, self.attn(modulate(self._norm(h), shift, scale), rotary))

    def feed_forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        """The second half: each token alone."""
        shift, scale, gate = modulation.chunk(6, dim=-1)[3:]
        return torch.addcmul(h, gate, self.mlp(modulate(self._norm(h), shift, scale)))


class FinalLayer(nn.Module):
    """Modulated read-out of the refined tokens (SPEC §1.5.4); a layer norm in every variant."""

    def __init__(self, hidden_size: int, output_width: int) -> None:
        super().__init__()
        self.linear = Linear(hidden_size, output_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), FullPrecisionLinear(hidden_size, 2 * hidden_size))

    def modulation(self, condition: Tensor) -> Tensor:
        """Shift and scale for a condition (B or 1, H): shape (B or 1, 1, 2H)."""
        out: Tensor = self.adaLN_modulation(condition)[:, None]
        return out

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        """Read (B, N, H) out as (B, N, s³·O)."""
        shift, scale = modulation.chunk(2, dim=-1)
        out: Tensor = self.linear(modulate(plain_norm(h), shift, scale))
        return out


class Refiner(nn.Module):
    """The `fine.*` keys of a checkpoint: embedder, positions, blocks, read-out.

    Positions depend on the volume size but have no parameters and are not stored, so the weights of one volume size load at
    another.

    Args:
        config: shape of the network.
        attention: backend, see `prdit_models.networks.attention.BACKENDS`.
        checkpointing: recompute each half of a block in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: ModelConfig, attention: str, checkpointing: bool) -> None:
        super().__init__()
        self.patch_embedder = PatchEmbedder(config.token_width, config.hidden_size)
        self.mask_embedder = MaskEmbedder(config) if config.mask_channels else None
        self.blocks = nn.ModuleList(Block(config, attention, checkpointing) for _ in range(config.depth))
        self.final_layer = FinalLayer(config.hidden_size, config.output_width)
        self.checkpointing = checkpointing
        self.pos_embed: Tensor | None
        self.rotary_cos: Tensor | None
        self.rotary_sin: Tensor | None
        table = cos = sin = None
        if config.position == "table":
            table = position_table(config.grid_size, config.hidden_size)
        elif config.voxel_mm is not None:  # ModelConfig refuses rotary without it
            head_width = config.hidden_size // config.num_heads
            cos, sin = rotary_table(config.grid_size, config.stride * config.voxel_mm, head_width)
        self.register_buffer("pos_embed", table, persistent=False)
        self.register_buffer("rotary_cos", cos, persistent=False)
        self.register_buffer("rotary_sin", sin, persistent=False)

    def modulations(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Of every block, then of the read-out, for a condition (B or 1, H)."""
        modules = [*self.blocks, self.final_layer]
        return tuple(module.modulation(condition) for module in modules)

    def forward(self, tokens: Tensor, modulations: tuple[Tensor, ...], mask: Tensor | None = None) -> Tensor:
        """Residual prediction for raw tokens (B, N, d) under `modulations`: shape (B, N, s³·O).

        Args:
            tokens: of the noisy volume.
            modulations: see `modulations`.
            mask: shares of cells, see `ModelConfig.mask_cell`; None: none given.
        """
        h = recomputed(self.checkpointing, self._embed, tokens, mask)
        rotary = None
        if self.rotary_cos is not None and self.rotary_sin is not None:
            rotary = (self.rotary_cos, self.rotary_sin)
        for block, modulation in zip(self.blocks, modulations[:-1], strict=True):
            h = block(h, modulation, rotary)
        out: Tensor = self.final_layer(h, modulations[-1])
        return out

    def _embed(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        h: Tensor = self.patch_embedder(tokens)
        if mask is not None and self.mask_embedder is not None:
            h = h + self.mask_embedder(mask)
        return h if self.pos_embed is None else h + self.pos_embed
