"""Seconds and peak memory of ingest per series: `python -m tests.bench.bench_ingest [SOURCE]`, JSON on stdout.

Without SOURCE it takes the CT that `PRDIT_CT_DIR` names, or else the demo's phantoms.
"""

import json
import multiprocessing
import os
import resource
import sys
import tempfile
from pathlib import Path

from storage.phantom.series import write_demo_data
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import open_scan
from tasks.ingest.series import SeriesJob, ingest_series


def measure(job: SeriesJob) -> dict[str, object]:
    """Ingest one scan in a fresh process."""
    result = ingest_series(job)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {key: result.get(key) for key in ("series_uid", "num_slices", "seconds", "reason")} | {"peak_mb": peak_mb}


def _source(scratch: Path) -> Path:
    if len(sys.argv) > 1:
        return Path(sys.argv[1])
    if "PRDIT_CT_DIR" in os.environ:
        return Path(os.environ["PRDIT_CT_DIR"]) / "dicom"
    write_demo_data(scratch / "phantoms", num_patients=4)
    return scratch / "phantoms"


def main() -> None:
    """Measure every CT series of a source, one process each."""
    config = IngestConfig()
    with tempfile.TemporaryDirectory() as folder:
        source = _source(Path(folder))
        store = VolumeStore.create(Path(folder) / "store")
        with open_scan(source, store.path, config) as (scan, _):
            jobs = [SeriesJob(str(source), str(store.path), one, config) for one in scan.scans()]
        rows = []
        for job in jobs:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure, (job,)))
    sys.stdout.write(json.dumps({"title": "Ingest of one series, one thread", "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
