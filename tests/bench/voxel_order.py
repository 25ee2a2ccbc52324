"""Do the metrics on voxels order real, blurred and noised volumes? `python -m tests.bench.voxel_order [STORE]`.

Every second volume of a store, or of 24 phantoms, against the others as they are, blurred and noised, as an evaluation does (which
also keeps patients apart). Prints one JSON object: by volume edge, the figures and which are blind.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from prdit_models.metrics.metric import METRICS, Comparison, Side
from prdit_models.metrics.order import DEGRADATIONS, blind, degraded
from storage.volume_store import VolumeStore
from tests.bench.bench_voxel_metrics import Hu, phantom, setting_of
from tests.phantoms import BOX_MM

SIZES = (32, 64, 128)
NAMES = ("hu", "memorisation", "ms_ssim", "spectrum")
NUM_PHANTOMS = 24


def volumes_of(store: Path | None, size: int) -> list[Hu]:
    """Volumes in a box of 256 mm, saturated."""
    if store is None:
        return [phantom(k, size) for k in range(NUM_PHANTOMS)]
    opened = VolumeStore.open(store)
    edge = round(BOX_MM / opened.spacing_mm)
    return [np.clip(opened.read_view(name, size, edge), -1000, 1000) for name in opened.volume_ids()]


def side_of(volumes: list[Hu], size: int) -> Side:
    """What an evaluation keeps of volumes."""
    setting = setting_of(size)
    names = tuple(map(str, range(len(volumes))))
    seen = {name: [METRICS[name].of_volume(hu, setting) for hu in volumes] for name in NAMES}
    return Side(names, np.zeros((len(names), 1), np.float32), seen, read=lambda name: volumes[int(name)])


def ordered(volumes: list[Hu], size: int) -> dict[str, object]:
    """Figures of the first half against the second one, and the blind ones."""
    setting = replace(setting_of(size), trained_on_split=False, reference=True)
    real, rest = side_of(volumes[::2], size), volumes[1::2]
    found = {}
    for how in DEGRADATIONS:
        worse = side_of([np.clip(degraded(hu, how, k), -1000, 1000) for k, hu in enumerate(rest)], size)
        results: list[Comparison] = [METRICS[name].compare(real, worse, setting) for name in NAMES]
        found[how] = {name: figure for each in results for name, figure in each.figures.items()}
    about = {name: each for metric in NAMES for name, each in METRICS[metric].figures.items()}
    values = {
        name: [None if found[how][name].value is None else round(found[how][name].value, 4) for how in DEGRADATIONS]
        for name in found["real"]
        if about[name].better or name.startswith(("spectrum", "ms_ssim", "pairwise"))
    }
    return {"real, blurred, noised": values, "blind": sorted(blind(about, found))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", nargs="?", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {str(size): ordered(volumes_of(arguments.store, size), size) for size in SIZES}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
