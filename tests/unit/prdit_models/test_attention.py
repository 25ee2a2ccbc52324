import logging

import pytest
import torch
from torch import Tensor

from prdit_models import attention
from prdit_models.attention import attend


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


def test_accelerated_tensors_go_to_xformers_in_its_own_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA is pretended; only the xformers function is replaced, by the definition in its documented layout."""
    seen: list[tuple[int, ...]] = []

    class Operations:
        @staticmethod
        def memory_efficient_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            seen.append(tuple(q.shape))
            return reference(q, k, v).to(v.dtype)

    monkeypatch.setattr(attention, "is_accelerated", lambda _x: True)
    monkeypatch.setattr(attention, "xformers_operations", lambda: Operations)
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda _name: object())
    attention.choose_backend.cache_clear()
    try:
        module = attention.Attention(24, 3)
        x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(2))
        accelerated = module(x)
        module.backend = "plain"
        torch.testing.assert_close(accelerated, module(x), atol=1e-6, rtol=1e-5)
    finally:
        attention.choose_backend.cache_clear()
    assert seen == [(2, 7, 3, 8)]


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
