"""Kill -9 an ingest (parent and workers) while it writes, again and again: the store ends as if nothing had happened."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from storage.phantom.series import write_demo_data
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tasks.maintain.verify import verify_store

CONFIG = {"spacing_mm": 2.0, "num_workers": 2, "patient_key_file": None}


def run(root: Path, rounds: int) -> dict[str, Any]:
    """Kill `rounds` ingests, then let one finish; figures of what was found.

    Raises: AssertionError: a committed volume is damaged, or the final store differs from an uninterrupted one.
    """
    write_demo_data(root / "source", num_patients=8, small=True)
    began = time.monotonic()
    whole = ingest(root / "source", root / "whole", _config(root))
    seconds = time.monotonic() - began
    chance = random.Random(7)
    committed, staged = [], 0
    for number in range(rounds):
        if number % 4 == 0:
            shutil.rmtree(root / "killed", ignore_errors=True)
        child = subprocess.Popen([sys.executable, "-m", "tests.drills.kill_ingest", "ingest", str(root)])
        _wait_for_writing(child, root / "killed")
        time.sleep(chance.uniform(0.0, 1.0))
        _kill_tree(child)
        store = VolumeStore.open(root / "killed")
        for volume_id in store.volume_ids():
            store.verify(volume_id)  # what is committed is complete
        committed.append(len(store.volume_ids()))
        staged += any(path.name.endswith(".tmp") for path in (root / "killed" / "volumes").iterdir())
    final = ingest(root / "source", root / "killed", _config(root))
    assert final.snapshot == whole.snapshot, (final, whole)
    assert verify_store(root / "killed", num_workers=1) == ([], [])
    leftovers = [path.name for path in (root / "killed").rglob("*.tmp")]
    assert not leftovers, leftovers
    counts = {"committed_after_each_kill": committed, "killed_while_staging": staged}
    return {"rounds": rounds, **counts, "uninterrupted_s": round(seconds, 2)}


def _wait_for_writing(child: "subprocess.Popen[bytes]", store: Path) -> None:
    """Wait until the child commits its next volume (or ends)."""
    before = len(list((store / "commits").glob("[!.]*.json")))
    while child.poll() is None and len(list((store / "commits").glob("[!.]*.json"))) == before:
        time.sleep(0.01)


def _config(root: Path) -> IngestConfig:
    return IngestConfig(**(CONFIG | {"patient_key_file": str(root / "key")}))


def _kill_tree(child: "subprocess.Popen[bytes]") -> None:
    try:
        family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for process in family:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    child.wait()
    psutil.wait_procs(family, 10)


if __name__ == "__main__":
    if sys.argv[1] == "ingest":
        ingest(Path(sys.argv[2]) / "source", Path(sys.argv[2]) / "killed", _config(Path(sys.argv[2])))
    else:
        sys.stdout.write(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
