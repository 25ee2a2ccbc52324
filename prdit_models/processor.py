"""Which processor this is: some of its libraries are faster or repeatable only when chosen for it."""

import functools
from pathlib import Path


@functools.cache
def processor() -> str:
    """`/proc/cpuinfo`, with vendor and instruction sets of the processors; empty where it does not exist."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
