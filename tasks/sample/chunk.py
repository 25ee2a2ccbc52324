"""Drawing some batches in one process: what is drawn next overlaps with judging and writing what was drawn before."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from torch import Tensor

from storage.documents.samples import Excluded
from storage.errors import OutOfMemoryError
from tasks.model.compute import pick_device
from tasks.sample.batch import at_the_same_time
from tasks.sample.draw import Drawing, Painter, logger, one_thread_each
from tasks.sample.settle import Attempt, Settler

Batch = tuple[int, ...]  # indices of volumes
Tick = Callable[[int], None]
_TICK_S = 0.2


@dataclass(frozen=True)
class Drawn:
    """What drawing some batches took, and what is missing of them.

    Attributes:
        volumes: drawn, those that were drawn again counted each time.
        seconds: that drawing took; where several threads draw, the sum of theirs.
        excluded: with reasons.
    """

    volumes: int = 0
    seconds: float = 0.0
    excluded: tuple[Excluded, ...] = ()

    def __add__(self, other: "Drawn") -> "Drawn":
        return Drawn(self.volumes + other.volumes, self.seconds + other.seconds, (*self.excluded, *other.excluded))


def draw_chunk(drawing: Drawing, batches: Sequence[Batch], tick: Tick | None = None) -> Drawn:
    """Draw batches and commit their volumes; volumes that are committed already are left as they are.

    The work overlaps within the batches of a call, and is done when it returns.

    Args:
        drawing: from what.
        batches: volumes that are computed together.
        tick: called now and then, in this thread, with the evaluations of the model that are done.
    Raises:
        InputError: the checkpoint cannot be sampled from.
        OutOfMemoryError: not even one volume fits.
        UnwritableError: the disk is full, or read-only.
    """
    device = pick_device(drawing.config)
    painter = Painter(drawing, device)
    if device.type == "cpu":  # the worker that was asked may have had a GPU
        batches = [(index,) for batch in batches for index in batch]
    lanes = at_the_same_time(drawing, len(batches))
    with one_thread_each(device) as begin, Settler(drawing, painter.info) as settler:
        share = _Share(list(batches), settler)
        done = _at_the_same_time(painter, share, lanes, begin, tick) if lanes > 1 else Drawn()
        share.give_back()  # one at a time takes less memory
        done += _Lane(painter, share, tick).run()
        excluded = tuple(sorted(settler.excluded, key=lambda one: one.index))
    return done + Drawn(excluded=excluded)


def _at_the_same_time(
    painter: Painter, share: "_Share", lanes: int, begin: Callable[[], None], tick: Tick | None
) -> Drawn:
    """Let so many threads share the batches; this one waits for them."""

    def work(lane: "_Lane") -> Drawn:
        begin()
        try:
            return lane.run()
        except OutOfMemoryError as error:
            logger.warning("%d volumes at once do not fit; what did not is drawn alone later. %s", lanes, error)
            return lane.drawn

    with ThreadPoolExecutor(lanes, thread_name_prefix="prdit-draw") as threads:
        running = [threads.submit(work, _Lane(painter.another(), share)) for _ in range(lanes)]
        try:
            while not all(future.done() for future in running):
                done, _ = wait(running, _TICK_S, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if tick:
                    tick(share.evaluations)
        finally:
            share.stop.set()
    return sum((future.result() for future in running), Drawn())


class _Stopped(BaseException):
    """The thread that waits has been interrupted, or another one has failed."""


@dataclass
class _Share:
    """What threads that draw at the same time share.

    Attributes:
        open: batches that none has begun.
        lost: batches that did not fit into memory beside others.
        evaluations: of the model that are done, those of volumes that are drawn again left out.
        stop: set when the threads must end.
    """

    open: list[Batch]
    settler: Settler
    lost: list[Batch] = field(default_factory=list)
    evaluations: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    _changing: threading.Lock = field(default_factory=threading.Lock)

    def __iter__(self) -> Iterator[Batch]:
        """Batches of which a volume is missing, until there is none or the threads must end."""
        while not self.stop.is_set():
            with self._changing:
                if not self.open:
                    return
                batch = self.open.pop(0)
            if any(map(self.settler.missing, batch)):
                yield batch

    def count(self, evaluations: int) -> None:
        """Evaluations of some volumes are done."""
        with self._changing:
            self.evaluations += evaluations

    def give_back(self) -> None:
        """Open again what did not fit."""
        self.open += self.lost
        self.stop.clear()


class _Lane:
    """One thread's drawing.

    Args:
        painter: of its own.
        share: what it works on.
        tick: called after each evaluation.
    """

    def __init__(self, painter: Painter, share: _Share, tick: Tick | None = None) -> None:
        self._painter, self._share, self._tick = painter, share, tick
        self.drawn = Drawn()

    def run(self) -> Drawn:
        """Draw until nothing is left."""
        settling: list[Future[list[Attempt]]] = []
        try:
            for batch in self._share:
                settling.append(self._begin([Attempt(index) for index in batch]))
                if len(settling) > 1:
                    self._finish(settling.pop(0))
        except OutOfMemoryError:
            if settling:  # what is drawn must not be lost with what does not fit
                self._finish(settling.pop())
            raise
        if settling:
            self._finish(settling.pop())
        return self.drawn

    def _begin(self, attempts: Sequence[Attempt]) -> "Future[list[Attempt]]":
        """Draw; judging and writing goes on while the next are drawn."""
        share, first, last = self._share, not attempts[0].tried, 0
        began = time.monotonic()

        def count(evaluations: int, total: int, image: Tensor) -> None:
            nonlocal last
            if share.stop.is_set():
                raise _Stopped
            if first:
                share.count(len(image) * (evaluations - last))
                last = evaluations if evaluations < total else 0  # another part of a batch begins anew
            if self._tick:
                self._tick(share.evaluations)

        seeds = [self._painter.drawing.seed(attempt.index, attempt.tried) for attempt in attempts]
        try:
            volumes = self._painter.draw(seeds, count)
        except OutOfMemoryError:
            share.lost.append(tuple(attempt.index for attempt in attempts))
            raise
        self.drawn += Drawn(len(attempts), time.monotonic() - began)
        return share.settler.settle(attempts, volumes)

    def _finish(self, settling: "Future[list[Attempt]]") -> None:
        """Wait until a batch is written, and draw again what must be."""
        while again := settling.result():
            settling = self._begin(again)
