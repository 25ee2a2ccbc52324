"""The node process: `python -m tasks.run.launchers.node ORDER --node N --host ADDRESS` runs the ranks of one node.

It starts and watches the ranks as torchrun does (`tasks.run.launchers.agent`), and itself watches the launcher: it stops them when
the heartbeat in the job's folder ends, when the stop file appears there, or when its parent ends, where it has one to watch.
Its output and that of its ranks go to a file in the folder, so that no pipe fills up, and nobody has to hold standard input open.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tasks.run.launchers.order import BEAT, STOP, STORE, Order, numbered
from tasks.run.machine import cores
from tasks.run.printable import log_printable

_LOOK_S = 0.5
_STUCK_S = 5.0  # a stopped process that does not stop its ranks, or does not end without them, is taken to be stuck
_KILLED_S = 5.0  # between `stop_s`, at which torch kills ranks, and the end of this process in any case
EXIT_LOST = 137
logger = logging.getLogger("prdit.launch")


def main(arguments: list[str] | None = None) -> int:
    """Run the ranks of this node; 0 where they all ended with 0."""
    parser = argparse.ArgumentParser(prog="python -m tasks.run.launchers.node")
    parser.add_argument("order", type=Path, help="file with the job")
    parser.add_argument("--node", type=int, required=True, help="number of this node; 0 hosts the rendezvous store")
    parser.add_argument("--host", required=True, help="address at which nodes reach node 0")
    parser.add_argument("--parent", type=int, help="process without which this one is not to go on")
    parser.add_argument("--start", type=int, default=0, help="how often the same job was started before")
    given = parser.parse_args(arguments)
    order = Order.read(given.order)
    _redirect(Path(order.folder) / f"node-{given.node}.log")
    stopping = threading.Event()
    threading.Thread(target=_watch, args=(order, given.parent, stopping), name="prdit-watch", daemon=True).start()
    logger.info(
        "launch %d of %s: node %d of %d on %s, pid %d, start %d",
        *(order.token, order.name, given.node, order.nodes, socket.gethostname(), os.getpid(), given.start),
    )
    address = given.host if given.node == 0 else _own_address(given.host)
    _set_environment(order, address)
    published = Path(order.folder) / f"{numbered(STORE, order.token)}-{given.start}"
    port = 0 if given.node == 0 else _await_port(published)
    from tasks.run.launchers.agent import Place, run_ranks  # imports torch, after the watch has started

    def publish(port: int) -> None:
        if given.node == 0:
            temporary = published.with_suffix(".new")
            temporary.write_text(str(port), encoding="utf-8")
            temporary.replace(published)

    try:
        code = run_ranks(order, Place(given.node, address, (given.host, port), given.start), stopping, publish)
    except Exception:
        logger.exception("node %d failed", given.node)
        code = 1
    finally:
        _end_children(_KILLED_S)
    logger.info("node %d ends with exit code %d", given.node, code)
    return code


def _redirect(log: Path) -> None:
    """Standard input from nowhere, output to the log; then logging as in every process of ours."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(nothing, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    log_printable("%(asctime)s %(levelname)s %(name)s: %(message)s", short=False)


def _set_environment(order: Order, address: str) -> None:
    """What ranks find beside torchrun's variables."""
    new = {
        "PRDIT_COLLECTIVE_TIMEOUT_S": str(order.timeout_s),
        "PRDIT_NODE_PID": str(os.getpid()),
        "PRDIT_WORLD": f"{order.min_nodes * order.ranks}-{order.nodes * order.ranks}",
    }
    os.environ.update(new)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores().amount // order.ranks)))
    if interface := _interface(address):
        # Without it gloo listens where the host's name leads, which is often nowhere.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _interface(address: str) -> str | None:
    """Name of the network interface that has an address, or the address of a name."""
    with suppress(OSError):
        wanted = {info[4][0] for info in socket.getaddrinfo(address, None)}
        for name, parts in psutil.net_if_addrs().items():
            if any(part.address.split("%")[0] in wanted for part in parts):
                return name
    return None


def _own_address(host: str) -> str:
    """This machine's address on the way to another; nothing is sent."""
    family, kind, protocol, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def _await_port(published: Path) -> int:
    """The store's port, when node 0 has written it; the watch ends this process if it never does."""
    while not _exists(published):
        time.sleep(_LOOK_S)
    return int(published.read_text(encoding="utf-8"))


def _exists(path: Path) -> bool:
    """Whether a file is there. NFS remembers for a minute that a name was not; listing the folder asks the server."""
    return path in path.parent.iterdir()


def _watch(order: Order, parent: int | None, stopping: threading.Event) -> None:
    """Block until the job has to stop, then see that this process and its ranks end."""
    beat = _Beat(Path(order.folder) / numbered(BEAT, order.token), order.beat_s)
    stop = Path(order.folder) / numbered(STOP, order.token)
    while not (reason := _reason(beat, stop, parent)):
        time.sleep(_LOOK_S)
    logger.warning("%s: ranks are stopped and save first", reason)
    stopping.set()
    os.kill(os.getpid(), signal.SIGTERM)
    began = alone = time.monotonic()
    asked = False
    while time.monotonic() - began < order.stop_s + _KILLED_S:
        if not asked and time.monotonic() - began > _STUCK_S:
            # The main thread can be stuck in a call to a store that does not answer. Not at once: of two signals in a row, the
            # second would interrupt the handler of the first.
            _signal(_children(recursive=False), signal.SIGTERM)
            asked = True
        if _children():
            alone = time.monotonic()
        if time.monotonic() - alone > _STUCK_S:
            break
        time.sleep(_LOOK_S)
    _signal(_children(), signal.SIGKILL)
    logger.warning("the node process did not end by itself")
    os._exit(EXIT_LOST)


def _reason(beat: "_Beat", stop: Path, parent: int | None) -> str:
    """Why the job has to stop; "" while it has not to."""
    if parent is not None and os.getppid() != parent:
        return f"the launcher (pid {parent}) has ended"
    try:
        if _exists(stop):
            return "it was asked for (stop file)"
        if beat.is_over():
            return f"the launcher has not been heard of for {beat.patience_s:.0f} s"
    except FileNotFoundError:
        return f"the folder {stop.parent} is gone"
    except OSError as error:
        logger.warning("the folder cannot be looked at: %s", error)
    return ""


class _Beat:
    """The launcher's heartbeat by this machine's own clock, as clocks of others may differ."""

    def __init__(self, path: Path, patience_s: float) -> None:
        self.patience_s = patience_s
        self._path = path
        self._seen, self._since = -1, time.monotonic()

    def is_over(self) -> bool:
        """Whether it has not changed for too long."""
        seen = -1
        with (
            suppress(FileNotFoundError),
            self._path.open("rb") as file,
        ):  # opened, as NFS then asks the server for its times
            seen = os.fstat(file.fileno()).st_mtime_ns
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        return time.monotonic() - self._since > self.patience_s


def _children(*, recursive: bool = True) -> list[psutil.Process]:
    """Ranks, and with `recursive` what they have started."""
    with suppress(psutil.Error):
        children = psutil.Process().children(recursive=recursive)
        return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return []


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def _end_children(grace_s: float) -> None:
    """End what torch has left: ranks whose start a signal interrupted."""
    _signal(_children(recursive=False), signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while _children() and time.monotonic() < deadline:
        time.sleep(0.1)
    _signal(_children(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
