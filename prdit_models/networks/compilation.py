"""`torch.compile` for a training, or the uncompiled network where compiling fails."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger("prdit.models.compilation")


class CompiledNetwork:
    """Calls a network compiled, or uncompiled once compiling has failed; the module, its keys and its hooks stay unchanged.

    It compiles at its first call, in that call's shapes, precision and gradient mode. If that fails, one warning says why.
    Compiled code reads parameters where they are at each call, so weights may be updated in place and `parameter.data` swapped.

    Attributes:
        network: the module.
        failure: why calls are not compiled, None while they are (or nothing was called yet).
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.failure: str | None = None
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """The network's output; the first call compiles, for the forward and (with gradients on) the backward pass."""
        if self._compiled is None and self.failure is None:
            self._compile(inputs, options)
        call = self.network if self._compiled is None else self._compiled
        return call(*inputs, **options)

    def __getattr__(self, name: str) -> Any:
        """Other attributes of the module (of one with several networks, those networks); not compiled."""
        if name.startswith("_") or name == "network":
            raise AttributeError(name)
        return getattr(self.network, name)

    def _compile(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Compile with the inputs of a first call; a backward pass that fails must fail here, not in the loss of a training."""
        try:
            compiled: Callable[..., Any] = torch.compile(self.network)
            outputs = [out for out in _tensors(compiled(*inputs, **options)) if out.requires_grad]
            trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
            if outputs:
                total = torch.stack([out.float().sum() for out in outputs]).sum()
                torch.autograd.grad(total, trained, allow_unused=True)
        except Exception as error:  # noqa: BLE001 (no C++ compiler, no Triton, code it cannot trace: anything)
            self.failure = _reason(error)
            logger.warning(
                "torch.compile failed, the network runs without it (same values, slower). Reason: %s", self.failure
            )
            return
        logger.info("torch.compile: network compiled")
        self._compiled = compiled


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of an output: one, or a tuple of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)


def _reason(error: Exception) -> str:
    """The class of an error and the first line of its message; compilers print pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
