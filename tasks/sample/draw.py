"""Drawing volumes in this process or in a worker's: seeds -> values in model range."""

import copy
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from prdit_models.diffusion.steering import DivergedError
from prdit_models.families.family import Callback
from prdit_models.plan import Work
from storage.artifacts import Ref
from storage.documents.samples import Guided
from storage.errors import ComputationError, OutOfMemoryError
from storage.geometry import Float3
from tasks.model.checkpoint import CheckpointInfo, load_info, load_model
from tasks.model.compute import autocast
from tasks.model.memory import Room, out_of_memory_explained, planned_of, sampling_advice
from tasks.sample.conditions import asked_grid, request
from tasks.sample.config import SampleConfig
from tasks.sample.mask import SampleMask

logger = logging.getLogger("prdit.sample")


class Target(Protocol):
    """A measurement that volumes are drawn towards, as it is sent to workers (`tasks.reconstruct.target`)."""

    @property
    def guided(self) -> Guided:
        """What is recorded of it."""

    @property
    def origin_mm(self) -> Float3:
        """LPS position (x, y, z) of the centre of a volume's first voxel."""

    def guide(self, info: CheckpointInfo, device: torch.device) -> Any:
        """A `prdit_models.diffusion.steering.Guide` for one process. Raises: InputError, StorageError."""


@dataclass(frozen=True)
class Drawing:
    """What volumes are drawn from, as it is sent to workers.

    Attributes:
        checkpoint: verified by the stage; its path is absolute.
        config: how to draw.
        store: path of the sample store, absolute.
        target: what they are drawn towards; None: nothing.
        mask: what they are drawn for; None: nothing.
    """

    checkpoint: Ref
    config: SampleConfig
    store: Path
    target: Target | None = None
    mask: SampleMask | None = None

    def seed(self, index: int, tried: int = 0) -> int:
        """Seed of a volume."""
        return volume_seed(self.config.seed, index, tried)

    def origin_mm(self, info: CheckpointInfo) -> Float3:
        """LPS position (x, y, z) of the centre of a volume's first voxel: the target's, else the box's middle is the origin."""
        if self.target is not None:
            return self.target.origin_mm
        half = info.voxel_mm * (info.view.size - 1) / 2
        return (-half, -half, -half)


def volume_seed(seed: int, index: int, tried: int = 0) -> int:
    """Seed of one volume: the first 63 bits of SHA-256 of `<seed>/<index>`, so that volumes share no noise.

    Args:
        seed: of the configuration.
        index: of the volume.
        tried: how often it has been drawn before; above 0 `/<tried>` is appended.
    """
    text = f"{seed}/{index}" + (f"/{tried}" if tried else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def volume_id(index: int) -> str:
    """Id of a generated volume in its store."""
    return f"generated-{index:05d}"


class Painter:
    """A model of a process, and how it is asked for volumes.

    Args:
        drawing: from what.
        device: where.
    Raises:
        InputError, StorageError: the checkpoint cannot be sampled from.
        OutOfMemoryError: the model does not fit.
    """

    def __init__(self, drawing: Drawing, device: torch.device) -> None:
        config = drawing.config
        self.drawing, self.device = drawing, device
        with out_of_memory_explained(device, partial(_advice, load_info(drawing.checkpoint), config, 1, False)):
            self.model, info = model_of(drawing.checkpoint, config.weights, device, config.attention)
        self.info = asked_grid(info, config)
        self.request = request(self.info, config, drawing.mask)
        if drawing.target is not None:
            self.request = replace(self.request, guide=drawing.target.guide(self.info, device))
        self._most: int | None = None  # volumes together, once more did not fit

    @property
    def _differentiates(self) -> bool:
        """Whether evaluations keep what derivatives need."""
        guide = self.request.guide
        return guide is not None and guide.strength != 0 and guide.differentiates

    def another(self) -> "Painter":
        """One that can be used at the same time by another thread: modules have state of their own, weights are shared."""
        other = copy.copy(self)
        shared = {id(tensor): tensor for tensor in chain(self.model.parameters(), self.model.buffers())}
        other.model = copy.deepcopy(self.model, shared)
        return other

    def draw(self, seeds: Sequence[int], callback: Callback | None = None) -> NDArray[np.float32]:
        """Volumes in model range, not clipped, perhaps not finite, shape (n, S, S, S).

        One state per volume is in memory, for any number of steps. Noise of a volume comes from its own generator on the CPU, so a
        seed means the same volume on any device, up to rounding of the arithmetic. What does not fit together is drawn in halves.

        Args:
            seeds: one for each volume.
            callback: called after each evaluation of the model.
        Raises:
            ComputationError: the family's code is wrong, or a guide is too strong.
            OutOfMemoryError: not even one volume fits.
        """
        parts, rest = [], list(seeds)
        while rest:
            count = min(len(rest), self._most or len(rest))
            try:
                parts.append(self.together(rest[:count], callback))
                rest = rest[count:]
                continue
            except OutOfMemoryError as error:
                if count == 1:
                    raise
                said = str(error)
            self._most = count // 2  # outside of `except`, which would hold the tensors of the batch
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.warning("a batch of %d volumes does not fit, trying %d. %s", count, self._most, said)
        return np.concatenate(parts)

    def together(self, seeds: Sequence[int], callback: Callback | None) -> NDArray[np.float32]:
        """`draw` in one batch, whether it fits or not."""
        info, config = self.info, self.drawing.config
        with (
            out_of_memory_explained(self.device, partial(_advice, info, config, len(seeds), self._differentiates)),
            autocast(self.device, config.precision),
        ):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            try:
                drawn = info.of_family.generate(self.model, info.process, self.request, generators, callback=callback)
            except DivergedError as error:
                raise ComputationError(str(error)) from error
            size = info.view.size
            if drawn.dim() != 5 or (len(drawn), *drawn.shape[2:]) != (len(seeds), size, size, size):
                raise ComputationError(
                    f"family {info.family!r} drew {tuple(drawn.shape)} for {len(seeds)} seeds; expected ({len(seeds)}, 1, {size}, "
                    f"{size}, {size}). Its generate() is wrong, or its checkpoint is of another size."
                )
            volumes: NDArray[np.float32] = drawn[:, 0].float().cpu().numpy()
        return volumes


@lru_cache(maxsize=1)
def model_of(
    checkpoint: Ref, weights: Literal["ema", "raw"], device: torch.device, attention: str
) -> tuple[torch.nn.Module, CheckpointInfo]:
    """`load_model`, once for all volumes that a process draws."""
    return load_model(checkpoint, weights, device, attention=attention)


@contextmanager
def one_thread_each(device: torch.device) -> Iterator[Callable[[], None]]:
    """Have PyTorch compute with one thread on a CPU: sums are then in one order, whatever the number of cores.

    Yields a function that other threads, which draw at the same time, call first.
    """
    before = torch.get_num_threads()

    def begin() -> None:
        if device.type == "cpu":
            torch.set_num_threads(1)

    begin()
    try:
        yield begin
    finally:
        torch.set_num_threads(before)


def _advice(info: CheckpointInfo, config: SampleConfig, batch_size: int, differentiates: bool, room: Room) -> str:
    """What would fit where a batch did not."""
    work = Work(info.family, "reconstruct" if differentiates else "sample", config.precision)
    return sampling_advice(planned_of(info), work, room, batch_size=batch_size)
