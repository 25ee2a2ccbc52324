"""The product against the published model restated in float64 (tests/oracles/prdit_literal.py), all values of every case."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prdit_models.metrics.threads import one_thread
from prdit_models.networks.build import build_network
from prdit_models.networks.config import CascadeConfig, ModelConfig
from prdit_models.networks.initialization import initialize
from prdit_models.networks.prdit import PRDiT
from tests.oracles import prdit_literal as literal
from tests.parity.own.cases import CASES


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The arrays are tiny: threads would wait for each other."""
    with one_thread():
        yield


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    case = CASES[name]
    failed = [f"{m.what}: {m.error:.3g} > {m.tolerance:.3g}" for m in case.measures(case.oracle()) if not m.passed]
    assert not failed


def _other_eps(x: Tensor, eps: float, *rest: Any) -> Tensor:
    weight, bias = (rest[0][f"{rest[1]}.weight"], rest[0][f"{rest[1]}.bias"]) if rest else (None, None)
    return F.layer_norm(x, (x.shape[-1],), weight, bias, {1e-6: 1e-5}.get(eps, eps))


def _other_affine_eps(x: Tensor, eps: float, *rest: Any) -> Tensor:
    weight, bias = (rest[0][f"{rest[1]}.weight"], rest[0][f"{rest[1]}.bias"]) if rest else (None, None)
    return F.layer_norm(x, (x.shape[-1],), weight, bias, {1e-5: 1e-6}.get(eps, eps))


def _replicated(x: Tensor, p: int, s: int, k: int) -> Tensor:
    windows = F.pad(x, (k,) * 6, mode="replicate").unfold(2, p, s).unfold(3, p, s).unfold(4, p, s)
    return windows.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3)


def _channel_slowest(tokens: Tensor, out_channels: int, s: int, size: int) -> Tensor:
    g = size // s
    blocks = tokens.reshape(-1, g, g, g, out_channels, s, s, s)
    return blocks.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(-1, out_channels, size, size, size)


WRONG: dict[str, tuple[str, Callable[..., Tensor], str]] = {
    "eps 1e-5 before modulation": ("layer_norm", _other_eps, "depth 2, low variance"),
    "eps 1e-6 in the affine norms": ("layer_norm", _other_affine_eps, "depth 2, low variance"),
    "exact GELU": ("gelu_tanh", F.gelu, "depth 1"),
    "replicate padding": ("extract_patches", _replicated, "local"),
    "channel slowest": ("unpatchify", _channel_slowest, "local"),
    "scale without 1 +": ("modulate", lambda x, shift, scale: x * scale[:, None] + shift[:, None], "local"),
    "position table of d, h, w": (
        "position_table",
        lambda grid, hidden: _POSITION(grid, hidden).reshape(grid, grid, grid, 3, -1).flip(3).reshape(grid**3, hidden),
        "depth 3",
    ),
    "RMS eps 1e-6": ("rms_norm", lambda x: x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6), "tf, depth 2"),
    "loss weights": ("losses", lambda *args: _LOSSES(*args) * 1.001, "gradients, stage 1"),
}
_POSITION, _LOSSES = literal.position_table, literal.losses


@pytest.mark.parametrize("mistake", WRONG)
def test_a_typical_mistake_is_noticed_in_float32(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the oracle wrong in this way, or the product, the comparison would fail."""
    name, wrong, case = WRONG[mistake]
    monkeypatch.setattr(literal, name, wrong)
    measures = CASES[case].measures(CASES[case].oracle())
    assert [m.what for m in measures if m.what.endswith("float32") and not m.passed]


@pytest.mark.parametrize("gain", [1.0, 0.1])
@pytest.mark.parametrize("depth", [0, 2])
def test_initial_weights_have_the_published_spread(depth: int, gain: float) -> None:
    """Uniform or normal with the closed form's standard deviation; a constant is 0 (LayerNorm weights 1)."""
    model = PRDiT(ModelConfig(8, 6, 4, 1, 192, 6, depth))
    torch.manual_seed(1)
    initialize(model, gain)
    for key, value in model.state_dict().items():
        std = literal.initial_std(key, tuple(value.shape), gain)
        if std == 0.0:
            assert value.unique().tolist() == [1.0 if key.endswith("norm.weight") else 0.0], key
            continue
        assert float(value.std()) == pytest.approx(std, rel=5 / (2 * value.numel()) ** 0.5), key
        assert abs(float(value.mean())) < 5 * std / value.numel() ** 0.5, key
        bound = float(value.abs().max()) / std  # √3 for a uniform distribution, beyond for a normal one
        assert bound > 3 if key.startswith("t_embedder.") else 1.6 < bound <= 3**0.5 + 1e-5, key


def test_the_refining_head_starts_as_torch_does() -> None:
    """SPEC §3.3: default Linear layers, uniform in ±1/√fan_in, but for the zeroed modulation and read-out."""
    torch.manual_seed(2)
    config = CascadeConfig(ModelConfig(16, 6, 4, 1, 192, 1, 0), ModelConfig(8, 4, 2, 1, 48, 4, 1))
    state = {k: v for k, v in build_network(config).state_dict().items() if not k.startswith("base.")}
    for key, value in state.items():
        if "adaLN_modulation" in key or "linear_final" in key:
            assert not value.any(), key
        elif ".norm." in key:
            assert value.unique().tolist() == [1.0 if key.endswith("weight") else 0.0], key
        else:
            fan_in = state[key.replace(".bias", ".weight")].shape[1]
            assert float(value.std()) == pytest.approx((3 * fan_in) ** -0.5, rel=5 / (2 * value.numel()) ** 0.5), key
