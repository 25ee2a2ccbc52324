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

from storage.dicom_scan import scan_files
from storage.phantom.series import write_demo_data
from storage.source_files import list_source
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.series import ingest_series, make_job


def measure(arguments: tuple[object, ...]) -> dict[str, object]:
    """Ingest one series in a fresh process."""
    result = ingest_series(make_job(*arguments))  # type: ignore[arg-type]
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
        scan = scan_files(source, list_source(source).files)
        rows = []
        for number, series in enumerate(scan.series):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure, ((series, source, store.path, str(number), ("bench", True), config),)))
    sys.stdout.write(json.dumps({"title": "Ingest of one series, one thread", "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
