"""Start and stop a node process as a subprocess."""

import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

logger = logging.getLogger("prdit.launch")


def python_module(module: str) -> list[str]:
    """The command of a module with this Python."""
    return [sys.executable, "-m", module]


def node_command(order: Path, *, node: int, host: str) -> list[str]:
    """The command of a node process.

    Args:
        order: its job's file.
        node: its number.
        host: address at which nodes reach node 0.
    """
    return [*python_module("tasks.run.launchers.node"), str(order), "--node", str(node), "--host", host]


def node_environment() -> dict[str, str]:
    """This process's environment, in which another Python imports from where this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def start_node(order: Path, *, node: int, host: str) -> subprocess.Popen[bytes]:
    """Start a node process that ends with this one. Arguments as `node_command`."""
    log = order.parent / f"node-{node}.log"
    command = [*node_command(order, node=node, host=host), "--parent", str(os.getpid())]
    with log.open("ab") as output:  # for what is said before it opens its log itself
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=node_environment(),
            start_new_session=True,  # Ctrl-C is for the process that waits
        )


def stop_node(process: subprocess.Popen[bytes], stop_s: float) -> None:
    """Ask a node process to stop its ranks; kill them all when they do not end in time."""
    process.terminate()
    try:
        process.wait(stop_s)
    except subprocess.TimeoutExpired:
        logger.warning("the node process (pid %d) did not stop within %.0f s and is killed", process.pid, stop_s)
    finally:  # also when the wait is interrupted: whoever asks twice does not want to wait
        kill_node(process)


def kill_node(process: subprocess.Popen[bytes]) -> None:
    """End a node process and its ranks at once, where they still run."""
    if process.poll() is not None:
        return
    with suppress(psutil.Error):
        for rank in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                rank.kill()
    process.kill()
    process.wait()
