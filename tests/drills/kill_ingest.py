"""Kill -9 an ingest while it works, again and again: random workers, the run alone, or everything.

The store ends as if nothing had happened: the same snapshot as of an uninterrupted ingest with the same key, no volume twice.
"""

import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from storage.phantom.series import write_demo_data
from storage.snapshots import load_snapshot, newest
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tasks.maintain.verify import verify_store
from tasks.run.runners import Local
from tests.drills.killing import kill_in_turn, verified, wait_for_commits

CONFIG = {"spacing_mm": 2.0, "patient_key_file": None}


def run(root: Path, rounds: int) -> dict[str, Any]:
    """Disturb `rounds` ingests at random moments, then let one finish; figures of what was found.

    "everything": run and workers die at once. "workers": one or two workers die while the run goes on, which replaces them, does
    their scans again and ends. "run": the run dies, its workers are left to notice.

    Raises: AssertionError: a committed volume is damaged or there twice, a run did not survive its workers, workers survived
        their run, or the final store differs from an uninterrupted one.
    """
    write_demo_data(root / "source", num_patients=8, small=True)
    began = time.monotonic()
    whole = ingest(root / "source", root / "whole", _config(root), runner=Local(2))
    seconds = time.monotonic() - began
    chance = random.Random(7)
    committed, staged, killed = [], 0, Counter[str]()
    for number in range(rounds):
        if number == 0 or committed[-1] == len(whole.committed):  # nothing would be left to disturb
            shutil.rmtree(root / "killed", ignore_errors=True)
        child = subprocess.Popen([sys.executable, "-m", "tests.drills.kill_ingest", "ingest", str(root)])
        _wait_for_writing(child, root / "killed", chance)
        time.sleep(chance.uniform(0.0, 1.0))
        killed.update(kill_in_turn(child, number, chance))
        committed.append(verified(root / "killed"))
        staged += any(path.name.endswith(".tmp") for path in (root / "killed" / "volumes").iterdir())
    final = ingest(root / "source", root / "killed", _config(root), runner=Local(2))
    assert final.snapshot == whole.snapshot, (final, whole)
    check_once(root / "killed", root / "whole")
    assert verify_store(root / "killed", num_workers=1) == ([], [])
    leftovers = [path.name for path in (root / "killed").rglob("*.tmp")]
    assert not leftovers, leftovers
    counts = {
        "committed_after_each_kill": committed,
        "killed_while_staging": staged,
        "killed": dict(sorted(killed.items())),
    }
    return {"rounds": rounds, **counts, "uninterrupted_s": round(seconds, 2)}


def check_once(killed: Path, whole: Path) -> None:
    """Every scan is one volume, the same as in the store that nothing disturbed."""
    volumes = {}
    for store in (VolumeStore.open(killed), VolumeStore.open(whole)):
        listed = load_snapshot(newest(store)).volumes
        scans = Counter(getattr(store.commit_record(volume_id).scan, "scan", None) for volume_id in store.volume_ids())
        assert {scan: count for scan, count in scans.items() if count > 1} == {}, scans
        assert set(listed) == set(store.volume_ids())
        volumes[store.path] = set(listed)
    assert len({frozenset(found) for found in volumes.values()}) == 1, volumes


def _wait_for_writing(child: "subprocess.Popen[bytes]", store: Path, chance: random.Random) -> None:
    """Wait until the child commits its next volume (or ends); one time in four only until it works at all."""
    if chance.random() < 0.25:
        while child.poll() is None and not (store / "commits").is_dir():
            time.sleep(0.01)
        return
    wait_for_commits(child, store, 1)


def _config(root: Path) -> IngestConfig:
    return IngestConfig(**(CONFIG | {"patient_key_file": str(root / "key")}))


if __name__ == "__main__":
    if sys.argv[1] == "ingest":
        ingest(Path(sys.argv[2]) / "source", Path(sys.argv[2]) / "killed", _config(Path(sys.argv[2])), runner=Local(2))
    else:
        sys.stdout.write(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
