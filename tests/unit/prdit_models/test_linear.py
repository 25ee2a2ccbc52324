"""Linear layers by either library: against float64, the same in any batch; autocast and odd shapes are left to PyTorch."""

import copy

import pytest
import torch
from torch.nn import functional as F

from prdit_models.networks import linear
from prdit_models.networks.linear import NUM_IMAGES, FullPrecisionLinear, Linear

WIDTHS = [(1000, 1000), (192, 768), (768, 192), (96, 40)]


@pytest.fixture(params=[True, False], ids=["convolution", "linear"])
def _library(request, monkeypatch):
    monkeypatch.setattr(linear, "convolution_is_faster", lambda: request.param)


@pytest.fixture
def _convolution(monkeypatch):
    monkeypatch.setattr(linear, "convolution_is_faster", lambda: True)


def _exact(layer, x):
    return F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("bias", [True, False])
def test_product_equals_float64(bias):
    torch.manual_seed(0)
    layer = Linear(96, 40, bias=bias)
    whole = torch.randn(2, 192, 96)
    for x in (whole, whole[:, 30:126], whole[:, ::3], whole[:1, :3], whole[0], whole[0, 0]):
        torch.testing.assert_close(layer(x).double(), _exact(layer, x), atol=2e-6, rtol=1e-6)


@pytest.mark.usefixtures("_library")
def test_gradients_equal_float64():
    torch.manual_seed(0)
    layer = Linear(24, 16)
    x = torch.randn(3, 48, 24, requires_grad=True)
    layer(x).square().sum().backward()
    twin, y = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    twin.zero_grad()
    F.linear(y, twin.weight, twin.bias).square().sum().backward()
    for found, expected in ((x.grad, y.grad), (layer.weight.grad, twin.weight.grad), (layer.bias.grad, twin.bias.grad)):
        torch.testing.assert_close(found.double(), expected, atol=2e-6 * float(expected.abs().max()), rtol=0)


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("widths", WIDTHS)
@torch.no_grad()
def test_a_volume_alone_has_the_bits_it_has_in_a_batch(widths, num_threads):
    """Sampling relies on it. PyTorch would give small convolutions of few images, and all on one thread, to the other library."""
    torch.manual_seed(0)
    layer = Linear(*widths)
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for num_tokens in (16, 27, 64, 512):
            for batch in (2, 3, 16):
                x = torch.randn(batch, num_tokens, widths[0])
                alone = torch.cat([layer(volume) for volume in x.split(1)])
                assert torch.equal(layer(x), alone), f"{batch} volumes of {num_tokens} tokens"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("_convolution")
def test_what_is_convolved(monkeypatch):
    seen = []
    monkeypatch.setattr(linear, "_convolved", lambda x, *_: seen.append(tuple(x.shape)) or x)
    layer, x = Linear(8, 8), torch.randn(2, NUM_IMAGES, 8)
    layer(x)
    assert seen == [(2, NUM_IMAGES, 8)]
    layer(x[:, :-1])  # tokens that do not divide
    layer(x[0])
    copy.deepcopy(layer).double()(x.double())
    copy.deepcopy(layer).to("meta")(x.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("capability", "maker", "expected"),
    [
        ("AVX512", "AuthenticAMD", True),
        ("AVX2", "AuthenticAMD", False),
        ("AVX512", "GenuineIntel", False),
        ("DEFAULT", "", False),
    ],
)
def test_convolution_is_for_amd_processors_with_avx512(monkeypatch, capability, maker, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(linear, "processor", lambda: f"processor : 0\nvendor_id : {maker}\n")
    linear.convolution_is_faster.cache_clear()
    try:
        assert linear.convolution_is_faster() is (expected and torch.backends.mkldnn.is_available())
    finally:
        linear.convolution_is_faster.cache_clear()


@pytest.mark.usefixtures("_library")
def test_under_autocast_products_are_of_rounded_numbers():
    torch.manual_seed(0)
    layer, x = Linear(96, 40), torch.randn(2, 96, 96)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    rounded = copy.deepcopy(layer).bfloat16().double()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), rounded(x.bfloat16().double()), atol=1e-6, rtol=2**-8)


def test_full_precision_layers_ignore_autocast():
    torch.manual_seed(0)
    layer, x = FullPrecisionLinear(64, 48), torch.randn(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x.bfloat16())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), _exact(layer, x.bfloat16()), atol=1e-5, rtol=1e-6)
