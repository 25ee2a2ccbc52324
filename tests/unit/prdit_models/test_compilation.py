"""Compiled networks give the values of the network itself, before and after their weights are swapped, or fall back and say why."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prdit_models.networks.compilation import CompiledNetwork
from prdit_models.networks.config import ModelConfig
from prdit_models.networks.prdit import PRDiT, trainable_parameters

LOGGER = "prdit.models.compilation"


def _network() -> PRDiT:
    network = PRDiT(ModelConfig(16, 12, 8, 2, 48, 4, 1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return network


def _inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 700])


def _gradients(call: Callable[..., Tensor], network: PRDiT) -> list[Tensor]:
    return list(torch.autograd.grad(call(*_inputs()).square().mean(), trainable_parameters(network)))


@pytest.mark.slow
def test_compiled_values_gradients_and_swapped_weights() -> None:
    """Compares with the uncompiled network; the only test that really compiles (up to a minute on an empty cache)."""
    network = _network()
    keys = list(network.state_dict())
    call = CompiledNetwork(network)
    with torch.no_grad():
        expected = network(*_inputs())
    found = call(*_inputs())
    assert call.failure is None
    assert list(network.state_dict()) == keys
    assert all(parameter.grad is None for parameter in network.parameters())  # the trial has no effect
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    for ours, theirs in zip(_gradients(call, network), _gradients(network, network), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max()) + 1e-9, rtol=1e-4)

    averages = [parameter.detach() * 0.9 for parameter in trainable_parameters(network)]
    for parameter, average in zip(trainable_parameters(network), averages, strict=True):
        parameter.data = average
    with torch.no_grad():
        swapped = network(*_inputs())
    assert float((swapped - expected).abs().max()) > 1e-2
    torch.testing.assert_close(call(*_inputs()), swapped, atol=2e-5, rtol=1e-5)


def _refuses(_network: Any) -> Any:
    raise RuntimeError("no C++ compiler found\nand three pages more")


def _fails_when_called(_network: Any) -> Any:
    def call(*_inputs: Any, **_options: Any) -> Any:
        raise NotImplementedError

    return call


class _BackwardFails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise OSError("backward kernel not built")


def _fails_in_backward(network: Any) -> Any:
    return lambda *inputs: _BackwardFails.apply(network(*inputs))


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        (_refuses, "RuntimeError: no C++ compiler found"),
        (_fails_when_called, "NotImplementedError"),
        (_fails_in_backward, "OSError: backward kernel not built"),
    ],
)
def test_a_failure_is_told_once_and_the_network_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compiler: Any, reason: str
) -> None:
    network = _network()
    monkeypatch.setattr(torch, "compile", compiler)
    call = CompiledNetwork(network)
    with caplog.at_level(logging.INFO, LOGGER):
        outputs = [call(*_inputs()) for _ in range(2)]
    warnings = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert len(warnings) == 1
    assert warnings[0].endswith(f"Reason: {reason}")
    assert call.failure == reason
    for output in outputs:
        assert torch.equal(output, network(*_inputs()))
    for ours, theirs in zip(_gradients(call, network), _gradients(network, network), strict=True):
        assert torch.equal(ours, theirs)


def test_a_wrong_input_is_still_the_networks_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network: network)
    with pytest.raises(ValueError, match=r"this model takes"):
        CompiledNetwork(_network())(torch.zeros(1, 1, 8, 8, 8), torch.tensor([3]))
