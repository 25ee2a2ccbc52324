"""Send SIGKILL to a run that fills a store, to its workers, or to all of them."""

import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil

from storage.files import entries
from storage.volume_store import VolumeStore

_WHO = ("everything", "workers", "run")  # of three rounds in turn
_UNTIL_S = 300  # a run whose workers were killed ends by itself


def wait_for_commits(child: "subprocess.Popen[bytes]", store: Path, more: int) -> None:
    """Wait until so many more volumes are committed, or the child ends; the store may not be there yet."""
    commits = store / "commits"
    until = len(entries(commits, "*.json")) + more
    while child.poll() is None and len(entries(commits, "*.json")) < until:
        time.sleep(0.005)


def verified(store: Path) -> int:
    """How many volumes are committed; each is complete."""
    opened = VolumeStore.open(store)
    for volume_id in opened.volume_ids():
        opened.verify(volume_id)
    return len(opened.volume_ids())


def kill_in_turn(child: "subprocess.Popen[bytes]", number: int, chance: random.Random) -> Counter[str]:
    """Send SIGKILL to whom it is the turn of in a round; who that was, and how many processes got it.

    Raises: AssertionError: processes outlived their run, or the run did not survive its workers.
    """
    who = _WHO[number % len(_WHO)]
    found = Counter({who: 1, f"{who}: processes": _kill(child, who, chance)})
    if who == "workers":
        assert child.wait(_UNTIL_S) == 0, "the run did not survive its workers"
    return found


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


def _family(child: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """The processes that a run started, at any depth."""
    try:
        return list(psutil.Process(child.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


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
