"""What a trace counts, in bytes worked out by hand."""

from contextlib import nullcontext

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from prdit_models.tracing import MemoryTrace

ROW = 4 * 1000  # bytes of a float32 vector of 1000


def test_peak_is_of_tensors_alive_together_and_views_are_free() -> None:
    with MemoryTrace() as memory:
        first = torch.empty(1000, device="meta")
        view = first.view(10, 100).t()
        second = first + 1
        del first
        assert memory.live_bytes == 2 * ROW  # the view holds it
        del view
        assert memory.live_bytes == ROW
        second.add_(1)
        third = second * 2
        del second
    assert (memory.live_bytes, memory.peak_bytes) == (ROW, 2 * ROW)
    del third
    assert memory.live_bytes == 0


def test_held_tensors_count_once() -> None:
    weight = torch.zeros(1000)
    memory = MemoryTrace()
    memory.hold([weight, weight.view(10, 100)])
    with memory:
        weight.t()
    assert memory.peak_bytes == ROW


def test_graph_keeps_what_the_backward_pass_needs() -> None:
    x = torch.empty(1000, device="meta", requires_grad=True)
    with MemoryTrace() as memory:
        loss = x.sin().exp().sum()
        assert memory.live_bytes == ROW + 4  # of exp its result; sin keeps x, which was there, not its own
        loss.backward()
        del loss
    assert memory.live_bytes == ROW  # the gradient
    assert memory.timeline[:2] == [ROW, 2 * ROW]  # the second result beside the first
    assert x.grad is not None


def test_fake_tensors_count_as_real_ones() -> None:
    """Attention keeps no matrix of scores, autocast one copy of a weight per region."""
    for mode in (FakeTensorMode(), nullcontext()):
        with mode, MemoryTrace() as memory:
            q, k, v = (torch.zeros(1, 2, 512, 8, requires_grad=True) for _ in range(3))
            mixed = F.scaled_dot_product_attention(q, k, v)
        assert mixed.shape == q.shape
        assert memory.live_bytes == 4 * 2 * 512 * (3 * 8 + 8 + 1)  # the result and one number per query
        with mode, MemoryTrace() as memory, torch.autocast("cpu", torch.bfloat16):
            layer, x = nn.Linear(1000, 1, bias=False), torch.zeros(1, 1000, dtype=torch.bfloat16)
            kept = [layer(x) for _ in range(3)]
            assert memory.live_bytes == 4 * 1000 + 2 * 1000 + 2 * 1000 + 3 * 2
        assert len(kept) == 3
