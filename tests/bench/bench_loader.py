"""Speed of the training loader: `python -m tests.bench.bench_loader`, JSON on stdout.

Eight phantom-like scans of 300 x 340 x 340 voxels at 1 mm; a view of 256 mm at 128³ or 64³, as level 1 or 2 has it. "Cold": nothing
is cached yet, workers are started, each file is hashed and decoded (from the system's file cache). "Stall": how long a loop that
takes each batch and then waits as long as a device would compute is kept waiting by the loader, share of its time. Processor time
is that of all processes of the loader: on a busy machine it says more than rates.
"""

import json
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from prdit_models.intensity import HounsfieldWindow
from storage.geometry import Volume
from storage.volume_store import VolumeStore
from tasks.model.view import ViewConfig
from tasks.train.augmentation import Augmentation, AugmentationConfig
from tasks.train.data import ViewDataset
from tasks.train.loader import Draws, Loader, Order

SHAPE = (300, 340, 340)
VOLUMES = 8
ROUNDS = 3
TURNED = AugmentationConfig(rotation_deg=10, scale=0.1)
EVERY = AugmentationConfig(flip=0.5, offset_hu=20, gain=0.05)


def write_store(path: Path) -> VolumeStore:
    """A trunk with lungs and CT-like noise, so that it compresses as scans do."""
    store = VolumeStore.create(path, spacing_mm=1.0)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE], indexing="ij")
    for number in range(VOLUMES):
        hu = (x**2 + 2 * y**2 < 0.8) * 1040.0 - 1000.0
        hu += ((np.abs(x) - 0.4) ** 2 + y**2 + 0.3 * z**2 < 0.08 + 0.005 * number) * -850.0
        hu += np.random.default_rng(number).normal(0, 25, SHAPE)
        stored = np.clip(hu, -1024, 3000).astype(np.int16)
        store.write(Volume(stored, (1.0,) * 3, (0.0,) * 3), volume_id=f"v{number}", attributes={})
    return store


def nothing(turn: int, generator: torch.Generator) -> Draws:
    """No random numbers: the loader alone."""
    return {}


class Noise:
    """Noise of a volume, as a family draws it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, turn: int, generator: torch.Generator) -> Draws:
        return {"noise": torch.randn((1, self.size, self.size, self.size), generator=generator)}


def dataset(store: VolumeStore, size: int, augmentation: Augmentation, cache_mb: int = 1024) -> ViewDataset:
    ids = [f"v{number}" for number in range(VOLUMES)]
    return ViewDataset(store, ids, ViewConfig(size=size), HounsfieldWindow(), cache_mb, augmentation=augmentation)


def rate(data: ViewDataset, workers: int, batches: int, draw: Any = nothing, start: int = 0) -> tuple[float, float]:
    """Volumes per second of a loader after its first `start` batches of two, and processor time per volume in ms."""
    made = Loader(data, Order(VOLUMES, 2, seed=1), draw, 1, workers, pin=False)
    with closing(made.batches(0)) as iterator:  # type: ignore[type-var]
        for _ in range(start):
            next(iterator)
        began, used = time.monotonic(), processor_s()
        for _ in range(batches):
            next(iterator)
        return 2 * batches / (time.monotonic() - began), 1e3 * (processor_s() - used) / (2 * batches)


def processor_s() -> float:
    """Processor time of this process and its workers."""
    own = psutil.Process()
    return sum(times.user + times.system for times in (p.cpu_times() for p in (own, *own.children())))


def warm(data: ViewDataset) -> ViewDataset:
    for index in range(VOLUMES):
        data.get(index)
    return data


def rates(store: VolumeStore, size: int, workers: int) -> list[dict[str, Any]]:
    """Medians of several runs; each starts with all volumes cached unless named otherwise."""
    found: dict[str, list[tuple[float, float]]] = {}
    batches = 24 if size == 128 else 100
    shifted = Augmentation(max_shift=16)
    for _ in range(ROUNDS):
        for what, augmentation, cache_mb, number, draw in (
            ("cold", Augmentation(), 1024, VOLUMES // 2, nothing),
            ("warm", Augmentation(), 1024, batches, nothing),
            ("warm, shifted", shifted, 1024, batches, nothing),
            ("warm, shifted, flip, intensity", Augmentation(EVERY, 16), 1024, batches, nothing),
            ("warm, shifted, turned, magnified", Augmentation(TURNED, 16), 1024, batches // 2, nothing),
            ("warm, shifted, with noise drawn", shifted, 1024, batches, Noise(size)),
            ("no cache", Augmentation(), 0, VOLUMES, nothing),
        ):
            data = dataset(store, size, augmentation, cache_mb)
            ahead = 1 + 2 * workers  # what is prepared before the clock starts
            start = 0 if what == "cold" else ahead
            found.setdefault(what, []).append(rate(warm(data) if start else data, workers, number, draw, start))
    rows = []
    for what, values in found.items():
        per_s, cpu_ms = (statistics.median(column) for column in zip(*values, strict=True))
        head = {"size": f"{size}³", "workers": workers, "what": what}
        rows.append({**head, "volumes/s": round(per_s, 1), "CPU ms per volume": round(cpu_ms, 2)})
    return rows


def stall(store: VolumeStore, workers: int, per_s: int) -> dict[str, Any]:
    """Share of the time that a loop over shifted 64³ boxes with noise waits, on a device of that many volumes per second."""
    data = warm(dataset(store, 64, Augmentation(max_shift=16)))
    made = Loader(data, Order(VOLUMES, 2, seed=1), Noise(64), 1, workers, pin=False)
    with closing(made.batches(0)) as iterator:  # type: ignore[type-var]
        next(iterator)
        made.waited_s = 0.0
        began = time.monotonic()
        for _ in range(20):
            next(iterator)
            time.sleep(2 / per_s)
        share = made.waited_s / (time.monotonic() - began)
    return {"size": "64³", "workers": workers, "what": f"device of {per_s} volumes/s", "stall share": round(share, 4)}


def floor(size: int) -> float:
    """Volumes per second if a volume were one copy of its int16 box to float32 and one of the result."""
    box, out, other = np.ones((size,) * 3, np.int16), *(np.empty((size,) * 3, np.float32) for _ in range(2))
    out[...] = box
    began = time.monotonic()
    for _ in range(20):
        out[...] = box
        other[...] = out
    return 20 / (time.monotonic() - began)


def main() -> None:
    """Write a store, measure, print, delete."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "store")
        rows = [row for size in (128, 64) for workers in (0, 2) for row in rates(store, size, workers)]
        rows += [stall(store, workers, per_s) for workers, per_s in ((0, 2), (2, 2), (0, 50), (2, 50), (2, 100))]
    notes = [f"Floor, one thread: {floor(size):.0f} volumes/s at {size}³." for size in (128, 64)]
    sys.stdout.write(json.dumps({"title": "Training loader, volumes/s", "rows": rows, "notes": notes}) + "\n")


if __name__ == "__main__":
    main()
