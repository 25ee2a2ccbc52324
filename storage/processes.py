"""Which process of which machine wrote something, and whether it still lives."""

import hashlib
import os
import socket
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import psutil

HEARTBEAT = "beat"  # and a number: files `beat-7` that the launching process of launch 7 touches every few seconds
_CLOCK_S = 2  # how far two readings of the start of one process may be apart


@lru_cache
def machine() -> str:
    """This machine since its last start, and this container: within one, a process number means one process."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def this_process() -> tuple[int, int]:
    """Number of this process and when it started, in whole seconds of Unix time."""
    return os.getpid(), _started(os.getpid())


@lru_cache
def _started(pid: int) -> int:
    return int(psutil.Process(pid).create_time())


def lives(pid: int, started: int) -> bool:
    """Whether the process of this machine with a number and a start still runs; the number may belong to a later one."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return abs(process.create_time() - started) <= _CLOCK_S and process.status() != psutil.STATUS_ZOMBIE
    return False


def process_token() -> str:
    """This process, as other processes can ask for it with `process_ended`: `<machine>-<pid>-<start time>`."""
    pid, started = this_process()
    return f"{machine()}-{pid}-{started}"


def process_ended(token: str) -> bool | None:
    """Whether the process of a `process_token` has ended; None for one of another machine, which cannot be asked."""
    where, pid, started = token.split("-")
    return None if where != machine() else not lives(int(pid), int(started))
