"""Self-attention over all tokens; the only module that uses xformers.

Backends compute the same softmax(q·kᵀ/√D)·v:

* `sdpa`: `torch.nn.functional.scaled_dot_product_attention`, layout (B, heads, N, D);
* `xformers`: `memory_efficient_attention`, layout (B, N, heads, D), CUDA tensors only;
* `plain`: a softmax that materialises the (B, heads, N, N) matrix, the reference;
* `published-flash`: q, k, v rounded to bfloat16, result back in the input's dtype (SPEC §1.5: what every shipped
  configuration did; it moves the model's output by up to 1.4e-3);
* `auto`: xformers for CUDA tensors where it is installed and has kernels for them, else SDPA; compiled code takes SDPA, which can
  be traced completely, and bfloat16 on a CPU without gradient is computed by rows (`_attend_by_rows`).
"""

import functools
import importlib
import importlib.util
import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prdit_models.networks.embeddings import RotaryTable, rotate
from prdit_models.networks.linear import Linear
from prdit_models.processor import processor

logger = logging.getLogger("prdit.models.attention")

QK_NORM_EPS = 1e-6
ROWS_AT_A_TIME = 512  # queries of a head whose scores stay in the cache, see `_attend_by_rows`
MIN_TOKENS_BY_ROWS = 1024  # with 512 it gains little, with 64 it loses
BACKENDS = ("auto", "sdpa", "xformers", "plain", "published-flash")


def is_accelerated(x: Tensor) -> bool:
    """Whether xformers has kernels for this tensor: it is on a CUDA device."""
    return x.is_cuda


def xformers_operations() -> Any:
    """The module `xformers.ops`, imported on first use (3 s)."""
    return importlib.import_module("xformers.ops")


@functools.cache
def choose_backend(requested: str, accelerated: bool) -> str:
    """Resolve a requested backend once per kind of device, and log the choice.

    Raises:
        ValueError: for an unknown name.
        RuntimeError: if xformers is asked for by name where it cannot run.
    """
    if requested not in BACKENDS:
        raise ValueError(f"Unknown attention backend {requested!r}; expected one of {list(BACKENDS)}.")
    chosen = requested
    if requested == "auto":
        chosen = "xformers" if accelerated and importlib.util.find_spec("xformers") is not None else "sdpa"
    if chosen == "xformers" and not accelerated:
        raise RuntimeError("Attention backend 'xformers' has CUDA kernels only, got CPU tensors; use 'auto' or 'sdpa'.")
    logger.info("attention backend: %s (requested %s)", chosen, requested)
    return chosen


@functools.cache
def xformers_serves(dtype: torch.dtype, head_width: int, device: torch.device) -> bool:
    """Whether xformers has forward and backward kernels for heads of this dtype and width, found by one small trial of both.

    It has none for float32 above compute capability 9.0, nor for widths its kernels cannot align, and says so only when called.
    """
    try:
        with torch.enable_grad():
            tokens = torch.zeros(1, 8, 1, head_width, dtype=dtype, device=device, requires_grad=True)
            torch.autograd.grad(xformers_operations().memory_efficient_attention(tokens, tokens, tokens).sum(), tokens)
    except Exception as error:  # noqa: BLE001 (no kernel, built for another torch, no driver for it: anything)
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        logger.warning(
            "xformers cannot serve %s heads of width %d on %s, SDPA does. Reason: %s: %s",
            *(dtype, head_width, device, type(error).__name__, reason),
        )
        return False
    return True


def _known_backend(requested: str, accelerated: bool) -> str:
    """`choose_backend` as a constant of compiled code."""
    return choose_backend(requested, accelerated)


# All that `torch.compiler.assume_constant_result` does; to use it is to import torch's compiler, 1.5 s of every process.
_known_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def attend(q: Tensor, k: Tensor, v: Tensor, backend: str = "auto") -> Tensor:
    """Scaled dot-product attention without mask or dropout.

    Args:
        q: queries, shape (B, N, heads, D); taken in the dtype of v (norms may leave queries and keys in another).
        k: keys, likewise.
        v: values, same shape.
        backend: one of `BACKENDS`.
    Returns: shape (B, N, heads, D), dtype of v.
    Source: SPEC §1.5.
    """
    automatic = backend == "auto"
    if automatic and torch.compiler.is_compiling():
        backend = "sdpa"
    chosen = _known_backend(backend, is_accelerated(v))
    if automatic and chosen == "xformers" and not xformers_serves(v.dtype, v.shape[-1], v.device):
        chosen = "sdpa"
    q, k = q.to(v.dtype), k.to(v.dtype)
    if chosen == "xformers":
        out: Tensor = xformers_operations().memory_efficient_attention(q, k, v)
        return out
    dtype = v.dtype
    if chosen == "published-flash":
        q, k, v = (part.to(torch.bfloat16) for part in (q, k, v))
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    if chosen == "plain":
        weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
        mixed = weights.to(dtype) @ v
    elif automatic and chosen == "sdpa" and _rows_are_faster(v):
        mixed = _attend_by_rows(q, k, v)
    else:
        mixed = F.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(1, 2).to(dtype)


def _rows_are_faster(v: Tensor) -> bool:
    """Whether `_attend_by_rows` may take the place of PyTorch's kernel: 1.7 times as fast a forward pass at 4096 tokens."""
    kept = torch.is_grad_enabled() or torch.compiler.is_compiling()
    fits = v.device.type == "cpu" and v.dtype == torch.bfloat16 and v.shape[-2] >= MIN_TOKENS_BY_ROWS
    return fits and not kept and "avx512_bf16" in processor()


def _attend_by_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention (B, heads, N, D) in bfloat16 by products of some rows of one head, scores not kept.

    PyTorch's fused CPU kernel is no faster in bfloat16 than in float32; plain products are, by three quarters at 4096 tokens.
    Scores are rounded to bfloat16, so they are kept small: the mean key, which adds the same to all scores of a query and
    cancels in the softmax, is subtracted first. The softmax itself works in float32.
    """
    scale = q.shape[-1] ** -0.5
    centred = (k.float() - k.float().mean(-2, keepdim=True)).mul_(scale).to(k.dtype)
    out = torch.empty_like(v.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
    for sample in range(q.shape[0]):
        for head in range(q.shape[1]):
            keys, values = centred[sample, head].t(), v[sample, head].contiguous()
            for start in range(0, q.shape[2], ROWS_AT_A_TIME):
                rows = slice(start, start + ROWS_AT_A_TIME)
                scores = q[sample, head, rows] @ keys
                out[sample, head, rows] = torch.softmax(scores, dim=-1) @ values
    return out


class Attention(nn.Module):
    """Multi-head self-attention with one qkv projection (index order: q/k/v, head, head dimension).

    Args:
        hidden_size: H.
        num_heads: heads, a divisor of H.
        backend: one of `BACKENDS`.
        qk_norm: RMS norm with learned scale on the queries and keys of every head.
    Source: SPEC §1.5.
    """

    def __init__(self, hidden_size: int, num_heads: int, backend: str = "auto", *, qk_norm: bool = False) -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise ValueError(f"Unknown attention backend {backend!r}; expected one of {list(BACKENDS)}.")
        self.num_heads = num_heads
        self.backend = backend
        self.qkv = Linear(hidden_size, 3 * hidden_size)
        self.proj = Linear(hidden_size, hidden_size)
        self.q_norm = nn.RMSNorm(hidden_size // num_heads, eps=QK_NORM_EPS) if qk_norm else None
        self.k_norm = nn.RMSNorm(hidden_size // num_heads, eps=QK_NORM_EPS) if qk_norm else None

    def forward(self, x: Tensor, rotary: RotaryTable | None = None) -> Tensor:
        """Mix tokens (B, N, H) with each other: same shape; with `rotary`, queries and keys are rotated by position."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1).unbind(2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        out: Tensor = self.proj(attend(q, k, v, self.backend).reshape(batch, tokens, width))
        return out
