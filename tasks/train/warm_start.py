"""A training that begins with the weights of an earlier one like it, instead of fresh ones."""

import torch
from torch import nn

from prdit_models.networks.weights import load_weights
from storage.artifacts import Ref
from storage.errors import InputError, as_input_error
from tasks.model.checkpoint import CheckpointInfo, differences, load_info, load_state

_REMEDY = "Train from scratch instead: `start: scratch` in the policy of retraining."


def check_initial(initial: Ref, info: CheckpointInfo) -> None:
    """Refuse weights that a training cannot begin with: they must be of the same family, model, process and view.

    Args:
        initial: checkpoint of the earlier training.
        info: description of the checkpoint that the new one will make.
    Raises:
        InputError: it is no checkpoint, or of another kind of training; every difference is named.
        StorageError: it cannot be read.
    """
    if initial.kind != "checkpoint":
        raise InputError(f"A training begins with the weights of a checkpoint, got a {initial.kind} at {initial.uri}.")
    known = load_info(initial)
    found = differences(known, info)
    if found:
        raise InputError(
            f"The training cannot begin with the weights of the checkpoint at {initial.uri}, which differs in\n  "
            + "\n  ".join(f"{key}: {there} there, {here} here" for key, (there, here) in found.items())
            + f"\n{_REMEDY}"
        )


@torch.no_grad()
def continue_from(module: nn.Module, initial: Ref) -> None:
    """Give a module the averaged weights (EMA) of an earlier training, which are those that were sampled and measured.

    Frozen parameters stay: they are those of the checkpoint that this training starts from, which may have been trained anew.

    Args:
        module: built, begun and frozen by its family.
        initial: checkpoint of the earlier training, as `check_initial` let it pass.
    Raises: InputError: keys or shapes are not this module's, or values not finite.
    """
    frozen = {
        name: parameter.detach().clone() for name, parameter in module.named_parameters() if not parameter.requires_grad
    }
    with as_input_error():
        load_weights(module, load_state(initial, "ema"), f"They come from {initial.uri}. {_REMEDY}")
    parameters = dict(module.named_parameters())
    for name, value in frozen.items():
        parameters[name].copy_(value)
