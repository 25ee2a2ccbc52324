"""A store in a bucket beside one in a folder: ingest, and views from the server and from copies. Prints JSON.

`python -m tests.bench.bench_bucket [FOLDER WITH SCANS] [ROUNDS]`; without a folder, phantoms. The S3 server is moto, in a process
of its own on the same cores.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from storage.bucket_path import BucketPath
from storage.phantom.series import write_demo_data
from storage.places import as_place
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.s3 import BUCKET, s3_server

_EDGE = 256


def run(root: Path, source: Path | None, rounds: int) -> dict[str, Any]:
    """Medians over rounds that take turns."""
    if source is None:
        source = root / "phantoms"
        write_demo_data(source, num_patients=6)
    places = {"local": root / "store", "bucket": as_place(f"s3://{BUCKET}/store")}
    seconds: dict[str, list[float]] = {name: [] for name in places}
    with s3_server(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRDIT_CACHE", str(root / "cache"))
        patch.chdir(root)
        for _ in range(rounds):
            for name, place in places.items():
                _remove(place)
                for beside in root.glob(".prdit"):
                    shutil.rmtree(beside)
                for beside in (*root.glob("store.*"), root / "cache"):
                    shutil.rmtree(beside) if beside.is_dir() else beside.unlink(missing_ok=True)
                began = time.perf_counter()
                ingest(source, place, IngestConfig(patient_key_file=str(root / "key")), runner=Local(2))
                seconds[name].append(time.perf_counter() - began)
        views = _views(places, root / "cache", rounds)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {
        "ingest_s": {name: round(value, 2) for name, value in medians.items()},
        "ingest_ratio": round(medians["bucket"] / medians["local"], 3),
        "view_128_ms": views,
    }


def _views(places: dict[str, Path], cache: Path, rounds: int) -> dict[str, float]:
    found: dict[str, list[float]] = {"local": [], "server": [], "cache": []}
    stores = {name: VolumeStore.open(place) for name, place in places.items()}
    ids = stores["local"].volume_ids()
    for _ in range(rounds):
        for volume_id in ids:
            shutil.rmtree(cache, ignore_errors=True)
            for name, store in (("local", "local"), ("server", "bucket"), ("cache", "bucket")):
                began = time.perf_counter()
                stores[store].read_view(volume_id, _EDGE // 2, _EDGE)
                found[name].append(1000 * (time.perf_counter() - began))
    return {name: round(statistics.median(each), 1) for name, each in found.items()}


def _remove(place: Path) -> None:
    if isinstance(place, BucketPath):
        place.delete_below()
    else:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        given = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None
        sys.stdout.write(json.dumps(run(Path(folder), given, int(sys.argv[2]) if len(sys.argv) > 2 else 3)) + "\n")
