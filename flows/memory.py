"""Peak memory of a whole process tree, as the sum of proportional set sizes.

PSS shares each page among the processes that map it, so that a sum over workers counts it once; the largest single
process (what `/usr/bin/time -v` shows) and a sum of resident sizes are both wrong for a tree.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import psutil

MIB = 2**20
_LARGEST_SHARE_OF_TIME = 0.02


class PeakMemory:
    """Samples the summed PSS of processes and their descendants in a thread, from `__enter__` to `__exit__`.

    Args:
        pids: roots beside this process, which is always one (services run in sessions of their own).
        interval_s: seconds between samples, at least; a slow sample is followed by a longer pause, so that sampling
            stays below 2 % of one core.

    Attributes:
        peak_bytes: largest sum seen.
        breakdown: `{command: bytes}` at that moment, largest first.
        num_samples: how often memory was read.
    """

    def __init__(self, pids: Iterable[int] = (), *, interval_s: float = 0.5) -> None:
        self._roots = {os.getpid(), *pids}
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peak-memory", daemon=True)
        self.peak_bytes = 0
        self.breakdown: dict[str, int] = {}
        self.num_samples = 0

    def __enter__(self) -> "PeakMemory":
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def watch(self, pids: Iterable[int]) -> None:
        """Add roots, e.g. services started after sampling began."""
        self._roots = self._roots | set(pids)

    def sample(self) -> int:
        """Read once; returns the sum in bytes and keeps it if it is the largest so far."""
        by_command: dict[str, int] = {}
        for pid in tree(self._roots):
            with contextlib.suppress(psutil.Error, OSError):  # ended since the walk
                name = _command(psutil.Process(pid))
                by_command[name] = by_command.get(name, 0) + pss_bytes(pid)
        total = sum(by_command.values())
        self.num_samples += 1
        if total > self.peak_bytes:
            self.peak_bytes = total
            self.breakdown = dict(sorted(by_command.items(), key=lambda item: -item[1]))
        return total

    def _run(self) -> None:
        pause = self._interval_s
        while not self._ended.wait(pause):
            began = time.thread_time()
            self.sample()
            pause = max(self._interval_s, (time.thread_time() - began) / _LARGEST_SHARE_OF_TIME)


def tree(roots: Iterable[int]) -> set[int]:
    """Ids of the roots and all their descendants (one walk over /proc; psutil's `children` takes one walk per root)."""
    parents = _parents()
    members = {pid for pid in roots if pid in parents}
    grown = True
    while grown:
        new = {pid for pid, parent in parents.items() if parent in members and pid not in members}
        members |= new
        grown = bool(new)
    return members


def pss_bytes(pid: int) -> int:
    """Proportional set size of one process, in bytes (its resident size where the kernel denies access to PSS).

    Raises: OSError, psutil.Error: the process is gone.
    """
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except PermissionError:
        pass
    return int(psutil.Process(pid).memory_info().rss)


def _parents() -> dict[int, int]:
    """Process id -> parent id, of every process of the machine."""
    found: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The command name in parentheses may hold spaces and parentheses itself: fields start after the last one.
                found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def _command(process: psutil.Process) -> str:
    """A short name: the module or script a Python runs with its first argument, else the executable."""
    words = [str(word) for word in process.cmdline()]
    if not words:
        return str(process.name())
    if "-m" in words[:-1]:
        at = words.index("-m") + 1
        return " ".join([words[at], *[word for word in words[at + 1 : at + 2] if word[0] not in "-/"]])
    scripts = [word for word in words[1:2] if not word.startswith("-")]
    return " ".join([Path(words[0]).name, *[Path(word).name for word in scripts]])
