"""Seconds and memory of the metrics on voxels: `python -m tests.bench.bench_voxel_metrics`.

Seconds are of the processor on one thread (the least of several), so that other programs do not count; the search for copies is the
whole metric of 1000 samples against 1000 training volumes, read from a volume store.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.metric import METRICS, Setting, Side
from prdit_models.metrics.ms_ssim import ms_ssim
from storage.geometry import Volume
from storage.volume_store import VolumeStore
from tests.bench.bench_metrics import peak_rss_mib
from tests.phantoms import BOX_MM, phantom_box

Hu = NDArray[np.float32]
Row = dict[str, str | float]
NUM_VOLUMES, NUM_HELD_OUT, WIDTH = 1000, 100, 2048
NUM_STORED = 40
SIZE = 64


def phantom(patient: int, size: int) -> Hu:
    """A phantom patient in a box of 256 mm, saturated to the window."""
    return phantom_box(patient, size, seed=1, noise_hu=30.0)


def least(compute: Callable[[], object], times: int = 5) -> float:
    """Processor seconds of a call, the least of some."""
    found = []
    for _ in range(times):
        began = time.process_time()
        compute()
        found.append(time.process_time() - began)
    return min(found)


def setting_of(size: int) -> Setting:
    """Both sides of an evaluation with every metric's defaults."""
    settings = {name: METRICS[name].settings() for name in METRICS.names()}
    return Setting(HounsfieldWindow(), BOX_MM / size, size, trained_on_split=True, settings=settings)


def of_pairs_and_volumes() -> list[Row]:
    """MS-SSIM of a pair, and what each metric does with one volume."""
    rows: list[Row] = []
    for size in (64, 128):
        volumes = [phantom(k, size) for k in range(2)]
        first, second = (torch.from_numpy(hu / 1000) for hu in volumes)
        seconds = least(lambda first=first, second=second: ms_ssim(first, second))
        rows.append({"what": f"MS-SSIM of a pair, {size}³", "seconds": round(seconds, 4)})
        setting = setting_of(size)
        for name in ("anatomy", "hu", "memorisation", "spectrum"):
            seconds = least(lambda name=name, hu=volumes[0], setting=setting: METRICS[name].of_volume(hu, setting))
            rows.append({"what": f"{name}: one volume, {size}³", "seconds": round(seconds, 4)})
    return rows


def of_search(folder: Path) -> Row:
    """The memorisation report of 1000 samples against 1000 training volumes (and 100 held-out ones)."""
    store = VolumeStore.create(folder / "store", spacing_mm=BOX_MM / SIZE, num_levels=1)
    for patient in range(NUM_STORED):
        hu = np.rint(phantom(patient, SIZE)).astype(np.int16)
        store.write(Volume(hu, (store.spacing_mm,) * 3, (0.0,) * 3), volume_id=f"p{patient}", attributes={})

    def read(name: str) -> Hu:  # as many volumes as named, each read from the store, moved and scaled by its own number
        place = int(name[1:])
        hu = store.read_level(f"p{place % NUM_STORED}").hu.astype(np.float32)
        return np.roll(hu, place // NUM_STORED % 7 - 3, axis=place % 3) * np.float32(1 - place / 20000)

    metric, setting, rng = METRICS["memorisation"], setting_of(SIZE), np.random.default_rng(0)
    sides = []
    for letter, count in (("r", NUM_VOLUMES + NUM_HELD_OUT), ("g", NUM_VOLUMES)):
        names = tuple(f"{letter}{k}" for k in range(count))
        kept = [metric.of_volume(read(name), setting) for name in names]
        roles = ("train",) * NUM_VOLUMES + ("val",) * NUM_HELD_OUT if letter == "r" else ()
        features = rng.normal(size=(count, WIDTH)).astype(np.float32)
        sides.append(Side(names, features, {"memorisation": kept}, roles, read))
    before, began, wall = peak_rss_mib(), time.process_time(), time.perf_counter()
    found = metric.compare(sides[0], sides[1], setting)
    return {
        "what": f"memorisation: {NUM_VOLUMES} samples, {NUM_VOLUMES} training and {NUM_HELD_OUT} held-out volumes, {SIZE}³",
        "seconds": round(time.process_time() - began, 1),
        "wall seconds": round(time.perf_counter() - wall, 1),
        "MiB more than before": round(peak_rss_mib() - before),
        "MiB of the process": round(peak_rss_mib()),
        "copies found": str(found.figures["copy_rate"].value),
    }


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [of_search(Path(folder)), *of_pairs_and_volumes()]
    columns = list(rows[0])
    notes = ["Seconds: of the processor, one thread; BLAS may use more threads for the products of the search."]
    document = {
        "title": "Metrics on voxels",
        "rows": [{column: row.get(column, "") for column in columns} for row in rows],
        "notes": notes,
    }
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
