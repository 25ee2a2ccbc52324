"""How many volumes a process draws at once: as many as fit into its memory, by measurement."""

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor

from prdit_models.tracing import MemoryTrace
from storage.errors import OutOfMemoryError
from tasks.model.compute import pick_device
from tasks.model.memory import room_of
from tasks.run.machine import sharing
from tasks.sample.draw import Drawing, Painter, one_thread_each

MOST = 64  # a batch beyond it gains nothing, and its volumes wait in the memory of the host
SHARE = 0.9  # of what is free: allocators lose some of it between blocks
ALLOCATOR = 1.6  # what glibc's holds beyond tensors that come and go (docs/benchmarks.md)
_EVALUATIONS = 2  # of a drawing that is measured: predictor and corrector


class Gauge(Protocol):
    """Measures what drawing takes on a device."""

    def peak(self, count: int) -> int:
        """Bytes at the peak while so many volumes are drawn at once, the model's among them. Raises: OutOfMemoryError."""

    def room(self) -> int:
        """Bytes that this process can have on the device, those it has among them."""


def largest_that_fits(gauge: Gauge, most: int, *, tried: bool = True) -> int:
    """The largest number of volumes that can be drawn at once, 1 at least.

    The peaks of one and of two volumes are measured and extrapolated. The result is then tried, and halved while it does not fit.

    Args:
        gauge: of a device.
        most: more are not needed.
        tried: whether the result is tried; it takes as long as so many volumes take.
    Raises: OutOfMemoryError: not even one volume fits.
    """
    one = gauge.peak(1)
    if most == 1:
        return 1
    try:
        each = max(1, gauge.peak(2) - one)
    except OutOfMemoryError:
        return 1
    free = int(gauge.room() * SHARE)
    count = max(1, min(most, 1 + (free - one) // each))
    while tried and count > 2:
        try:
            if gauge.peak(count) <= gauge.room():
                break
        except OutOfMemoryError:
            pass
        count //= 2
    return count


class _Measured(Exception):
    """Enough evaluations are made."""


class DeviceGauge:
    """Draws the first evaluations of some volumes, and asks the device (CUDA), or counts tensors (CPU), for the peak."""

    def __init__(self, painter: Painter) -> None:
        self._painter = painter

    def peak(self, count: int) -> int:
        """See `Gauge`."""
        painter, device = self._painter, self._painter.device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._draw(count)
            return torch.cuda.max_memory_allocated(device)
        trace = MemoryTrace()
        trace.hold([*painter.model.parameters(), *painter.model.buffers()])
        with trace:
            self._draw(count)
        return int(ALLOCATOR * trace.peak_bytes)

    def room(self) -> int:
        """See `Gauge`."""
        return room_of(self._painter.device, sharing()).available

    def _draw(self, count: int) -> None:
        def enough(done: int, total: int, image: Tensor) -> None:
            if done >= min(_EVALUATIONS, total):
                raise _Measured

        with suppress(_Measured):
            self._painter.together(list(range(count)), enough)


@dataclass(frozen=True)
class AtOnce:
    """What a process draws at once.

    Attributes:
        batch: volumes of a batch: those that the model computes together.
        batches: drawn at the same time, by a thread each.
    """

    batch: Annotated[int, Field(ge=1)]
    batches: Annotated[int, Field(ge=1)]


def at_once(drawing: Drawing, most: int) -> AtOnce:
    """What this process draws at once: on a GPU one batch, on a CPU several volumes with a thread each.

    A volume's last bits depend on the batch and on the number of threads that it is computed in. On a CPU they must not: a volume
    has a batch and a thread of its own there (what that costs: docs/benchmarks.md).

    Args:
        drawing: from what, and how.
        most: more volumes are not needed.
    Raises: InputError, OutOfMemoryError.
    """
    device = pick_device(drawing.config)
    if device.type != "cuda":
        return AtOnce(1, at_the_same_time(drawing, most))
    asked = drawing.config.batch_size
    return AtOnce(asked or largest_that_fits(DeviceGauge(Painter(drawing, device)), min(most, MOST)), 1)


def at_the_same_time(drawing: Drawing, most: int) -> int:
    """How many batches this process draws at the same time: on a GPU one, on a CPU one per thread as far as memory goes.

    Args:
        drawing: from what, and how.
        most: more are not needed.
    """
    device, asked = pick_device(drawing.config), drawing.config.batch_size
    threads = 1 if device.type == "cuda" else torch.get_num_threads()
    if min(threads, most) == 1 or asked is not None:
        return min(threads, most, asked or 1)
    return min(most, threads_that_fit(drawing, threads))


@lru_cache(maxsize=1)  # every chunk of a worker asks
def threads_that_fit(drawing: Drawing, threads: int) -> int:
    """How many of some threads can draw a volume each on this CPU."""
    device = torch.device("cpu")
    with one_thread_each(device):
        return largest_that_fits(DeviceGauge(Painter(drawing, device)), threads, tried=False)
