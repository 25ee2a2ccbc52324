"""Kill -9 an ingest while it works, again and again: random workers, the run alone, or everything.

The store ends as if nothing had happened: the same snapshot as of an uninterrupted ingest with the same key, no volume twice.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from storage.phantom.series import write_demo_data
from storage.snapshots import load_snapshot, newest
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tasks.maintain.verify import verify_store

CONFIG = {"spacing_mm": 2.0, "num_workers": 2, "patient_key_file": None}
WHO = ("everything", "workers", "run")  # of three rounds in turn
_UNTIL_S = 300  # an ingest whose workers were killed ends by itself


def run(root: Path, rounds: int) -> dict[str, Any]:
    """Disturb `rounds` ingests at random moments, then let one finish; figures of what was found.

    "everything": run and workers die at once. "workers": one or two workers die while the run goes on, which replaces them, does
    their scans again and ends. "run": the run dies, its workers are left to notice.

    Raises: AssertionError: a committed volume is damaged or there twice, a run did not survive its workers, workers survived
        their run, or the final store differs from an uninterrupted one.
    """
    write_demo_data(root / "source", num_patients=8, small=True)
    began = time.monotonic()
    whole = ingest(root / "source", root / "whole", _config(root))
    seconds = time.monotonic() - began
    chance = random.Random(7)
    committed, staged, killed = [], 0, Counter[str]()
    for number in range(rounds):
        if number == 0 or committed[-1] == len(whole.committed):  # nothing would be left to disturb
            shutil.rmtree(root / "killed", ignore_errors=True)
        who = WHO[number % len(WHO)]
        child = subprocess.Popen([sys.executable, "-m", "tests.drills.kill_ingest", "ingest", str(root)])
        _wait_for_writing(child, root / "killed", chance)
        time.sleep(chance.uniform(0.0, 1.0))
        killed[f"{who}: processes"] += _kill(child, who, chance)
        killed[who] += 1
        if who == "workers":
            assert child.wait(_UNTIL_S) == 0, "the run did not survive its workers"
        store = VolumeStore.open(root / "killed")
        for volume_id in store.volume_ids():
            store.verify(volume_id)  # what is committed is complete
        committed.append(len(store.volume_ids()))
        staged += any(path.name.endswith(".tmp") for path in (root / "killed" / "volumes").iterdir())
    final = ingest(root / "source", root / "killed", _config(root))
    assert final.snapshot == whole.snapshot, (final, whole)
    _check_once(root / "killed", root / "whole")
    assert verify_store(root / "killed", num_workers=1) == ([], [])
    leftovers = [path.name for path in (root / "killed").rglob("*.tmp")]
    assert not leftovers, leftovers
    counts = {
        "committed_after_each_kill": committed,
        "killed_while_staging": staged,
        "killed": dict(sorted(killed.items())),
    }
    return {"rounds": rounds, **counts, "uninterrupted_s": round(seconds, 2)}


def _check_once(killed: Path, whole: Path) -> None:
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
    before = len(list((store / "commits").glob("[!.]*.json")))
    if chance.random() < 0.25:
        while child.poll() is None and not (store / "commits").is_dir():
            time.sleep(0.01)
        return
    while child.poll() is None and len(list((store / "commits").glob("[!.]*.json"))) == before:
        time.sleep(0.01)


def _config(root: Path) -> IngestConfig:
    return IngestConfig(**(CONFIG | {"patient_key_file": str(root / "key")}))


def _family(child: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """The processes that a run started, at any depth."""
    try:
        return list(psutil.Process(child.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _kill(child: "subprocess.Popen[bytes]", who: str, chance: random.Random) -> int:
    """Send SIGKILL to some of a run and its processes; how many got it."""
    family = _family(child)
    if who == "workers":
        workers = [one for one in family if _is_worker(one)]
        chosen = chance.sample(workers, min(len(workers), chance.choice((1, 2))))
        return sum(_send(one) for one in chosen)
    if child.poll() is None:
        child.send_signal(signal.SIGKILL)
    count = 1
    if who == "everything":
        count += sum(_send(one) for one in family)
    child.wait()
    _, alive = psutil.wait_procs(family, 60)
    assert not alive, f"processes outlived their run: {alive}"
    return count


def _is_worker(process: psutil.Process) -> bool:
    """Whether a process does a run's work; multiprocessing's resource tracker does not."""
    try:
        return "resource_tracker" not in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _send(process: psutil.Process) -> bool:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


if __name__ == "__main__":
    if sys.argv[1] == "ingest":
        ingest(Path(sys.argv[2]) / "source", Path(sys.argv[2]) / "killed", _config(Path(sys.argv[2])))
    else:
        sys.stdout.write(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
