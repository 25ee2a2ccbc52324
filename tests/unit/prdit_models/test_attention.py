"""Attention by every backend against its definition in float64."""

import importlib.machinery
import logging
import sys
import types
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prdit_models.networks import attention
from prdit_models.networks.attention import attend

ALIGNMENT = {torch.float32: 4, torch.bfloat16: 8}  # of a head's width, in values: 16 bytes
TRIAL = (1, 8, 1)


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ/√D)·v in float64 for layout (B, N, heads, D)."""
    q, k, v = (part.double() for part in (q, k, v))
    weights = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhnm,bmhd->bnhd", weights.softmax(-1), v)


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 7, 3, 8, generator=generator) for _ in range(3))
    return q, k, v


@pytest.mark.parametrize("backend", ["auto", "sdpa", "plain"])
def test_backends_compute_the_definition(backend: str) -> None:
    torch.testing.assert_close(attend(*_inputs(), backend).double(), reference(*_inputs()), atol=1e-6, rtol=1e-5)


def test_published_flash_rounds_to_bfloat16_and_returns_float32() -> None:
    q, k, v = _inputs()
    out = attend(q, k, v, "published-flash")
    assert out.dtype == torch.float32
    assert torch.equal(out, out.bfloat16().float())
    error = (out.double() - reference(q, k, v)).abs().max()
    assert 1e-4 < error < 3e-2


@pytest.fixture
def pretended_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[tuple[int, ...], torch.dtype]]]:
    """CUDA and an installed xformers are simulated; its one function is the definition in its documented layout (B, N, H, D).

    Yields the (shape, dtype) of the values of every call but trials. Like the original it takes q, k, v of one dtype only, scales
    by 1/sqrt(D), returns the dtype of v, and has no operator for heads that do not align.
    """
    seen: list[tuple[tuple[int, ...], torch.dtype]] = []

    def memory_efficient_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not q.dtype == k.dtype == v.dtype:
            raise ValueError("Query/Key/Value should either all have the same dtype")
        if v.shape[-1] % ALIGNMENT[v.dtype]:
            raise NotImplementedError("No operator found for `memory_efficient_attention_forward`\nand why, at length")
        if v.shape[:3] != TRIAL:
            seen.append((tuple(v.shape), v.dtype))
        return reference(q, k, v).to(v.dtype)

    package, operations = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    package.__spec__ = importlib.machinery.ModuleSpec("xformers", None)
    operations.memory_efficient_attention = memory_efficient_attention  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", operations)
    monkeypatch.setattr(attention, "is_accelerated", lambda _x: True)
    for cached in (attention.choose_backend, attention.xformers_serves):
        cached.cache_clear()
    yield seen
    for cached in (attention.choose_backend, attention.xformers_serves):
        cached.cache_clear()


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's own function, by hand."""
    return F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v))).transpose(1, 2)


@pytest.mark.parametrize("requested", ["auto", "xformers"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_xformers_in_its_own_layout_equals_sdpa(
    pretended_cuda: list[tuple[tuple[int, ...], torch.dtype]], requested: str, dtype: torch.dtype, tolerance: float
) -> None:
    q, k, v = (part.to(dtype) for part in _inputs())
    out = attend(q, k, v, requested)
    assert out.dtype == dtype
    torch.testing.assert_close(out, _sdpa(q, k, v), atol=tolerance, rtol=tolerance)
    assert pretended_cuda == [((2, 7, 3, 8), dtype)]


def test_auto_takes_sdpa_where_xformers_has_no_operator_and_says_so_once(
    pretended_cuda: list[tuple[tuple[int, ...], torch.dtype]], caplog: pytest.LogCaptureFixture
) -> None:
    """As for float32 on a Blackwell card, or bfloat16 heads of 12: the library says so only when called."""
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(2, 7, 3, 12, generator=generator).bfloat16() for _ in range(3))
    with caplog.at_level(logging.WARNING, logger="prdit.models.attention"):
        for _ in range(2):
            torch.testing.assert_close(attend(q, k, v), _sdpa(q, k, v))
    assert pretended_cuda == []
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "Reason: NotImplementedError: No operator found for `memory_efficient_attention_forward`"
    )
    assert "width 12" in record.getMessage()
    with pytest.raises(NotImplementedError, match="No operator"):
        attend(q, k, v, "xformers")  # asked for by name
    attend(q.float(), k.float(), v.float())  # in float32 12 aligns
    assert pretended_cuda == [((2, 7, 3, 12), torch.float32)]


def test_the_trial_leaves_no_gradients_and_works_without_them(
    pretended_cuda: list[tuple[tuple[int, ...], torch.dtype]],
) -> None:
    with torch.no_grad():
        out = attend(*_inputs())
    assert not out.requires_grad
    assert pretended_cuda == [((2, 7, 3, 8), torch.float32)]


def test_compiled_code_takes_sdpa(
    pretended_cuda: list[tuple[tuple[int, ...], torch.dtype]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(attend(*_inputs()), _sdpa(*_inputs()))
    assert pretended_cuda == []


@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_module_by_xformers_equals_the_module_by_sdpa(
    pretended_cuda: list[tuple[tuple[int, ...], torch.dtype]], qk_norm: bool
) -> None:
    module = attention.Attention(24, 3, qk_norm=qk_norm)
    x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(2))
    accelerated = module(x)
    module.backend = "sdpa"
    torch.testing.assert_close(accelerated, module(x), atol=1e-6, rtol=1e-5)
    assert pretended_cuda == [((2, 7, 3, 8), torch.float32)]


@pytest.mark.parametrize("backend", ["auto", "sdpa", "plain"])
def test_normed_queries_of_another_dtype_are_taken_in_that_of_the_values(
    pretended_cuda: list[tuple[tuple[int, ...], torch.dtype]], backend: str
) -> None:
    """CUDA's autocast leaves norms, so queries and keys, in float32 and values in bfloat16; no kernel takes the mixture."""
    q, k, v = _inputs()
    v = v.bfloat16()
    out = attend(q, k, v, backend)
    assert out.dtype == torch.bfloat16
    exact = reference(q.bfloat16(), k.bfloat16(), v)
    torch.testing.assert_close(out.double(), exact, atol=2e-2, rtol=0)


def test_bfloat16_without_gradient_equals_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of rows, a remainder, a mean key far from 0 and samples that differ; one rounding of scores and of weights."""
    monkeypatch.setattr(attention, "processor", lambda: "flags : avx512_bf16")
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 1100, 2, 16, generator=generator) for _ in range(3))
    q, k, v = q.bfloat16(), (k + 2.0).bfloat16(), v.bfloat16()
    with torch.no_grad():
        out = attend(q, k, v)
    error = (out.double() - reference(q, k, v)).abs()
    assert out.dtype == torch.bfloat16
    assert float(error.max()) < 8e-3
    assert float(error.mean()) < 1e-3
    kept = attend(q.requires_grad_(), k, v)  # with gradient: PyTorch's kernel
    torch.testing.assert_close(kept, out, atol=8e-3, rtol=0)


def test_float32_without_gradient_equals_the_definition() -> None:
    with torch.no_grad():
        torch.testing.assert_close(attend(*_inputs()).double(), reference(*_inputs()), atol=1e-6, rtol=1e-5)


def test_backend_is_chosen_once_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    attention.choose_backend.cache_clear()
    with caplog.at_level(logging.INFO, logger="prdit.models.attention"):
        attend(*_inputs())
        attend(*_inputs())
    assert [record.getMessage() for record in caplog.records] == ["attention backend: sdpa (requested auto)"]


def test_wrong_backends() -> None:
    with pytest.raises(ValueError, match="fastest"):
        attention.Attention(24, 3, "fastest")
    with pytest.raises(ValueError, match="fastest"):
        attend(*_inputs(), "fastest")
    with pytest.raises(RuntimeError, match="CUDA kernels only"):
        attend(*_inputs(), "xformers")
