"""A store of small volumes of odd shapes with a pyramid, and data sets of it."""

from pathlib import Path
from typing import Any

import numpy as np

from prdit_models.intensity import HounsfieldWindow
from storage.geometry import Volume
from storage.volume_store import VolumeStore
from tasks.model.view import ViewConfig
from tasks.train.augmentation import Augmentation
from tasks.train.data import ViewDataset

SHAPES = [(40, 36, 44), (33, 41, 38), (37, 45, 35), (28, 52, 41), (44, 32, 32)]
LEVEL_MB = 1  # a cache that holds every level of every volume


def write_store(path: Path) -> Path:
    """Five volumes of noise around different means, three levels."""
    store = VolumeStore.create(path, spacing_mm=1.0)
    for number, shape in enumerate(SHAPES):
        hu = np.random.default_rng(number).integers(-1024, 600, shape) + 50 * number
        store.write(Volume(hu.astype(np.int16), (1.0,) * 3, (0.0,) * 3), volume_id=f"v{number}", attributes={})
    return path


def dataset(
    store: Path, size: int = 16, augmentation: Augmentation | None = None, cache_mb: int = LEVEL_MB, **more: Any
) -> ViewDataset:
    """A data set of all volumes; boxes of 32 voxels."""
    ids = [f"v{number}" for number in range(len(SHAPES))]
    view = ViewConfig(size=size, edge=32)
    window = HounsfieldWindow.of_mapping(-1000.0, 1000.0, more.pop("mapping", "window"))
    return ViewDataset(VolumeStore.open(store), ids, view, window, cache_mb, augmentation=augmentation, **more)


def damage(store: Path, volume: str, level: int) -> Path:
    """Change one byte of a level's shard; its path."""
    shard = next(path for path in sorted((store / "volumes").glob(f"{volume}-*/{level}/c/**/*")) if path.is_file())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    return shard
