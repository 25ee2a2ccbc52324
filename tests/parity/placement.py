"""Where a comparison's product computes: references stay on the CPU, what the product is given goes to the device in force."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor, nn

Placed = TypeVar("Placed", Tensor, nn.Module)

_DEVICE: ContextVar[torch.device] = ContextVar("device")


@contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """Inside, `placed` puts tensors and networks on this device."""
    token = _DEVICE.set(device)
    try:
        yield
    finally:
        _DEVICE.reset(token)


def device_in_force() -> torch.device:
    return _DEVICE.get(torch.device("cpu"))


def placed(value: Placed, dtype: torch.dtype | None = None) -> Placed:
    """The tensor or network on the device in force, in another dtype if asked."""
    return value.to(device=device_in_force(), dtype=dtype)
