"""Time and peak memory of exporting a volume of 512 × 512 × 300: `python -m tests.bench.bench_export [FOLDER]`, JSON on stdout.

The volume has the noise of a scan, which decides how long compression takes. Each format is written by a process of its own, three
times; time is the best of them, with the reading of the volume and with fsync, and the peak is that of the process.
"""

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from storage.exports.formats import EXPORTS
from storage.geometry import Volume
from storage.volume_store import VolumeStore
from tasks.export.folder import export
from tasks.export.selection import select
from tests.exported import MARK

SHAPE = (300, 512, 512)
ROUNDS = 3


def make(folder: Path) -> None:
    """A sample store of one volume."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE[1:]), indexing="ij")
    body = np.where(x**2 + 1.4 * y**2 < 0.8, 40.0, -1000.0)
    hu = np.stack([np.maximum(body + rng.normal(0, 15, body.shape), -1024).astype(np.int16) for _ in range(SHAPE[0])])
    store = VolumeStore.create(folder, spacing_mm=0.75, num_levels=1, interpolation="none", synthetic=MARK)
    store.write(Volume(hu, (0.75,) * 3, (0.0,) * 3), volume_id="generated-00000", attributes={"seed": 1})


def measure(store: Path, folder: Path, format: str) -> dict[str, object]:
    """Export once per round."""
    seconds = []
    for index in range(ROUNDS):
        began = time.monotonic()
        export(
            select(VolumeStore.open(store), everything=True),
            format,
            folder / f"{format}-{index}",
            lambda done, total: None,
        )
        seconds.append(time.monotonic() - began)
    size = sum(path.stat().st_size for path in (folder / f"{format}-0").rglob("*") if path.is_file())
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "seconds": round(min(seconds), 2),
        "rounds": [round(s, 2) for s in seconds],
        "mb": size >> 20,
        "peak_mb": peak_mb,
    }


def main(place: str | None) -> None:
    """Make the volume, export it in each format, print JSON."""
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            pool.submit(make, folder / "store").result()
        found: dict[str, object] = {"shape": SHAPE}
        for format in EXPORTS:
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                found[format] = pool.submit(measure, folder / "store", folder, format).result()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
