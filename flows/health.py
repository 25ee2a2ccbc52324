"""Runs beside the services: kills what runs but no longer answers, so that supervisord starts it again.

supervisord itself sees only processes that end. A server is asked for its health page; the Prefect server knows the worker by its
heartbeats; watcher and listener touch a file now and then (tasks/run/heartbeat.py), and must not stand still as after SIGSTOP. One
that gives no sign of life for `--patience` seconds is killed, and one that has just been started when it has given none for 300 s.
A service that supervisord has given up, because it ended again and again while it started, gets another try after `--patience`
seconds: the database or the disk it needed may be back.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from flows import services as local
from flows.servers import is_healthy
from storage.errors import UserError

PATIENCE_S = 120.0
_START_S = 300.0  # a server that starts on a busy machine, migrations of a new database among it
INTERVAL_S = 10.0
_SILENT_S = 3600.0  # a watcher's look at a large inbox on a slow disk may take long
logger = logging.getLogger("prdit.services")


class Checker:
    """Remembers since when each process has been silent.

    Args:
        patience_s: after so long it is killed, or one that was given up is started again.
        start_s: as long for a process that has not given its first sign of life.
        answers: whether a service that runs gives a sign of life, by its name and process id.
        kill: ends a process.
        revive: has a service started that supervisord has given up.
    """

    def __init__(
        self,
        patience_s: float,
        start_s: float,
        answers: Callable[[str, int], bool],
        kill: Callable[[int], None],
        revive: Callable[[str], None],
    ) -> None:
        self._patience_s, self._start_s = patience_s, max(patience_s, start_s)
        self._answers, self._kill, self._revive = answers, kill, revive
        self._silent: dict[tuple[str, int], float] = {}
        self._alive: set[tuple[str, int]] = set()

    def check(self, processes: Mapping[str, tuple[str, int]], now: float) -> None:
        """Look at every service once.

        Args:
            processes: state and process id by name, as supervisord has them.
            now: monotonic time in seconds.
        """
        silent = {}
        self._alive &= {(name, pid) for name, (_, pid) in processes.items()}
        for name, (state, pid) in processes.items():
            key, given_up = (name, pid), state == "FATAL"
            if not given_up and pid == 0:
                continue
            if not given_up and self._answers(name, pid):
                self._alive.add(key)
                continue
            since = silent[key] = self._silent.get(key, now)
            if now - since < (self._patience_s if given_up or key in self._alive else self._start_s):
                continue
            del silent[key]
            if given_up:
                logger.warning("%s was given up %.0f s ago and is tried again", name, now - since)
                try:
                    self._revive(name)
                except local.ServiceError as error:  # the other services are looked at all the same
                    logger.warning("%s: %s", name, error)
            else:
                logger.warning("%s (process %d) has not answered for %.0f s and is killed", name, pid, now - since)
                self._kill(pid)
        self._silent = silent


def answers(services: local.Services, name: str, pid: int) -> bool:
    """Whether a service gives a sign of life; True where nobody can tell."""
    if name in ("prefect", "mlflow"):
        return is_healthy(services, name)
    if name == "worker":
        try:
            return local.worker_is_online(services)
        except UserError:  # it is the Prefect server that does not answer
            return True
    try:
        if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            return False
        last = (services.state_dir / "alive" / name).stat().st_mtime
    except (OSError, psutil.Error):  # it gives none, or has just ended
        return True
    return abs(time.time() - last) < _SILENT_S  # a sign from the future: the clock was set back


def main() -> None:
    """Check every few seconds, for ever; `python -m flows.health` in the state directory of the services."""
    parser = argparse.ArgumentParser(prog="flows.health")
    parser.add_argument("--patience", type=float, default=PATIENCE_S, help="seconds without an answer")
    parser.add_argument("--interval", type=float, default=INTERVAL_S, help="seconds between two looks")
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stdout)
    services = local.supervised(Path.cwd())
    checker = Checker(
        given.patience,
        _START_S,
        lambda name, pid: answers(services, name, pid),
        _kill,
        lambda name: local.start_program(services, name),
    )
    logger.info("a service that does not answer for %.0f s is killed and started again", given.patience)
    while True:
        with contextlib.suppress(local.ServiceError):  # supervisord ends, and will end us
            found: dict[str, Any] = local.processes(services)
            found.pop("health", None)
            checker.check({name: (info["statename"], info["pid"]) for name, info in found.items()}, time.monotonic())
        time.sleep(given.interval)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # not SIGTERM: a process that is stopped or stuck does not take it


if __name__ == "__main__":
    main()
