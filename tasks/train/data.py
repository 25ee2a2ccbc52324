"""Training batches from a volume store: views in model range, in an order that is a pure function of seed and step."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from prdit_models.intensity import HounsfieldWindow
from storage.geometry import VIEW_ALIGNMENT
from storage.volume_store import VolumeStore
from tasks.model.view import Shift, ViewConfig, read_as_seen


class ViewDataset:
    """Volumes of a store as a model sees them.

    Args:
        store: opened volume store.
        volume_ids: which volumes, in this order.
        view: box and size.
        window: how HU become the model's range.
        cache_mb: memory for cached views; the least recently used is dropped first.
        axes: order of the model's axes; `xyz` for models trained on published LIDC arrays.
    """

    def __init__(
        self,
        store: VolumeStore,
        volume_ids: Sequence[str],
        view: ViewConfig,
        window: HounsfieldWindow,
        cache_mb: int,
        axes: str = "zyx",
    ) -> None:
        self._store = store
        self._ids = list(volume_ids)
        self._view = view
        self._window = window
        self._axes = axes
        self._shapes = [self._store.commit_record(volume_id).shape for volume_id in self._ids]
        self._cache: OrderedDict[tuple[int, Shift], torch.Tensor] = OrderedDict()
        self._cached_views = cache_mb * 2**20 // (4 * view.size**3)

    def __len__(self) -> int:
        return len(self._ids)

    def get(self, index: int, shift: Shift = (0, 0, 0)) -> torch.Tensor:
        """One volume in model range, shape (1, D, H, W), its box shifted by level-0 voxels (z, y, x)."""
        key = (index, shift)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        middle = self._view.centre or tuple(n // 2 for n in self._shapes[index])
        moved = (middle[0] + shift[0], middle[1] + shift[1], middle[2] + shift[2])
        centre = moved if any(shift) else self._view.centre
        seen = read_as_seen(self._store, self._ids[index], self._view, self._window, centre)
        if self._axes == "xyz":
            seen = seen.permute(2, 1, 0).contiguous()
        volume = seen.unsqueeze(0)
        if self._cached_views:
            self._cache[key] = volume
            while len(self._cache) > self._cached_views:
                self._cache.popitem(last=False)
        return volume

    def batch(self, indices: Sequence[int], shifts: Sequence[Shift] | None = None) -> torch.Tensor:
        """Stacked volumes, shape (B, 1, D, H, W)."""
        return torch.stack(
            [self.get(index, shift) for index, shift in zip(indices, shifts or [(0, 0, 0)] * len(indices), strict=True)]
        )


def batch_shifts(batch_size: int, max_shift: int, seed: int, place: int) -> list[Shift]:
    """Random shifts of a batch's boxes: multiples of 4 level-0 voxels up to `max_shift` on every axis, by (seed, place)."""
    reach = max_shift // VIEW_ALIGNMENT
    draws = np.random.default_rng([seed, place, 1]).integers(-reach, reach, size=(batch_size, 3), endpoint=True)
    return [(int(z), int(y), int(x)) for z, y, x in draws * VIEW_ALIGNMENT]


def batch_indices(num_volumes: int, batch_size: int, seed: int, place: int) -> list[int]:
    """Which volumes make a batch: consecutive positions in an endless sequence of shuffled epochs.

    No volume is used a second time before all were used once, a store smaller than the batch is no special case, and a
    resumed training needs no data position beyond its step.

    Args:
        num_volumes: volumes in the training role.
        batch_size: B.
        seed: of the training.
        place: position of the batch in the sequence of batches, from 0.
    """
    orders: dict[int, npt.NDArray[np.int64]] = {}
    indices = []
    for number in range(place * batch_size, (place + 1) * batch_size):
        epoch, position = divmod(number, num_volumes)
        if epoch not in orders:
            orders[epoch] = np.random.default_rng([seed, epoch]).permutation(num_volumes)
        indices.append(int(orders[epoch][position]))
    return indices
