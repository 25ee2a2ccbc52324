"""Loading weights: all of them, if every key and shape fits and every value is finite, or none."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def check_weights(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], remedy: str) -> None:
    """Refuse weights that are not exactly those of a network.

    Args:
        given: state dict to load.
        expected: the network's own.
        remedy: what to do, the message's last sentence.
    Raises: ValueError: keys are missing, extra or misshapen, or values are not finite; every one is listed.
    """
    problems = []
    if missing := sorted(set(expected) - set(given)):
        problems.append(f"missing {missing}")
    if extra := sorted(set(given) - set(expected)):
        problems.append(f"extra {extra}")
    common = sorted(set(expected) & set(given))
    shapes = [(key, tuple(given[key].shape), tuple(expected[key].shape)) for key in common]
    if misshapen := [f"{key}: {found} instead of {wanted}" for key, found, wanted in shapes if found != wanted]:
        problems.append(f"misshapen {misshapen}")
    if not problems and (not_finite := [key for key in common if not torch.isfinite(given[key]).all()]):
        problems.append(f"values that are not finite in {not_finite}")
    if problems:
        raise ValueError(f"The weights do not fit this network: {'; '.join(problems)}. {remedy}")


@torch.no_grad()
def load_weights(network: nn.Module, given: Mapping[str, Tensor], remedy: str) -> None:
    """Copy weights into a network, all of them or none.

    Raises: ValueError: see `check_weights`; the network is unchanged.
    """
    expected = network.state_dict()
    check_weights(given, expected, remedy)
    for key, tensor in expected.items():
        tensor.copy_(given[key])
