"""Published initial weights, and the start of stage 2 from a stage-1 checkpoint."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prdit_models.networks.weights import check_weights

if TYPE_CHECKING:  # prdit.py initialises itself at construction, so this module may not import it at run time
    from prdit_models.networks.prdit import PRDiT

TIME_STD = 0.02
SKIP_GAIN = 0.1
GLOBAL_START_GAIN = 0.1
_ZERO_SUFFIXES = ("adaLN_modulation.1", "mlp_denoise.linear_final", "final_layer.linear", "value_embedder.2")


@torch.no_grad()
def initialize(model: nn.Module, gain: float) -> None:
    """Draw a network's published initial weights, in place.

    Linear weights are Xavier uniform with `gain` (the embedder's skip always 0.1), the time layers normal with std 0.02, biases
    0, modulations, read-outs and the last layer of the embedder of conditions 0: the output of both branches is exactly 0.

    Args:
        model: a PRDiT, or any network with its key names.
        gain: 1 at construction; 0.1 when stage 2 starts from a stage-1 checkpoint.
    Source: SPEC §1.8.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=TIME_STD)
        if not isinstance(module, nn.Linear):
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        if name.endswith(_ZERO_SUFFIXES):
            nn.init.zeros_(module.weight)
        elif name.startswith("t_embedder."):
            nn.init.normal_(module.weight, std=TIME_STD)
        else:
            is_skip = name.endswith("patch_embedder.skip")
            nn.init.xavier_uniform_(module.weight, gain=SKIP_GAIN if is_skip else gain)


def start_global(model: "PRDiT", local_state_dict: Mapping[str, Tensor]) -> None:
    """Turn a fresh depth > 0 model into the start of stage 2: initialise at gain 0.1, then load the local branch, frozen.

    Args:
        model: the network to be trained in stage 2.
        local_state_dict: weights of a depth-0 model of the same patches and widths.
    Raises: ValueError: if the model has no refiner, keys are missing, extra or misshapen, or values not finite (all are
        listed; the model is left unchanged).
    Source: SPEC §1.8, §4.
    """
    if model.config.depth == 0:
        raise ValueError("start_global needs a model with depth > 0, got depth 0: that is stage 1 itself.")
    expected = model.local_state_dict()
    remedy = "Use a depth-0 checkpoint trained with the same patch size, stride, hidden size and channels."
    check_weights(local_state_dict, expected, f"It must be a local checkpoint: {remedy}")
    initialize(model, GLOBAL_START_GAIN)
    with torch.no_grad():
        for key, parameter in expected.items():
            parameter.copy_(local_state_dict[key])
    model.freeze_local()
