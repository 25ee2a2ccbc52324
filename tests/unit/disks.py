"""Real small and read-only file systems for tests, and a process that permissions hold for."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[Path]:
    """A file system of its own, so small that it fills up; skips where nothing can be mounted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "prdit-test", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave_kib: int = 0) -> Path:
    """Take all space of a small disk but some; returns the file that has it."""
    found = os.statvfs(disk)
    path = disk / "filler"
    path.write_bytes(bytes(found.f_bavail * found.f_frsize - leave_kib * 1024))
    return path


def resize(disk: Path, size_kib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size_kib}k", str(disk)], check=True)


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def without_privileges(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user whom permissions hold for; they hold for root without its capability to override them."""
    prefix = [] if os.getuid() else ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    return subprocess.run([*prefix, sys.executable, *arguments], capture_output=True, text=True, check=False)
