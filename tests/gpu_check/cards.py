"""How fast a card multiplies: the rate its library reaches in a large product."""

import torch

from tests.gpu_check.setting import Setting

_EDGE = 8192
_TINY_EDGE = 256
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def device_name(setting: Setting) -> str:
    """Of the card, or `cpu`."""
    return torch.cuda.get_device_name(setting.device) if setting.is_cuda else "cpu"


def matmul_tflops(setting: Setting, precision: str) -> float:
    """What the device reaches in the product of two large square matrices."""
    edge = _EDGE if setting.is_cuda else _TINY_EDGE
    a, b = (torch.randn(edge, edge, device=setting.device).to(DTYPES[precision]) for _ in range(2))
    for _ in range(2):  # a card that was idle needs a while to reach its clock
        seconds = setting.seconds(lambda: a @ b, repeats=10)
    return 2.0 * edge**3 / seconds / 1e12
