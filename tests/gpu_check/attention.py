"""Attention by every available kernel, as the model calls it, against float64 on the CPU.

Queries, keys and values are views of one projection, as in the model, not contiguous tensors. The reference takes the rounded
inputs, so that errors are the kernel's own.
"""

import importlib.util
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from prdit_models.networks.attention import attend
from tests.gpu_check.cards import DTYPES
from tests.gpu_check.report import Row, compared, skipped
from tests.gpu_check.setting import Setting, relative_error

HEADS, HEAD_WIDTH = 12, 64  # of B
TOKENS = {"64³": 512, "128³": 4096}
_TINY_HEADS, _TINY_TOKENS = 2, {"tiny": 96}
_ROWS = 64  # queries whose reference is computed: rows of attention do not depend on each other

# Of the largest reference value. fp32: sums of exponentials are off by about 1e-6; kernels that multiply in three TF32 pieces by
# about 1e-5, plain TF32 by 5e-4. bf16: scores, weights and result are rounded (0.4 % each); a CPU is off by up to 1.5 %.
LIMITS = {"fp32": 5e-5, "bf16": 0.04}

KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
MUST_WORK = ("product auto", "product sdpa", "product plain")  # on any device; a kernel asked for by name may not exist
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def rows(setting: Setting) -> Iterator[Row]:
    """Values, gradients and time of each kernel, in each precision, for each number of tokens."""
    heads, lengths = (_TINY_HEADS, _TINY_TOKENS) if setting.tiny else (HEADS, TOKENS)
    for label, tokens in lengths.items():
        for precision in setting.precisions:
            qkv = _projection(tokens, heads).to(DTYPES[precision])
            exact = _reference(qkv)
            for name, kernel in _kernels().items():
                if setting.out_of_time:
                    yield skipped(f"{name}, {precision}, {label}", "budget")
                    continue
                yield _row(setting, f"{name}, {precision}, {label}", kernel, qkv, exact, precision)


def _kernels() -> dict[str, Attend]:
    """By name: each SDPA kernel alone, and the product's backends."""

    def alone(backend: SDPBackend) -> Attend:
        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return attend(q, k, v, "sdpa")

        return call

    def by(backend: str) -> Attend:
        return lambda q, k, v: attend(q, k, v, backend)

    found = {f"sdpa {name}": alone(backend) for name, backend in KERNELS.items()}
    product = ["auto", "sdpa", "plain", *(["xformers"] if importlib.util.find_spec("xformers") is not None else [])]
    return found | {f"product {name}": by(name) for name in product}


def _projection(tokens: int, heads: int) -> Tensor:
    """Output of the qkv layer for one volume, shape (1, N, 3, heads, D), float32 on the CPU."""
    return torch.randn(1, tokens, 3, heads, HEAD_WIDTH, generator=torch.Generator().manual_seed(tokens))


def _weight(shape: torch.Size) -> Tensor:
    """What the outputs are summed with for a scalar whose gradients are compared."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _reference(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of the first rows, and the gradient of their weighted sum by the projection; float64, CPU."""
    given = qkv.double().requires_grad_()
    q, k, v = given.unbind(2)
    scores = torch.einsum("bnhd,bmhd->bhnm", q[:, :_ROWS], k) * HEAD_WIDTH**-0.5
    out = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)
    (gradient,) = torch.autograd.grad((out * _weight(out.shape)).sum(), given)
    return out.detach(), gradient


def _row(setting: Setting, what: str, kernel: Attend, qkv: Tensor, exact: tuple[Tensor, Tensor], precision: str) -> Row:
    """One kernel, or why there is none."""
    given = qkv.to(setting.device).requires_grad_()
    weight = torch.zeros(given[:, :, 0].shape, dtype=torch.float64)
    weight[:, :_ROWS] = _weight(exact[0].shape)
    weight = weight.to(setting.device, given.dtype)

    def forward() -> Tensor:
        return kernel(*given.unbind(2))

    def forward_and_backward() -> Tensor:
        (gradient,) = torch.autograd.grad((forward() * weight).sum(), given)
        return gradient

    try:
        with torch.no_grad():
            found = forward()
        gradient = forward_and_backward()
    except RuntimeError as error:  # NotImplementedError among them
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0].split('. ')[0]}"
        if what.startswith(MUST_WORK) or isinstance(error, torch.OutOfMemoryError):
            return Row(what, "failed", note=reason)
        return skipped(what, f"no such kernel here: {reason}")
    errors = {"forward": relative_error(found[:, :_ROWS], exact[0]), "gradients": relative_error(gradient, exact[1])}
    with torch.no_grad():
        forward_s = setting.seconds(forward)
    return compared(
        what,
        max(errors.values()),
        LIMITS[precision],
        forward_error=errors["forward"],
        gradient_error=errors["gradients"],
        forward_ms=1e3 * forward_s,
        forward_backward_ms=1e3 * setting.seconds(forward_and_backward),
    )
