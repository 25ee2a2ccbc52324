"""Time and peak memory of a scan of many files: `python -m tests.bench.bench_scan [NUMBER [FOLDER]]`, JSON on stdout.

A hundred tiny CT slices of ten series are linked NUMBER times (300,000 unless given) below FOLDER, and scanned twice: first every
file is read, then none. Each scan runs in a process of its own; the peak is that of this process, without the workers.
"""

import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from tasks.ingest.config import IngestConfig
from tasks.ingest.run import open_scan
from tasks.run.runners import Local
from tests.unit.storage.dicom_files import write_series

PER_FOLDER = 1000


def link_files(folder: Path, number: int) -> None:
    """Fill a folder with hard links to a hundred slices; a file system allows some 60,000 links to each."""
    originals = folder.with_name(folder.name + "-originals")
    for k in range(10):
        write_series(originals / str(k), lambda w: np.full(w.shape[:-1], 40.0), shape=(10, 4, 4), uid=f"1.2.3.{k}")
    files = sorted(originals.rglob("*.dcm"))
    for index in range(number):
        place = folder / f"{index // PER_FOLDER:04d}"
        if index % PER_FOLDER == 0:
            place.mkdir(parents=True)
        os.link(files[index % len(files)], place / f"{index:07d}.dcm")
    shutil.rmtree(originals)


def measure(source: Path, store: Path) -> dict[str, object]:
    """Scan once, and go through what was found."""
    began = time.monotonic()
    with open_scan(source, store, IngestConfig(), runner=Local(2)) as (scan, _):
        scanned = time.monotonic() - began
        num_files = max((len(one.files) for one in scan.scans()), default=0)
        num_excluded = sum(1 for _ in scan.exclusions())
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "files": scan.num_files,
        "series": scan.num_scans,
        "files in the largest series": num_files,
        "exclusions": num_excluded,
        "scan, s": round(scanned, 1),
        "with all listed, s": round(time.monotonic() - began, 1),
        "peak_mb": peak_mb,
    }


def main() -> None:
    """Link, scan twice, print, delete."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as folder:
        source, store = Path(folder) / "source", Path(folder) / "store"
        link_files(source, number)
        rows = []
        for what in ("first scan", "nothing has changed"):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                rows.append({"what": what, **pool.submit(measure, source, store).result()})
        cache_mb = round((store.with_name("store.files.sqlite")).stat().st_size / 2**20, 1)
    sys.stdout.write(
        json.dumps({"title": "Scan of a source", "rows": rows, "notes": [f"The cache has {cache_mb} MB."]}) + "\n"
    )


if __name__ == "__main__":
    main()
