"""Batches of training volumes in an order that is a pure function of the seed, prepared ahead by worker processes."""

import atexit
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import count
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from storage.errors import UserError
from tasks.run.machine import cores
from tasks.train.data import ViewDataset
from tasks.train.encoded import EncodedDataset
from tasks.train.loader_workers import begin_worker, begun, dead
from tasks.train.slots import Slots

Draws = dict[str, Tensor]
_AHEAD = 2  # batches that each worker prepares ahead
_MOST_WORKERS = 4
_VOLUMES, _EDGES, _MASKS = "volumes", "edges", "masks"
_rings: WeakValueDictionary[int, Slots] = WeakValueDictionary()  # by id
_running: WeakSet[Generator[Any, None, None]] = WeakSet()


def volume_seed(seed: int, number: int, stream: int) -> int:
    """Seed of what is random about the volume at a position of the sequence; 64 bits.

    Args:
        seed: of the training.
        number: position in the sequence of volumes.
        stream: 0: augmentation; 1 + k: draws of turn k.
    """
    return int(np.random.SeedSequence([seed, number, stream]).generate_state(1, np.uint64)[0])


@dataclass(frozen=True)
class Order:
    """Which volumes make a batch: consecutive positions in an endless sequence of shuffled epochs.

    No volume is used a second time before all were used once, a store smaller than the batch is no special case, and a resumed
    training needs no data position beyond its step. The sequence does not depend on the number of ranks, which share each batch.

    Attributes:
        num_volumes: volumes in the training role.
        batch_size: volumes of all ranks together.
        seed: of the training.
        rank, world: this rank's share.

    Raises: ValueError: at construction, for a batch that the ranks cannot share equally.
    """

    num_volumes: int
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if (
            self.num_volumes < 1
            or not 0 <= self.rank < self.world
            or self.batch_size % self.world
            or self.batch_size < 1
        ):
            raise ValueError(
                f"{self.batch_size} volumes of {self.num_volumes} cannot be shared by {self.world} ranks (this is {self.rank}); "
                "the number of ranks must divide batch_size."
            )

    def numbers(self, place: int) -> range:
        """Positions in the sequence of this rank's share of the batch at a place, from 0."""
        share = self.batch_size // self.world
        first = place * self.batch_size + self.rank * share
        return range(first, first + share)

    def index(self, number: int) -> int:
        """Which volume is at a position."""
        epoch, position = divmod(number, self.num_volumes)
        return int(_permutation(self.num_volumes, self.seed, epoch)[position])


@lru_cache(maxsize=4)
def _permutation(num_volumes: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_volumes)


@dataclass(frozen=True)
class Loaded:
    """One rank's share of a batch, on the CPU.

    Attributes:
        volumes: model range, float32, shape (b, 1, D, H, W); or encoded ones, see `tasks.train.encoded`.
        indices: which volumes of the data set.
        draws: of each turn, by name, stacked over volumes.
        edges: which of the view's edges each has (`Change.edge`), shape (b,).
        masks: coarse masks of the volumes, shape (b, M, s, s, s); None where the training shows none.
    """

    volumes: Tensor
    indices: list[int]
    draws: tuple[Draws, ...]
    edges: Tensor
    masks: Tensor | None = None

    def pin_memory(self) -> "Loaded":
        """A copy in page-locked memory, from which a GPU copies by itself (called by torch's DataLoader)."""
        draws = tuple({name: value.pin_memory() for name, value in turn.items()} for turn in self.draws)
        masks = None if self.masks is None else self.masks.pin_memory()
        return replace(self, volumes=self.volumes.pin_memory(), draws=draws, masks=masks)


@dataclass(frozen=True)
class _Ready:
    """A batch that a worker left in a slot.

    Attributes:
        ring: id of the slots.
        place: of the batch.
        indices: as in `Loaded`.
        turns: number of turns.
    """

    ring: int
    place: int
    indices: list[int]
    turns: int

    def pin_memory(self) -> Loaded:
        """A copy in page-locked memory; called by a thread of torch's DataLoader, in the process of the training."""
        return _loaded(_rings[self.ring].copies(self.place, pin=True), self.indices, self.turns)

    def copied(self) -> Loaded:
        """A copy in this process's memory."""
        return _loaded(_rings[self.ring].copies(self.place, pin=False), self.indices, self.turns)


@dataclass(frozen=True)
class _Refused:
    """An error meant for the user, on its way from a worker: torch would put the worker's traceback into its message."""

    error: UserError


def default_workers(device: torch.device, ranks_here: int = 1) -> int:
    """Worker processes of a rank: none where the CPU computes, else a share of the cores, four at most.

    Args:
        device: the rank's.
        ranks_here: ranks on this machine.
    """
    return 0 if device.type == "cpu" else min(_MOST_WORKERS, cores().amount // ranks_here)


class Loader:
    """Batches in order, from any place on.

    Everything random about a volume is a function of the seed and its position in the sequence, so batches do not depend on the
    number of ranks, of workers, or on where a training was resumed.

    Args:
        dataset: the volumes.
        order: which of them make a batch.
        draw: random numbers of one volume for a turn: number of the turn, generator on the CPU.
        turns: how many turns a step has.
        num_workers: processes that prepare batches; 0: this one does, when it is asked.
        pin: copy batches to page-locked memory; where there is CUDA.

    Attributes:
        waited_s: how long `next` of the batches took so far, seconds.
    """

    def __init__(
        self,
        dataset: ViewDataset | EncodedDataset,
        order: Order,
        draw: Callable[[int, torch.Generator], Draws],
        turns: int,
        num_workers: int,
        pin: bool,
    ) -> None:
        self._batches = partial(_Batches, dataset, order, draw, turns)
        self._num_workers = num_workers
        self._pin = pin
        self.waited_s = 0.0

    def batches(self, first_place: int) -> Iterator[Loaded]:
        """This rank's share of every batch from a place on, without end; workers end when the iterator is closed or dropped.

        Workers are forked when the first batch is asked for: from the main thread, and while no other thread draws from torch's
        global generator, whose lock they would inherit.

        Raises:
            MissingArtifactError, DamagedArtifactError: files of a volume are not those that were committed.
            RuntimeError: a worker process died.
        """
        workers: dict[str, Any] = {}
        # torch asks for the batch `_AHEAD * workers` after the one that it returns, which is still to be copied then
        batches = self._batches(_AHEAD * self._num_workers + 1 if self._num_workers else 0)
        if self._num_workers:
            workers = {
                "num_workers": self._num_workers,
                "prefetch_factor": _AHEAD,
                "multiprocessing_context": "fork",  # shares the cache and the opened store
                "worker_init_fn": begin_worker,
            }
        # The places are the order of the sampler; each item is a whole batch.
        made: Any = DataLoader(batches, batch_size=None, sampler=_From(first_place), pin_memory=self._pin, **workers)
        iterator = self._timed(made)
        _running.add(iterator)
        return iterator

    def _timed(self, made: Any) -> Generator[Loaded, None, None]:
        found = begun(made)
        workers = list(getattr(found, "_workers", []))
        try:
            while True:
                began = time.monotonic()
                loaded = self._next(found, workers)
                self.waited_s += time.monotonic() - began
                yield loaded
        finally:
            del found  # torch asks the workers to end, and waits some seconds
            for worker in workers:
                worker.kill()

    def _next(self, found: Iterator[Any], workers: list[Any]) -> Loaded:
        error = None
        try:
            loaded = None if dead(workers) else next(found)
        except RuntimeError as error_of_torch:
            if not dead(workers):
                raise
            loaded, error = None, error_of_torch
        if loaded is None:
            raise RuntimeError(
                f"A process that prepares training volumes died ({', '.join(dead(workers))}). If memory was short, set a smaller "
                f"cache_mb, a cache_dir, or fewer loader_workers (now {self._num_workers}; 0: none)."
            ) from error
        if isinstance(loaded, _Refused):
            raise loaded.error
        return loaded.copied() if isinstance(loaded, _Ready) else loaded


class _Batches(Dataset[Any]):
    """Batches by place; `num_slots`: places in memory shared with workers, 0: each batch in memory of its own."""

    def __init__(
        self,
        dataset: ViewDataset | EncodedDataset,
        order: Order,
        draw: Callable[[int, torch.Generator], Draws],
        turns: int,
        num_slots: int,
    ) -> None:
        self._dataset = dataset
        self._order = order
        self._draw = draw
        share = len(order.numbers(0))
        self._layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            _VOLUMES: ((share, *dataset.shape), torch.float32),
            _EDGES: ((share,), torch.int64),
        }
        if dataset.masker is not None:
            self._layout[_MASKS] = ((share, *dataset.masker.shape), torch.float32)
        self._turns = turns
        for turn in range(turns):
            for name, value in draw(turn, torch.Generator()).items():
                self._layout[_name(turn, name)] = ((share, *value.shape), value.dtype)
        self._slots = Slots(num_slots, self._layout) if num_slots else None
        if self._slots:
            _rings[id(self._slots)] = self._slots

    def __getitem__(self, place: int) -> Loaded | _Ready | _Refused:
        numbers = self._order.numbers(place)
        indices = [self._order.index(number) for number in numbers]
        if self._slots:
            tensors = self._slots.views(place)
        else:
            tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in self._layout.items()}
        try:
            for row, number in enumerate(numbers):
                self._fill(row, number, indices[row], tensors)
        except UserError as error:
            return _Refused(error)
        if self._slots:
            return _Ready(id(self._slots), place, indices, self._turns)
        return _loaded(tensors, indices, self._turns)

    def _fill(self, row: int, number: int, index: int, tensors: Draws) -> None:
        """Write the volume at a position of the sequence, and what is drawn for it, into a row of the tensors."""
        seed = self._order.seed
        change = self._dataset.augmentation.draw(volume_seed(seed, number, 0))
        volume = self._dataset.get(index, change)
        tensors[_VOLUMES][row], tensors[_EDGES][row] = volume, change.edge
        if self._dataset.masker is not None:
            tensors[_MASKS][row] = self._dataset.masker.of(volume, change.edge)
        for turn in range(self._turns):
            generator = torch.Generator().manual_seed(volume_seed(seed, number, 1 + turn))
            for name, value in self._draw(turn, generator).items():
                tensors[_name(turn, name)][row] = value


def _name(turn: int, name: str) -> str:
    return f"{turn}:{name}"


def _loaded(tensors: Draws, indices: list[int], turns: int) -> Loaded:
    """A batch of its tensors by the names that `_Batches` gives them."""
    draws: tuple[Draws, ...] = tuple({} for _ in range(turns))
    for name, value in tensors.items():
        if name not in (_VOLUMES, _EDGES, _MASKS):
            turn, _, plain = name.partition(":")
            draws[int(turn)][plain] = value
    return Loaded(tensors[_VOLUMES], indices, draws, tensors[_EDGES], tensors.get(_MASKS))


class _From:
    """All places from one on."""

    def __init__(self, first: int) -> None:
        self._first = first

    def __iter__(self) -> Iterator[int]:
        return count(self._first)


@atexit.register
def _end_workers() -> None:
    """Before multiprocessing's own end, which would wait for them."""
    for batches in list(_running):
        batches.close()
