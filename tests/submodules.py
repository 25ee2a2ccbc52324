"""Outputs of a network's parts, by hooks."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from prdit_models.networks.patches import unpatchify
from prdit_models.networks.prdit import PRDiT


@contextmanager
def outputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Outputs of submodules while the block runs, by name."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            outputs[name] = output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def branches(model: PRDiT, *inputs: Any) -> tuple[Tensor, Tensor | None]:
    """The volumes (B, O, S, S, S) of the two branches; no fine one at depth 0."""
    parts: dict[str, nn.Module] = {"coarse": model.coarse} | ({} if model.fine is None else {"fine": model.fine})
    with outputs_of(parts) as found:
        model(*inputs)
    config = model.config
    volumes = {
        name: unpatchify(tokens, config.out_channels, config.stride, config.volume_size)
        for name, tokens in found.items()
    }
    return volumes["coarse"], volumes.get("fine")


def hidden_tokens(model: PRDiT, x: Tensor, t: Any, block: int) -> Tensor:
    """Tokens (B, N, H) behind one transformer block."""
    assert model.fine is not None
    with outputs_of({"block": model.fine.blocks[block]}) as found:
        model(x, t)
    return found["block"]
