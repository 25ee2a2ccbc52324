"""Training volumes from a volume store: what is cached of them, and how they become what a model sees."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from prdit_models.intensity import HounsfieldWindow
from storage.geometry import ViewCut
from storage.volume_store import VolumeStore
from tasks.model.view import ViewConfig
from tasks.run.machine import memory_available
from tasks.train.augmentation import Augmentation, Change
from tasks.train.cache import SharedCache
from tasks.train.mask import Masker

_RAM_SHARE = 0.5  # of the free memory that a cache may take; the rest is the training's
logger = logging.getLogger("prdit.train")


class ViewDataset:
    """Volumes of a store as a model sees them.

    Of each volume the whole level that the view is cut from (of several edges perhaps several levels) is cached as stored (int16
    HU), so that every shifted box comes from it; with a published mapping, which reads the full resolution to scale a scan by
    itself, the mapped view of the unchanged box.
    The files of a volume are checked against its commit record before their first use.

    Args:
        store: opened volume store.
        volume_ids: which volumes, in this order.
        view: box and size.
        window: how HU become the model's range.
        cache_mb: MiB for the cache; where not all volumes fit, the first are kept.
        axes: order of the model's axes; `xyz` for models trained on published LIDC arrays.
        augmentation: changes that `Loader` draws.
        cache_dir: folder on a local disk for the cache; None: memory.
        cache_address: `cache_address` of a data set of the same arguments in another process, whose cache is then shared.
        masker: makes the coarse masks of volumes as they are shown; None: none.
    Raises: UnwritableError: the cache folder has no room, or cannot be written to.
    """

    def __init__(
        self,
        store: VolumeStore,
        volume_ids: Sequence[str],
        view: ViewConfig,
        window: HounsfieldWindow,
        cache_mb: int,
        axes: str = "zyx",
        augmentation: Augmentation | None = None,
        cache_dir: Path | None = None,
        cache_address: str | None = None,
        masker: Masker | None = None,
    ) -> None:
        self.masker = masker
        self.augmentation = augmentation or Augmentation()
        self._store = store
        self._ids = list(volume_ids)
        self._view = view
        self._window = window
        self._axes = axes
        self._read_size = view.edge if window.follows_scan else view.size
        self._cuts = [
            [store.cut(name, self._read_size, edge, view.centre) for name in self._ids] for edge in view.edges
        ]
        self._levels = sorted({cut.level for cuts in self._cuts for cut in cuts})
        if window.follows_scan:
            shapes: list[tuple[int, ...]] = [(view.size,) * 3] * len(self._ids)
        else:
            arrays = [store.commit_record(volume_id).arrays for volume_id in self._ids]
            shapes = [of[str(level)].shape for level in self._levels for of in arrays]
        dtype = np.float32 if window.follows_scan else np.int16
        wanted = min(cache_mb * 2**20, sum(int(np.prod(shape)) * np.dtype(dtype).itemsize + 4096 for shape in shapes))
        if cache_dir is None and not cache_address:
            wanted = _within_memory(wanted)
        self._cache = SharedCache(shapes, dtype, wanted, cache_dir, cache_address)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each volume, (1, D, H, W)."""
        return (1, *(self._view.size,) * 3)

    @property
    def cache_address(self) -> str:
        """For another process of this machine that is to share the cache."""
        return self._cache.address

    def get(self, index: int, change: Change | None = None) -> torch.Tensor:
        """One volume in model range, float32, shape (1, D, H, W).

        Args:
            index: which volume.
            change: augmentation; none by default.
        Raises: MissingArtifactError, DamagedArtifactError: its files are not those that were committed.
        """
        change = change or Change()
        seen = self._of_scan(index, change) if self._window.follows_scan else self._of_window(index, change)
        if self._axes == "xyz":
            seen = seen.permute(2, 1, 0)
        return change.flipped(seen).contiguous().unsqueeze(0)

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """Stacked volumes, unchanged, shape (B, 1, D, H, W)."""
        return torch.stack([self.get(index) for index in indices])

    def _of_window(self, index: int, change: Change) -> torch.Tensor:
        cut = self._cut(index, change)
        level = self._level(index, cut.level)
        hu = (
            cut.take(level.shape, level.__getitem__)
            if level is not None
            else self._store.read_cut(self._ids[index], cut)
        )
        return self._window.to_model(change.apply(torch.from_numpy(hu), self._view.size))

    def _level(self, index: int, level: int) -> npt.NDArray[np.int16] | None:
        """The whole level out of the cache, which is filled at first; None where it has no place there."""
        slot = self._slot(index, level)
        with self._cache.locked(slot):
            self._check(index, level)
            if slot in self._cache and self._cache.get(slot) is None:
                self._cache.put(slot, self._store.read_level(self._ids[index], level).hu)
            return self._cache.get(slot)

    def _slot(self, index: int, level: int) -> int:
        """Place of a volume's level in the cache."""
        return self._levels.index(level) * len(self._ids) + index

    def _of_scan(self, index: int, change: Change) -> torch.Tensor:
        cut = self._cut(index, change)
        with self._cache.locked(index):
            self._check(index, cut.level)
            kept = None if change.changes_hu else self._cache.get(index)
            if kept is not None:
                return torch.from_numpy(kept.copy())
            hu = torch.from_numpy(self._store.read_cut(self._ids[index], cut))
            seen = self._window.of_scan(change.apply(hu, self._read_size), self._view.size)
            if not change.changes_hu:
                self._cache.put(index, seen.numpy())
            return seen

    def _cut(self, index: int, change: Change) -> ViewCut:
        margin = change.margin(self._read_size)
        if not any(change.shift) and not margin:
            return self._cuts[change.edge][index]
        centre = self._view.centre
        if any(change.shift):
            middle = centre or [n // 2 for n in self._store.commit_record(self._ids[index]).shape]
            z, y, x = (n + by for n, by in zip(middle, change.shift, strict=True))
            centre = (z, y, x)
        return self._store.cut(self._ids[index], self._read_size, self._view.edges[change.edge], centre, margin)

    def _check(self, index: int, level: int) -> None:
        """Compare the files of a level with the commit record, the first time they are used."""
        slot = self._slot(index, level)
        if not self._cache.touched(slot):
            self._store.check_level(self._ids[index], level)
            self._cache.touch(slot)


def _within_memory(nbytes: int) -> int:
    """A size for a cache in memory, so that it does not fill up hours later what the training needs."""
    most = int(memory_available().amount * _RAM_SHARE)
    if nbytes > most:
        logger.warning(
            "cache of training volumes: %d MiB of memory instead of %d, half of what is free; cache_dir puts it on a local disk",
            most // 2**20,
            nbytes // 2**20,
        )
    return min(nbytes, most)
