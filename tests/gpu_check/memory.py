"""What a piece of work is planned to take on this device, and what it takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prdit_models import plan as planning
from prdit_models.networks.config import ModelConfig
from prdit_models.plan import GIB, Memory, Work, memory_of, of_network
from prdit_models.tracing import MemoryTrace
from tests.gpu_check.report import Fact
from tests.gpu_check.setting import Setting, power_of_two

# Planned against measured bytes of tensors. The plan runs the same code on fake tensors and is right to 3 % on a CPU; kernels of
# a GPU have workspaces and keep statistics that it does not count.
PLAN_LIMIT = 0.15
TINY_BATCH = 2


def planned(setting: Setting, work: Work, config: ModelConfig, batch: int) -> Memory:
    """Of the plan, for this kind of device."""
    return memory_of(work, of_network(config), batch, setting.device.type)


def largest_batch(setting: Setting, work: Work, config: ModelConfig, at_most: int) -> int:
    """The largest power of two that the plan says fits into what is free on this card.

    Raises: RuntimeError: not even one volume does.
    """
    if not setting.is_cuda:
        return TINY_BATCH
    setting.free_memory()
    free, _ = torch.cuda.mem_get_info(setting.device)
    fits = planning.largest_batch(work, of_network(config), free, "cuda")
    if fits < 1:
        raise RuntimeError(
            f"{work}: by the plan not even one volume of {config.volume_size}³ fits into {free / GIB:.1f} GiB."
        )
    return min(power_of_two(fits), at_most)


@dataclass
class Peak:
    """Largest bytes while `peak` was active.

    Attributes:
        tensors: of all tensors.
        held: by the allocator; None on a CPU.
    """

    tensors: int = 0
    held: int | None = None
    _kept: list[Tensor] = field(default_factory=list)


@contextmanager
def peak(setting: Setting, before: list[Tensor]) -> Iterator[Peak]:
    """Measure what is inside: by the CUDA allocator's own count, on a CPU by counting every tensor.

    Args:
        setting: where.
        before: tensors that exist already and count (CUDA's allocator knows them).
    """
    found = Peak()
    if setting.is_cuda:
        setting.synchronize()
        torch.cuda.reset_peak_memory_stats(setting.device)
        yield found
        setting.synchronize()
        found.tensors = torch.cuda.max_memory_allocated(setting.device)
        found.held = torch.cuda.max_memory_reserved(setting.device)
        return
    trace = MemoryTrace()
    trace.hold(before)
    with trace:
        yield found
    found.tensors = trace.peak_bytes


def planned_tensors(plan: Memory) -> int:
    """Planned bytes that `peak` can see: not the allocator's share."""
    return plan.total - plan.allocator


def memory_facts(plan: Memory, found: Peak) -> dict[str, Fact]:
    """Planned and measured GiB, of tensors and with what the allocator holds beyond them."""
    facts: dict[str, Fact] = {
        "planned_tensors_gib": planned_tensors(plan) / GIB,
        "tensors_gib": found.tensors / GIB,
        "planned_gib": plan.total / GIB,
    }
    return facts | ({} if found.held is None else {"held_gib": found.held / GIB})


def plan_error(plan: Memory, found: Peak) -> float:
    """How far the planned tensors are from the measured ones."""
    return abs(planned_tensors(plan) / found.tensors - 1.0)
