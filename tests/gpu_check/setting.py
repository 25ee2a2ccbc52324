"""What a part is given: the device, how large to make things, how long it has; and how time is taken on the device."""

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prdit_models.networks.config import ModelConfig, model_config

PRESET = "B/12/4"
EDGES = (64, 128)
TINY_CONFIG = ModelConfig(16, 6, 4, 1, 48, 6, 1)
WARM_UP = 1


@dataclass(frozen=True)
class Setting:
    """Where and how a part works.

    Attributes:
        device: of the product.
        tiny: everything shrunk to what a CPU does in seconds.
        deadline: of `time.monotonic`; rows that would begin later are skipped.
    """

    device: torch.device
    tiny: bool
    deadline: float

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() >= self.deadline

    @property
    def precisions(self) -> tuple[str, ...]:
        """`fp32`, and `bf16` where the device has it (a CPU without it is slow, which is fine in tiny sizes)."""
        has_bf16 = not self.is_cuda or torch.cuda.is_bf16_supported(including_emulation=False)
        return ("fp32", "bf16") if has_bf16 else ("fp32",)

    @property
    def configs(self) -> dict[str, ModelConfig]:
        """The networks that are timed, by what they are called."""
        if self.tiny:
            return {"tiny 16³": TINY_CONFIG}
        return {f"{PRESET} {edge}³": model_config(PRESET, edge) for edge in EDGES}

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """As trainings and samplers compute: bfloat16 autocast, or none."""
        return torch.autocast(self.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def free_memory(self) -> None:
        """Free the memory that no tensor holds."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def seconds(self, work: Callable[[], object], *, repeats: int = 5) -> float:
        """Median seconds of some work on the device, after one call that warms it up."""
        taken = []
        for repeat in range(WARM_UP + repeats):
            self.synchronize()
            began = time.perf_counter()
            work()
            self.synchronize()
            if repeat >= WARM_UP:
                taken.append(time.perf_counter() - began)
        return statistics.median(taken)


def let_speak(network: nn.Module, seed: int = 0) -> None:
    """Move every weight off its start (the published one outputs 0), in the same way on every device."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device), alpha=0.02)


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Largest difference, in units of the largest reference value."""
    exact = reference.detach().double().cpu()
    return float((found.detach().double().cpu() - exact).abs().max() / exact.abs().max())


def power_of_two(batch: int) -> int:
    """The largest one not above; 0 for 0."""
    return 1 << (batch.bit_length() - 1) if batch > 0 else 0
