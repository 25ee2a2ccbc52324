"""The global refiner: a transformer over all tokens that predicts the residual of the local estimate."""

from torch import Tensor, nn
from torch.nn import functional as F

from prdit_models.attention import Attention
from prdit_models.config import ModelConfig
from prdit_models.embeddings import position_table
from prdit_models.local import modulate, plain_norm

MLP_RATIO = 4  # of the transformer's feed-forward and of the token embedder


class PatchEmbedder(nn.Module):
    """Two-layer embedding of raw tokens with a linear skip, then a layer norm (SPEC §1.5.1)."""

    def __init__(self, token_width: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(token_width, MLP_RATIO * hidden_size)
        self.fc2 = nn.Linear(MLP_RATIO * hidden_size, hidden_size)
        self.skip = nn.Linear(token_width, hidden_size, bias=False)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed (B, N, d) as (B, N, H)."""
        out: Tensor = self.norm(self.fc2(F.gelu(self.fc1(tokens), approximate="tanh")) + self.skip(tokens))
        return out


class FeedForward(nn.Module):
    """Linear, tanh-approximated GELU, linear, at four times the width."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, MLP_RATIO * hidden_size)
        self.fc2 = nn.Linear(MLP_RATIO * hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, H) to the same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """One transformer block with time-dependent shifts, scales and gates (adaLN; SPEC §1.5.3)."""

    def __init__(self, hidden_size: int, num_heads: int, attention: str) -> None:
        super().__init__()
        self.attn = Attention(hidden_size, num_heads, attention)
        self.mlp = FeedForward(hidden_size)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Refine h (B, N, H) under condition (B or 1, H): same shape."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        h = h + gate_a * self.attn(modulate(plain_norm(h), shift_a, scale_a))
        return h + gate_m * self.mlp(modulate(plain_norm(h), shift_m, scale_m))


class FinalLayer(nn.Module):
    """Modulated read-out of the refined tokens (SPEC §1.5.4)."""

    def __init__(self, hidden_size: int, output_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, output_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Read (B, N, H) out as (B, N, s³·O)."""
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        out: Tensor = self.linear(modulate(plain_norm(h), shift, scale))
        return out


class Refiner(nn.Module):
    """The `fine.*` keys of a checkpoint: embedder, position table, blocks, read-out.

    The position table depends on the volume size but has no parameters and is not stored, so the weights of one volume
    size load at another.
    """

    def __init__(self, config: ModelConfig, attention: str) -> None:
        super().__init__()
        self.patch_embedder = PatchEmbedder(config.token_width, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config.hidden_size, config.num_heads, attention) for _ in range(config.depth))
        self.final_layer = FinalLayer(config.hidden_size, config.output_width)
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", position_table(config.grid_size, config.hidden_size), persistent=False)

    def features(self, tokens: Tensor, condition: Tensor, num_blocks: int | None = None) -> Tensor:
        """Hidden tokens (B, N, H) after the first `num_blocks` blocks (all by default)."""
        h = self.patch_embedder(tokens) + self.pos_embed
        for block in self.blocks[:num_blocks]:
            h = block(h, condition)
        return h

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Residual prediction for raw tokens (B, N, d) under condition (B or 1, H): shape (B, N, s³·O)."""
        out: Tensor = self.final_layer(self.features(tokens, condition), condition)
        return out
