"""Ports for servers that tests start a moment later."""

import random
import socket
from contextlib import ExitStack

_FIRST, _END = 20_000, 32_000  # the system gives connections ports above these, also between our look and the server's


def free_ports(count: int = 1) -> int:
    """The first of so many ports in a row on which nobody listens on 127.0.0.1."""
    while True:
        first = random.SystemRandom().randrange(_FIRST, _END - count)
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
