"""Kill -9 an ingest (parent and workers) at random moments, again and again: the store ends as if nothing had happened."""

import json
import random
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

CONFIG = {"spacing_mm": 2.0, "num_workers": 2, "patient_key_file": None}


def run(root: Path, rounds: int) -> dict[str, Any]:
    """Kill `rounds` ingests, then let one finish; figures of what was found.

    Raises: AssertionError: a committed volume is damaged, or the final store differs from an uninterrupted one.
    """
    write_demo_data(root / "source", num_patients=3, small=True)
    began = time.monotonic()
    whole = ingest(root / "source", root / "whole", _config(root))
    seconds = time.monotonic() - began
    chance = random.Random(7)
    committed = []
    for _ in range(rounds):
        child = subprocess.Popen([sys.executable, "-m", "tests.drills.kill_ingest", "ingest", str(root)])
        time.sleep(chance.uniform(0.2, 1.2) * seconds)
        _kill_tree(child)
        store = VolumeStore.open(root / "killed") if (root / "killed" / "zarr.json").is_file() else None
        for volume_id in store.volume_ids() if store else []:
            store.verify(volume_id)  # what is committed is complete
        committed.append(len(store.volume_ids()) if store else 0)
    final = ingest(root / "source", root / "killed", _config(root))
    assert final.fingerprint == whole.fingerprint, (final, whole)
    leftovers = [path.name for path in (root / "killed" / "volumes").iterdir() if path.name.startswith(".")]
    assert not leftovers, leftovers
    for volume_id in VolumeStore.open(root / "killed").volume_ids():
        VolumeStore.open(root / "killed").verify(volume_id)
    return {"rounds": rounds, "committed_after_each_kill": committed, "uninterrupted_s": round(seconds, 2)}


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
