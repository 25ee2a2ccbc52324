"""Linear layers by either library against float64, and what follows the weights when they change."""

import copy
import logging

import pytest
import torch
from torch.nn import functional as F

from prdit_models.networks import gemm
from prdit_models.networks.gemm import (
    FullPrecisionLinear,
    Linear,
    chosen_gemm,
    has_bfloat16_products,
    measured_rates,
    use_gemm,
)

BACKENDS = ["mkl", "onednn"]


@pytest.fixture(autouse=True)
def _restore(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    use_gemm("auto")


def _exact(layer: Linear, x: torch.Tensor) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.double()
    return F.linear(x.double(), layer.weight.double(), bias)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_product_equals_float64(backend, frozen, bias):
    use_gemm(backend)
    torch.manual_seed(0)
    layer = Linear(96, 40, bias=bias).requires_grad_(not frozen)
    whole = torch.randn(2, 200, 96)
    for x in (whole, whole[:, 30:130], whole[:1, :3]):  # contiguous, a block of tokens, too few rows to pack
        torch.testing.assert_close(layer(x).double(), _exact(layer, x), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_equal_float64(backend):
    use_gemm(backend)
    torch.manual_seed(0)
    layer = Linear(24, 16)
    x = torch.randn(3, 40, 24, requires_grad=True)
    layer(x).square().sum().backward()
    twin, y = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    twin.zero_grad()
    F.linear(y, twin.weight, twin.bias).square().sum().backward()
    for found, expected in ((x.grad, y.grad), (layer.weight.grad, twin.weight.grad), (layer.bias.grad, twin.bias.grad)):
        torch.testing.assert_close(found.double(), expected, atol=2e-6 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_weights_follow_the_weights(backend):
    use_gemm(backend)
    layer = Linear(32, 32).requires_grad_(False)
    x = torch.randn(128, 32)
    layer(x)
    layer.weight.mul_(2.0)  # in place: same storage
    torch.testing.assert_close(layer(x).double(), _exact(layer, x), atol=4e-6, rtol=1e-6)
    layer.weight.data = torch.randn(32, 32)  # swapped, as EMA weights are for a validation
    torch.testing.assert_close(layer(x).double(), _exact(layer, x), atol=2e-5, rtol=1e-6)
    assert copy.deepcopy(layer)._packed is None  # packed weights are not copied along


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"mkl": 100.0, "onednn": 240.0}, "onednn"),
        ({"mkl": 99.0, "onednn": 111.0}, "onednn"),
        ({"mkl": 170.0, "onednn": 172.0}, "mkl"),  # not worth leaving the default
    ],
)
def test_the_faster_library_is_taken_kept_and_logged(monkeypatch, caplog, rates, expected):
    monkeypatch.setattr(gemm, "measured_rates", lambda *_, **__: rates)
    use_gemm("auto")
    with caplog.at_level(logging.INFO, "prdit.models.gemm"):
        assert chosen_gemm() == expected
        assert f"GEMM backend: {expected} (mkl {rates['mkl']:.0f} GFLOP/s" in caplog.text
        monkeypatch.setattr(gemm, "measured_rates", lambda *_, **__: pytest.fail("measured twice on one machine"))
        use_gemm("auto")  # as a new process would
        assert chosen_gemm() == expected
        assert "measured earlier" in caplog.text


def test_a_damaged_choice_is_measured_anew(monkeypatch, tmp_path):
    path = tmp_path / "cache" / "prdit" / "gemm.json"
    path.parent.mkdir(parents=True)
    path.write_text("{half a li")
    monkeypatch.setattr(gemm, "measured_rates", lambda *_, **__: {"mkl": 1.0, "onednn": 9.0})
    use_gemm("auto")
    assert chosen_gemm() == "onednn"
    assert "onednn" in path.read_text()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frozen", [True, False])
def test_gelu_follows_the_product(backend, frozen):
    use_gemm(backend)
    torch.manual_seed(0)
    layer, x = Linear(48, 32).requires_grad_(not frozen), torch.randn(2, 70, 48)
    y = _exact(layer, x)
    exact = 0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))
    torch.testing.assert_close(layer(x, gelu=True).double(), exact, atol=2e-6, rtol=1e-6)


def _rounded(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().double()


@pytest.mark.skipif(not has_bfloat16_products(), reason="this CPU does not multiply bfloat16")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_product_under_autocast_is_that_of_rounded_numbers(dtype):
    torch.manual_seed(0)
    layer, x = Linear(96, 40).requires_grad_(False), torch.randn(2, 100, 96).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            out = layer(x)
            assert out.dtype == torch.bfloat16
            expected = F.linear(_rounded(x), _rounded(layer.weight), _rounded(layer.bias))
            torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=2**-8)  # one rounding of the result
            kept = layer._packed
            layer(x)
            assert layer._packed is kept  # weights are rounded and packed once
            layer.weight.mul_(-2.0)
            layer.bias.add_(1.0)
    torch.testing.assert_close(layer(x.float()).double(), _exact(layer, x), atol=1e-5, rtol=1e-6)  # float32 again


def test_full_precision_layers_ignore_autocast():
    torch.manual_seed(0)
    layer, x = FullPrecisionLinear(64, 48), torch.randn(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x.bfloat16())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), _exact(layer, x.bfloat16()), atol=1e-5, rtol=1e-6)


def test_a_build_without_the_operators_still_multiplies(monkeypatch):
    monkeypatch.setattr(gemm, "has_onednn", lambda: False)
    gemm.has_bfloat16_products.cache_clear()
    use_gemm("auto")
    try:
        assert chosen_gemm() == "mkl"
        with pytest.raises(ValueError, match="oneDNN"):
            use_gemm("onednn")
        layer, x = Linear(96, 40).requires_grad_(False), torch.randn(200, 96)
        torch.testing.assert_close(layer(x).double(), _exact(layer, x), atol=2e-6, rtol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(layer(x).double(), _exact(layer, x), atol=0.03, rtol=0.02)
    finally:
        gemm.has_bfloat16_products.cache_clear()


def test_tensors_without_memory_pass():
    layer = Linear(96, 40, device="meta").requires_grad_(False)
    assert layer(torch.empty(2, 100, 96, device="meta")).shape == (2, 100, 40)
    full = FullPrecisionLinear(96, 40, device="meta")
    assert full(torch.empty(2, 96, device="meta")).shape == (2, 40)


def test_measured_rates_are_rates():
    rates = measured_rates(64, 64, 64, repeats=3)
    assert set(rates) == {"mkl", "onednn"}
    assert all(0.001 < rate < 100_000 for rate in rates.values())


def test_an_unknown_library_is_refused():
    with pytest.raises(ValueError, match=r"'blis'.*'auto', 'mkl', 'onednn'"):
        use_gemm("blis")


def test_new_weights_at_an_old_address_are_packed_anew() -> None:
    layer = Linear(64, 64, bias=False).requires_grad_(False)
    x = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for seed in range(20):
            layer(x)
            layer.weight.data = torch.empty(0)
            layer.weight.data = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(layer(x), x @ layer.weight.t(), atol=1e-4, rtol=1e-4)


def test_a_layer_made_in_inference_mode_works() -> None:
    with torch.inference_mode():
        layer = Linear(64, 32)
        x = torch.ones(128, 64)
        torch.testing.assert_close(layer(x), x @ layer.weight.t() + layer.bias)
