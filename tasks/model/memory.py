"""What would fit where the memory of a device did not suffice, by the arithmetic of `prdit plan`."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psutil
import torch

from prdit_models.families.family import Training
from prdit_models.plan import GIB, GPU_CONTEXT_BYTES, Planned, Work, largest_batch, memory_of
from storage.errors import OutOfMemoryError, UserError
from tasks.model.checkpoint import CheckpointInfo
from tasks.run.machine import memory_available

logger = logging.getLogger("prdit.memory")


@dataclass(frozen=True)
class Room:
    """The memory of a device.

    Attributes:
        device: `cpu` or `cuda`.
        title: what it is, for messages.
        total: bytes it has.
        available: bytes this process can have, those it holds included; others hold the rest.
    """

    device: str
    title: str
    total: int
    available: int

    @property
    def for_tensors(self) -> int:
        """Bytes that what `prdit plan` counts may take."""
        return self.available - (GPU_CONTEXT_BYTES if self.device == "cuda" else 0)

    def __str__(self) -> str:
        has = f"{self.total / GIB:.1f} GiB, of which this process can have {self.available / GIB:.1f}"
        return f"{self.device} ({self.title}: {has})"


def room_of(device: torch.device, sharing: int = 1) -> Room:
    """The memory of a device as it is now; the machine's own is divided by the processes that are sharing it."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device)
        return Room("cuda", torch.cuda.get_device_name(device), total, free + held)
    memory = memory_available()
    return Room("cpu", "this machine", memory.total, memory.amount // sharing + psutil.Process().memory_info().rss)


@contextmanager
def out_of_memory_explained(device: torch.device, advise: Callable[[Room], str]) -> Iterator[None]:
    """Turn what PyTorch and Python raise where memory is used up into a message that says what would fit.

    Args:
        device: where the block computes.
        advise: the message, given the memory of the device that ran out.
    Raises: OutOfMemoryError: the block ran out of memory.
    """
    try:
        yield
    except UserError:
        raise
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            room = room_of(device)
        elif isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):  # PyTorch's on the host
            room = room_of(torch.device("cpu"))
        else:
            raise
        raise OutOfMemoryError(advise(room)) from error


def planned_of(info: CheckpointInfo, training: Training | None = None) -> Planned:
    """A checkpoint's model, or one that is trained, as far as its size is concerned."""
    family = info.of_family
    return Planned(family, info.model, training or Training(family.settings(), info.process), info.view.size)


@dataclass(frozen=True)
class Tried:
    """A batch that does not fit.

    Attributes:
        batch_size, accumulation: of the configuration.
        ranks: that share the batch.
        planned_only: whether it was refused before it was computed.
    """

    batch_size: int
    accumulation: int = 1
    ranks: int = 1
    planned_only: bool = False

    def on(self, room: Room) -> str:
        """What happened to it on a device."""
        return f"{'Too little memory' if self.planned_only else 'Out of memory'} on {room}"


def training_advice(planned: Planned, key: str, work: Work, room: Room, batch: Tried) -> str:
    """What to set where a training does not fit; the volumes per step stay the same.

    Args:
        planned: what is trained.
        key: of its settings, such as `recipe.local`.
        work: what was tried.
        room: of the device that ran out.
        batch: with which batch.
    """
    volumes, each = batch.batch_size * batch.accumulation, batch.batch_size // batch.ranks
    shared = f" shared by {batch.ranks} ranks" if batch.ranks > 1 else ""
    tried = f"{batch.on(room)}: {work}, with batch_size {batch.batch_size}{shared}"
    try:
        needed = memory_of(work, planned, each, room.device).total
        options = []
        for again in dict.fromkeys((work.checkpointing, True)):
            again_work = replace(work, checkpointing=again)
            tried_before = again == work.checkpointing  # the plan is an estimate, and the very same has just failed
            most = largest_batch(again_work, planned, room.for_tensors, room.device)
            most = min(most, each - 1 if tried_before else each)
            size = (
                max((size for size in range(1, most + 1) if volumes % (size * batch.ranks) == 0), default=0)
                * batch.ranks
            )
            if size:
                switched = "" if tried_before else f", {key}.checkpointing=true"
                options.append(f"{key}.batch_size={size}, {key}.accumulation={volumes // size}{switched}")
    except Exception:  # a family that cannot be planned: the message must not be lost for it
        logger.warning("what would fit cannot be planned", exc_info=True)
        return f"{tried}. Lower {key}.batch_size and raise {key}.accumulation as much, or set {key}.checkpointing=true."
    told = f"{tried} needs {needed / GIB:.1f} GiB by `prdit plan`."
    if options:
        return f"{told} With the same {volumes} volumes per step this should fit: {'; or '.join(options)}."
    return f"{told} No batch does, with checkpointing neither: choose a smaller model or view, or another device.{_others(room)}"


def sampling_advice(planned: Planned, work: Work, room: Room, *, batch_size: int) -> str:
    """What to set where sampling ran out of memory.

    Args:
        planned: the model that is sampled.
        work: what was tried.
        room: of the device that ran out.
        batch_size: what was tried.
    """
    tried = f"{Tried(batch_size).on(room)}: {work}, with sample.batch_size {batch_size}"
    try:
        needed = memory_of(work, planned, batch_size, room.device).total
        size = min(largest_batch(work, planned, room.for_tensors, room.device), batch_size - 1)
    except Exception:  # as above
        logger.warning("what would fit cannot be planned", exc_info=True)
        return f"{tried}. Lower sample.batch_size."
    told = f"{tried} needs {needed / GIB:.1f} GiB by `prdit plan`."
    if size:
        return f"{told} This should fit: sample.batch_size={size}; the volumes stay the same."
    return f"{told} No batch does: sample on another device (sample.device).{_others(room)}"


def evaluation_advice(room: Room, *, batch_size: int, resized: bool = False) -> str:
    """What to set where the feature network of an evaluation ran out of memory.

    Args:
        room: memory of the device.
        batch_size: volumes that were computed together.
        resized: whether the network is given volumes of a configured size.
    """
    ways = [f"evaluate.batch_size={batch_size // 2}"] if batch_size > 1 else []
    ways += ["evaluate.device=cpu"] if room.device == "cuda" else []
    what = f"Set {' or '.join(ways)}; the figures stay the same" if ways else "Use a machine with more memory"
    size = (
        ". Or set a smaller evaluate.extractor.size; the figures are then not comparable with others" if resized else ""
    )
    return f"{Tried(batch_size).on(room)}: the features of {batch_size} volume(s) together. {what}{size}."


def _others(room: Room) -> str:
    others = room.total - room.available
    if room.device == "cpu" or others < GIB:
        return ""
    return f" Other processes hold {others / GIB:.1f} GiB of it (nvidia-smi shows them)."
