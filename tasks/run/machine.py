"""What this job may use of the machine: cores by affinity and cgroup, memory by cgroup, not what the host has.

Batch systems and container runtimes confine a job by its affinity and by control groups (cgroups, versions 1 and 2). A limit
holds for every group below the one that has it, so all of them up to the root count. `dask.system` and `distributed.system`
read the root alone in version 1 and the innermost group alone in version 2, and not what is used already.
"""

import math
import os
import resource
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SHARING = "PRDIT_SHARING"  # variable of processes that work for runner `local`
_ROOT = Path("/")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


@dataclass(frozen=True)
class Share:
    """How much of something this job may use.

    Attributes:
        amount: cores, or bytes.
        total: what the machine has.
        limit: what sets it: "machine", "affinity", or the file of the cgroup.
    """

    amount: int
    total: int
    limit: str


def cores(root: Path | None = None) -> Share:
    """Cores this process may use: those of its affinity, less where a cgroup has a quota (part of a core counts as one).

    Args:
        root: where `proc` and the cgroup file systems are looked for, instead of `/`.
    """
    total = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    found = Share(allowed, total, "affinity" if allowed < total else "machine")
    for folder in _groups(root or _ROOT, "cpu"):
        for name, quota in _quotas(folder):
            whole = max(1, math.ceil(quota))
            if whole < found.amount:
                found = Share(whole, total, f"cgroup {folder / name}")
    return found


def memory_available(root: Path | None = None) -> Share:
    """Bytes this process can still take: what the machine has free, less where a cgroup is nearer to its limit.

    File cache that the system can drop at once (`inactive_file`) counts as free. `total` is the machine's or the smallest limit.

    Args:
        root: where `proc` and the cgroup file systems are looked for, instead of `/`.
    """
    machine = psutil.virtual_memory()
    available, total, limit = int(machine.available), int(machine.total), "machine"
    for folder in _groups(root or _ROOT, "memory"):
        usage = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        usage -= _inactive_file(folder)
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            most = _number(folder / name)
            if most is None:
                continue
            total = min(total, most)
            if most - usage < available:
                available, limit = max(0, most - usage), f"cgroup {folder / name}"
    return Share(available, total, limit)


def peak_memory() -> int:
    """The most bytes of memory this process has had at a time (its resident set)."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def sharing() -> int:
    """How many processes share this job's cores and memory: those of runner `local`, which tells each of them."""
    return int(os.environ.get(SHARING, "1"))


def limit_threads(environment: MutableMapping[str, str]) -> None:
    """Have the native libraries of a process start as many threads as this job has cores, where nothing else is set.

    Those that count cores themselves (OpenMP, OpenBLAS, ITK) see the affinity, but no cgroup.

    Args:
        environment: of that process, changed in place.
    """
    share = cores()
    if share.amount < share.total:
        for name in _THREAD_VARIABLES:
            environment.setdefault(name, str(share.amount))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the cgroups that hold this process and have a controller, innermost first."""
    paths: dict[str, str] = {}  # by controller; the unified hierarchy of version 2 has an empty name
    for line in _lines(root / "proc/self/cgroup"):
        _, names, path = line.split(":", 2)
        paths |= dict.fromkeys(names.split(","), path)
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, kind = line.partition(" - ")
        fields, (file_system, _, options) = mount.split(), kind.split(maxsplit=2)
        of_v1 = file_system == "cgroup" and controller in options.split(",")
        own = paths.get(controller if of_v1 else "")
        if own is None or not (of_v1 or file_system == "cgroup2"):
            continue
        top = root / fields[4].lstrip("/")
        # In a container, what is mounted may be the container's own group, which the path names as the host does.
        within = Path(own)
        if within.is_relative_to(fields[3]):
            within = within.relative_to(fields[3])
        folder = top / str(within).lstrip("/")
        if ".." in within.parts or not folder.is_dir():
            folder = top
        yield folder
        while folder != top:
            folder = folder.parent
            yield folder


def _quotas(folder: Path) -> Iterator[tuple[str, float]]:
    """Cores' worth of time that a group may use, with the file that says so."""
    for line in _lines(folder / "cpu.max"):
        quota, _, period = line.partition(" ")
        if quota != "max":
            yield "cpu.max", int(quota) / int(period or 100_000)
    quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    if quota_us is not None and quota_us > 0 and period_us:
        yield "cpu.cfs_quota_us", quota_us / period_us


def _inactive_file(folder: Path) -> int:
    values = dict(line.split(maxsplit=1) for line in _lines(folder / "memory.stat"))
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no file, or no limit ("max")."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].lstrip("-").isdigit() else None


def _lines(path: Path) -> list[str]:
    with suppress(OSError):
        return path.read_text(encoding="utf-8").splitlines()
    return []
