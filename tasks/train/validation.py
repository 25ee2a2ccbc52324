"""Losses on held-out volumes, over all ranks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from storage.errors import InputError
from tasks.train.ranks import Ranks
from tasks.train.setup import Assembly
from tasks.train.state import TrainedArrays

Losses = dict[str, float]


class Validation:
    """Validation of a training.

    Args:
        assembly: what is trained; has this rank's share of the held-out volumes.
        arrays: the weights and their average.
        batch_size: volumes that this rank computes together at most.
        ranks: which of the processes this is.
    """

    def __init__(self, assembly: Assembly, arrays: TrainedArrays, batch_size: int, ranks: Ranks) -> None:
        self._assembly = assembly
        self._arrays = arrays
        self._batch_size = batch_size
        self._ranks = ranks
        self._names: list[str] = []

    def __call__(self) -> tuple[Losses, Losses]:
        """Losses of the weights and of their average, `loss` among them; the same on every rank."""
        self._ranks.share(list(self._arrays.buffers.values()))
        raw = self._measured()
        with averaged(self._arrays):
            return raw, self._measured()

    def _measured(self) -> Losses:
        assembly, held_out = self._assembly, self._assembly.held_out
        module, count = assembly.module, len(held_out.volumes)
        found: Losses = {}
        if count:
            module.eval()
            with torch.no_grad():
                found = assembly.family.validate(module, held_out, assembly.training, self._batch_size)
            module.train()
            if "loss" not in found:
                raise InputError(
                    f"Family {assembly.info.family!r} validates to {sorted(found)}; expected 'loss' among them."
                )
        if not self._names:  # ranks without a held-out volume learn the names from the first one, which has some
            self._names = self._ranks.texts("\n".join(found))[0].split("\n")
        return self._ranks.mean_of(found, count, self._names)


@contextmanager
def averaged(arrays: TrainedArrays) -> Iterator[None]:
    """The module with the average of its weights inside the block."""
    arrays.swap()
    try:
        yield
    finally:
        arrays.swap()
