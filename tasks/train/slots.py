"""Memory for batches that worker processes fill and the training reads: allocated once, and no share of /dev/shm, which containers
keep small.
"""

import math
import mmap
from collections.abc import Mapping

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes, of each tensor
Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class Slots:
    """A ring of places for batches of one layout, in memory that processes forked later share.

    Args:
        number: of places; batch n lies where batch n - number lay.
        layout: shape and type of each tensor of a batch, by name.
    """

    def __init__(self, number: int, layout: Layout) -> None:
        self._number = number
        self._layout = layout
        self._offsets: dict[str, int] = {}
        self._nbytes = 0
        for name, (shape, dtype) in layout.items():
            self._offsets[name] = self._nbytes
            self._nbytes += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        self._map = mmap.mmap(-1, number * self._nbytes)

    def views(self, batch: int) -> dict[str, Tensor]:
        """The tensors of a batch in their place, not copied."""
        first = (batch % self._number) * self._nbytes
        return {
            name: torch.frombuffer(
                self._map, dtype=dtype, count=math.prod(shape), offset=first + self._offsets[name]
            ).view(shape)
            for name, (shape, dtype) in self._layout.items()
        }

    def copies(self, batch: int, pin: bool) -> dict[str, Tensor]:
        """The tensors of a batch in memory of their own, page-locked where `pin`."""
        views = self.views(batch)
        return {n: torch.empty(view.shape, dtype=view.dtype, pin_memory=pin).copy_(view) for n, view in views.items()}
