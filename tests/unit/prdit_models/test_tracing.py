"""What a trace counts, in bytes worked out by hand."""

import torch
from torch import nn
from torch.nn import functional as F

from prdit_models.tracing import MemoryTrace, PretendDevice

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
    mode, memory = PretendDevice("cpu"), MemoryTrace()
    with mode, memory:
        loss = x.sin().exp().sum()
        assert memory.live_bytes == ROW + 4  # of exp its result; sin keeps x, which was there, not its own
        mode.backward(loss)
        del loss
    assert memory.live_bytes == ROW  # the gradient
    assert x.grad is not None


def test_fused_attention_keeps_no_matrix_of_scores() -> None:
    q, k, v = (torch.empty(1, 2, 512, 8, device="meta", requires_grad=True) for _ in range(3))
    kept = {}
    for fused in (True, False):
        with PretendDevice("cpu", fused_attention=fused), MemoryTrace() as memory:
            mixed = F.scaled_dot_product_attention(q, k, v)
            kept[fused] = memory.live_bytes
            assert mixed.shape == q.shape
    scores = 4 * 2 * 512**2
    assert kept[True] == 4 * 2 * 512 * (8 + 1)  # the result and one number a query
    assert kept[False] >= scores


def test_autocast_is_followed_and_weights_are_cast_once_a_region() -> None:
    layer = nn.Linear(10, 100, bias=False, device="meta")
    x = torch.empty(5, 10, device="meta")
    with PretendDevice("cuda", bf16=True) as mode, MemoryTrace() as memory:
        with mode.pretending(), mode.region():
            assert (x.device.type, x.is_cuda) == ("cuda", True)
            outputs = [layer(x), layer(x)]
            assert outputs[0].dtype == torch.bfloat16
            normed = F.layer_norm(outputs[0], (100,))
            assert normed.dtype == torch.float32  # as CUDA's autocast does
        assert x.device.type == "meta"
        outputs.clear()
        del normed
        assert memory.live_bytes == 0
    assert memory.peak_bytes > 2 * 10 * 100


def test_memory_of_low_precision_weights_is_theirs_and_one_copy() -> None:
    layer = nn.Linear(1000, 1, bias=False, device="meta")
    x = torch.empty(1, 1000, dtype=torch.bfloat16, device="meta")
    with PretendDevice("cpu", bf16=True) as mode, MemoryTrace() as memory, mode.pretending(), mode.region():
        kept = [layer(x) for _ in range(3)]
        assert memory.live_bytes == 2 * 1000 + 3 * 2
    assert len(kept) == 3
