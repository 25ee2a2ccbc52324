"""Linear layers: PyTorch's own, and on AMD processors with AVX-512 the same product as a convolution, twice as fast.

PyTorch gives linear layers in float32 to MKL, which uses no AVX-512 on AMD processors, and convolutions to oneDNN, which does
(docs/decisions/0004-linear-as-convolution.md).
"""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prdit_models.processor import processor

NUM_IMAGES = (
    16  # from this number on, PyTorch gives 1x1 convolutions to oneDNN whatever their size and the number of threads
)


@functools.cache
def convolution_is_faster() -> bool:
    """Whether this is an AMD processor with AVX-512 and a build of PyTorch with oneDNN."""
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return has_avx512 and "AuthenticAMD" in processor() and torch.backends.mkldnn.is_available()


class Linear(nn.Linear):
    """`torch.nn.Linear` for tokens; same parameters, same keys, values equal to float rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        return _convolved(input, self.weight, self.bias) if _convolves(input) else super().forward(input)


def _convolves(x: Tensor) -> bool:
    """Whether to convolve, independent of the batch size, so that a volume's values do not depend on the rest of its batch."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.dim() == 3
        and x.shape[1] % NUM_IMAGES == 0
        and not torch.is_autocast_enabled("cpu")
        and convolution_is_faster()
    )


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Tokens (B, N, in) as `NUM_IMAGES` images, one pixel per token, through a 1x1 convolution; nothing is copied."""
    images = x.reshape(NUM_IMAGES, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    out = F.conv2d(images, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class FullPrecisionLinear(nn.Linear):
    """A linear layer without autocast, for the few rows that every token depends on: time and modulations.

    Rounding them would shift all tokens in the same way, and casting their weights would take longer than the product.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (…, in) to (…, out) in the weights' precision."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))
