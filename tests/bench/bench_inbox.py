"""Time and memory of looks at an inbox of many files: `python -m tests.bench.bench_inbox [NUMBER [FOLDER]]`, JSON on stdout.

NUMBER tiny CT slices (100,000 unless given) of series of 250 are written below FOLDER. A first look reads all, the next nothing,
one more finds one new file; then all are taken. Beside them what cannot be avoided: listing the folders, one stat per file. Each
runs in a process of its own; the peak is that of this process, without the one that reads.
"""

import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from storage.inbox_database import NAME
from storage.inbox_ledger import Ledger
from storage.sources.files import walk_source
from tasks.inbox.batches import take_batch
from tasks.inbox.config import Timing
from tasks.inbox.reconcile import look
from tests.unit.storage.dicom_files import write_series

PER_SERIES = 250
TIMING = Timing(quiet_s=0.1, association_s=0.1, settle_s=0.0)


def write_files(folder: Path, number: int) -> None:
    """Copies of one slice with other UIDs of the same length."""
    write_series(folder / "original", shape=(1, 4, 4), uid="1.2.826.10000000")
    data = (folder / "original" / "000.dcm").read_bytes()
    shutil.rmtree(folder / "original")
    for k in range(number):
        place = folder / f"{k // PER_SERIES:05d}"
        if k % PER_SERIES == 0:
            place.mkdir()
        uid = f"1.2.826.{10_000_001 + k // PER_SERIES}".encode()
        pixels = (k % PER_SERIES).to_bytes(2, "little") * 16  # other content in each
        (place / f"{k:07d}.dcm").write_bytes(data.replace(b"1.2.826.10000000", uid)[:-32] + pixels)


def stats(folder: Path) -> int:
    """Stat every file, by the system's own means."""
    return sum(1 for place, _, names in os.walk(folder) for name in names if os.stat(f"{place}/{name}"))  # noqa: PTH116


def listed(folder: Path) -> int:
    """List it as an ingest does, which follows no link out of the source."""
    return sum(1 for _ in walk_source(folder))


def looked(folder: Path) -> int:
    """Look once."""
    return look(Ledger(folder.with_name("arrivals")), folder, TIMING).num_files


def taken(folder: Path) -> int:
    """Take everything, in one batch after the other."""
    ledger = Ledger(folder.with_name("arrivals"))
    while batch := take_batch(ledger, folder, timing=TIMING):
        ledger.set_batch(batch.number, "listed")
    return sum(one.num_series for one in ledger.batches()) * PER_SERIES


def measure(what: Callable[[Path], int], folder: Path) -> dict[str, object]:
    """Do it once in this process."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.monotonic()
    found = what(folder)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "files": found,
        "s": round(time.monotonic() - began, 2),
        "processor, s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "peak_mb": after.ru_maxrss // 1024,
    }


def main() -> None:
    """Write, look, print, delete."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as root:
        folder = Path(root) / "inbox"
        folder.mkdir()
        write_files(folder, number)
        rows = []
        steps = {
            "first look": looked,
            "a stat per file": stats,
            "listing as an ingest does": listed,
            "nothing has changed": looked,
            "one new file": looked,
            "every series taken": taken,
            "nothing has changed since": looked,
        }
        for name, step in steps.items():
            if name == "one new file":
                write_files(folder / "new" if (folder / "new").mkdir() is None else folder, 1)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                rows.append({"what": name, **pool.submit(measure, step, folder).result()})
        ledger_mb = round((Path(root) / "arrivals" / NAME).stat().st_size / 2**20, 1)
    notes = [f"The ledger has {ledger_mb} MB."]
    sys.stdout.write(json.dumps({"title": "Looks at an inbox", "rows": rows, "notes": notes}) + "\n")


if __name__ == "__main__":
    main()
