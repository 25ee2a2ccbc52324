"""Training and prediction under bfloat16 autocast against float32 and against the float64 oracle."""

import pytest
import torch
from torch import Tensor

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.networks.config import ModelConfig
from prdit_models.networks.prdit import PRDiT, trainable_parameters
from tests.oracles import prdit_literal

CONFIG = ModelConfig(20, 6, 4, 1, 48, 4, 2)  # 125 tokens: no multiple of anything
EPSILON = 2**-8  # of bfloat16


def _network(*, checkpointing: bool = False) -> PRDiT:
    network = PRDiT(CONFIG, checkpointing=checkpointing)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(
                noise * 0.02 if name.endswith("bias") or noise.dim() == 1 else noise / noise.shape[1] ** 0.5
            )
    return network


def _batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    process, generator = CosineProcess(), torch.Generator().manual_seed(1)
    x0 = torch.rand(2, 1, 20, 20, 20, generator=generator) * 2 - 1
    t, eps = torch.tensor([200, 700]), process.noise(tuple(x0.shape), generator)
    return process.q_sample(x0, t, eps), t, x0, eps


def _train(network: PRDiT, *, bf16: bool) -> tuple[float, list[Tensor]]:
    x_t, t, x0, eps = _batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = network(x_t, t)
    loss = CosineProcess().losses(output.float(), x0, eps)["loss"]
    return float(loss.detach()), list(torch.autograd.grad(loss, trainable_parameters(network)))


def test_training_in_bfloat16_stays_close_to_float32() -> None:
    """Loss within 0.1 %; the gradient of every weight points where float32's does (cosine 0.999) and is as long within 1 %."""
    exact, exact_gradients = _train(_network(), bf16=False)
    loss, gradients = _train(_network(), bf16=True)
    assert loss == pytest.approx(exact, rel=1e-3)
    assert loss != exact
    for found, expected in zip(gradients, exact_gradients, strict=True):
        assert found.dtype == torch.float32
        cosine = float((found * expected).sum() / (found.norm() * expected.norm()))
        assert cosine > 0.999
        assert float(found.norm() / expected.norm()) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("bf16", [False, True])
def test_checkpointing_changes_no_gradient(bf16: bool) -> None:
    loss, gradients = _train(_network(), bf16=bf16)
    again, recomputed = _train(_network(checkpointing=True), bf16=bf16)
    assert again == loss
    for ours, theirs in zip(recomputed, gradients, strict=True):
        assert torch.equal(ours, theirs)


def test_prediction_in_bfloat16_against_the_oracle() -> None:
    """Frozen weights: largest error under 3 roundings of the largest output, mean under 1/2."""
    network = _network().eval().requires_grad_(False)
    x_t, _, _, _ = _batch()
    oracle = prdit_literal.from_config(CONFIG.to_dict())
    exact = oracle({key: value.double() for key, value in network.state_dict().items()}, x_t.double(), 400)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        error = (network(x_t, 400).double() - exact).abs() / exact.abs().max()
    assert float(error.max()) < 3 * EPSILON
    assert EPSILON / 50 < float(error.mean()) < EPSILON / 2  # it is bfloat16 that was measured
