import pytest
import torch
from torch import nn

from prdit_models.networks.weights import load_weights


def _good() -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(2, 3), "bias": torch.full((2,), 5.0)}


def test_all_weights_arrive():
    network = nn.Linear(3, 2)
    load_weights(network, _good(), "")
    assert torch.equal(network.weight, torch.ones(2, 3))
    assert torch.equal(network.bias, torch.full((2,), 5.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": None}, r"missing \['bias'\]"),
        ({"gain": torch.ones(1)}, r"extra \['gain'\]"),
        ({"weight": torch.ones(3, 2)}, r"weight: \(3, 2\) instead of \(2, 3\)"),
        ({"bias": torch.tensor([1.0, float("nan")])}, r"not finite in \['bias'\]"),
        ({"bias": None, "gain": torch.ones(1), "weight": torch.ones(1)}, "missing.*extra.*misshapen"),
    ],
)
def test_anything_else_is_refused_and_nothing_is_touched(change, message):
    network = nn.Linear(3, 2)
    before = [parameter.clone() for parameter in network.parameters()]
    given = {key: value for key, value in (_good() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message + ".*Take another."):
        load_weights(network, given, "Take another.")
    for parameter, old in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
