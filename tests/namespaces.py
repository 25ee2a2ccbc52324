"""Hosts that are network namespaces of this machine, joined by a bridge: they can be cut off, and share every file.

Needs root (or CAP_NET_ADMIN) and `ip`. This process is on the bridge, too.
"""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Host:
    """A namespace.

    Attributes:
        address: its IPv4 address.
        prefix: words before a command that is to run there.
        link: name of this machine's end of its cable.
    """

    address: str
    prefix: tuple[str, ...]
    link: str

    def cut(self) -> None:
        """Take its cable out."""
        _ip("link", "set", self.link, "down")

    def join(self) -> None:
        """Put its cable in again."""
        _ip("link", "set", self.link, "up")


def missing() -> str:
    """Why no namespaces can be made here; "" where they can."""
    if shutil.which("ip") is None:
        return "ip is not on PATH (Debian package iproute2)"
    name = f"prdit-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "network namespaces cannot be made here (they need root)"
    _ip("netns", "del", name)
    return ""


def skip_without_namespaces() -> None:
    """Skip a test where no namespaces can be made."""
    if reason := missing():
        pytest.skip(reason)


@contextmanager
def hosts(count: int) -> Iterator[tuple[str, list[Host]]]:
    """This machine's address on the bridge, and so many hosts; all end with the block."""
    mark = f"{os.getpid() % 0xFFFF:04x}{random.randrange(0xFF):02x}"  # link names have 15 characters at most
    network = f"10.{random.randrange(64, 128)}.{random.randrange(256)}"
    bridge = f"pb{mark}"
    with ExitStack() as stack:
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{network}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        found = []
        for number in range(count):
            name, link = f"prdit-{mark}-{number}", f"pv{mark}{number}"
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", link, "master", bridge, "up")
            prefix = ("ip", "netns", "exec", name)
            for words in (
                ("link", "set", "lo", "up"),
                ("link", "set", "eth0", "up"),
                ("addr", "add", f"{network}.{number + 2}/24", "dev", "eth0"),
            ):
                subprocess.run([*prefix, "ip", *words], check=True)
            found.append(Host(f"{network}.{number + 2}", prefix, link))
        yield f"{network}.1", found


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
