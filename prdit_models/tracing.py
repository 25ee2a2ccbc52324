"""What a computation would keep in memory, found by running it on the meta device, where tensors have shapes and no values."""

import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICES = ("cpu", "cuda")
_IS_CUDA, _DEVICE = torch.Tensor.is_cuda.__get__, torch.Tensor.device.__get__  # type: ignore[attr-defined]
_KEPT_IN_FLOAT32 = (F.layer_norm, F.rms_norm)  # by CUDA's autocast; the CPU's leaves norms in the type of their input


class MemoryTrace(TorchDispatchMode):
    """Counts the bytes of all tensors alive, and their peak, while it is active. Views count once, with their storage.

    Works on any device. What an operation allocates and frees within itself is not seen.

    Attributes:
        live_bytes: of the tensors alive now.
        peak_bytes: the largest `live_bytes` so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: set[int] = set()

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made before, such as a network's weights."""
        for tensor in tensors:
            self._count(tensor)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self._count(leaf)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live_bytes -= size


class PretendDevice(TorchFunctionMode):
    """Lets meta tensors take the paths of a real device: its attention kernel, its autocast, and saying that they are on it.

    The last two only inside `pretending`, around modules: PyTorch's own code must know what they are. Attention becomes the fused
    kernel, which keeps no (N, N) matrix. PyTorch's autocast passes meta tensors by, so its rules for what a PRDiT is made of are
    applied here: linear layers and attention in bfloat16, norms in float32 on CUDA.

    Args:
        device: `cpu` or `cuda`.
        bf16: as under `torch.autocast(device, torch.bfloat16)`.
        fused_attention: False leaves attention in its single products, which counters of operations know.
    Raises: ValueError: for another device.
    """

    def __init__(self, device: str, *, bf16: bool = False, fused_attention: bool = True) -> None:
        super().__init__()
        if device not in DEVICES:
            raise ValueError(f"device is {device!r}; expected one of {list(DEVICES)}.")
        self._device = torch.device(device)
        self._bf16 = bf16
        self._fused_attention = fused_attention
        self._pretends = False
        self._casts: dict[int, Tensor] | None = None

    @contextmanager
    def region(self) -> Iterator[None]:
        """What leaving an autocast region ends: to its end, one low-precision copy of every trained weight is kept."""
        self._casts = {}
        try:
            yield
        finally:
            self._casts = None

    @contextmanager
    def pretending(self, pretends: bool = True, *, full_precision: bool = False) -> Iterator[None]:
        """Inside, autocast is on and tensors say that they are on the device, or again that they are meta tensors.

        Args:
            pretends: what tensors say.
            full_precision: switch autocast off.
        """
        kind = self._device.type
        before = self._pretends, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        self._pretends = pretends
        torch.set_autocast_enabled(
            kind, self._bf16 and not full_precision
        )  # torch.autocast("cuda") refuses without a GPU
        torch.set_autocast_dtype(kind, torch.bfloat16)
        try:
            yield
        finally:
            self._pretends = before[0]
            torch.set_autocast_enabled(kind, before[1])
            torch.set_autocast_dtype(kind, before[2])

    def backward(self, loss: Tensor) -> None:
        """`loss.backward()` with the mode active in what is recomputed, which `Tensor.backward` itself would switch off."""
        one = torch.ones((), dtype=loss.dtype, device="meta")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="CUDA is not available")
            torch.autograd.backward(torch.autograd.graph.get_gradient_edge(loss), one)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function == _IS_CUDA:
            return self._device.type == "cuda" and args[0].is_meta
        if function == _DEVICE:
            return self._device if self._pretends and args[0].is_meta else args[0].device
        args = tuple(self._placed(value) for value in args)
        named = {key: self._placed(value) for key, value in (kwargs or {}).items()}
        if function is F.scaled_dot_product_attention and self._fused_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*self._cast_all(args), **named)[0]
        if function is F.linear:
            return function(*self._cast_all(args), **named)
        if function in _KEPT_IN_FLOAT32 and self._device.type == "cuda" and torch.is_autocast_enabled("cuda"):
            return function(args[0].float(), *args[1:], **named)
        return function(*args, **named)

    def _placed(self, value: Any) -> Any:
        """The meta device where the pretended one was asked for."""
        return torch.device("meta") if isinstance(value, torch.device) and value == self._device else value

    def _cast_all(self, values: Iterable[Any]) -> list[Any]:
        casts = torch.is_autocast_enabled(self._device.type)
        return [self._cast(value) if casts and isinstance(value, Tensor) else value for value in values]

    def _cast(self, value: Tensor) -> Tensor:
        if value.dtype == torch.bfloat16:
            return value
        if self._casts is None or not (value.requires_grad and value.is_leaf and torch.is_grad_enabled()):
            return value.to(torch.bfloat16)
        if id(value) not in self._casts:
            self._casts[id(value)] = value.to(torch.bfloat16)
        return self._casts[id(value)]
