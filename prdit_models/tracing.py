"""Bytes of tensors alive during a computation, on any device, fake tensors among them."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, strided
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryTrace(TorchDispatchMode):
    """Counts the bytes of all tensors alive while it is active. Views count once, with their storage.

    What an operation allocates and frees within itself is not seen.

    Attributes:
        live_bytes: of the tensors alive now.
        timeline: `live_bytes` after each operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.timeline: list[int] = []
        self._known: set[int] = set()

    @property
    def peak_bytes(self) -> int:
        """The largest `live_bytes` so far."""
        return max(self.timeline, default=self.live_bytes)

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made before, such as a network's weights."""
        for tensor in tensors:
            self._count(tensor)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.layout is strided:
                self._count(leaf)
        self.timeline.append(self.live_bytes)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.live_bytes += size
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live_bytes -= size
