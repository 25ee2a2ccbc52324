"""Real senders: `storescu` and its like from Debian's dcmtk, and a listener of ours as its own process in a folder."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from storage.files import json_text
from tests.ports import free_ports
from tests.processes import wait_for

PROGRAMS = ("storescu", "echoscu", "dcmsend")
AE_TITLE = "SCANNER"
DEADLINE_S = 120.0


def missing() -> str:
    """Which programs are not there, with Debian's package; "" where all are."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not on PATH: {', '.join(absent)} (Debian package dcmtk)" if absent else ""


def skip_without_dcmtk() -> None:
    """Skip a test where dcmtk is not installed; fail where PRDIT_REQUIRE_DCMTK=1."""
    if reason := missing():
        if os.environ.get("PRDIT_REQUIRE_DCMTK") == "1":
            pytest.fail(f"PRDIT_REQUIRE_DCMTK=1 but {reason}")
        pytest.skip(reason)


class ListenerProcess:
    """`prdit listen` in a folder.

    Args:
        root: where it works; its inbox is `root/.prdit/inbox`.
        settings: of the listener, besides port and AE titles.
    """

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root, self.port = root, free_ports()
        self.inbox, self.arrivals = root / ".prdit" / "inbox", root / ".prdit" / "arrivals"
        self.log = root / "listener.log"
        site = {"listener": {"port": self.port, "allowed": [AE_TITLE, "SECOND"]} | settings}
        (root / ".prdit").mkdir(parents=True, exist_ok=True)
        (root / ".prdit" / "site.yaml").write_text(json_text(site))
        self.process: subprocess.Popen[bytes] | None = None
        self._said = 0

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-c", "from flows.cli import main; main()", "listen"]
        # What is imported is this checkout, wherever the process works.
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.root, env=os.environ | {"PYTHONPATH": path}, stdout=log, stderr=log
            )
        wait_for(self._answers, DEADLINE_S, log=self.log)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """Send SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Send SIGTERM; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def call(self, program: str, *options: str, what: Path, aet: str = AE_TITLE, aec: str = "PRDIT") -> list[str]:
        """The command line of a sender of a file or folder."""
        return [program, "-aet", aet, "-aec", aec, *options, "127.0.0.1", str(self.port), str(what)]

    def send(self, folder: Path, aet: str = AE_TITLE, aec: str = "PRDIT") -> "subprocess.CompletedProcess[str]":
        """Send a folder with storescu."""
        command = self.call("storescu", "+sd", "+r", what=folder, aet=aet, aec=aec)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_S)

    def sending(self, folder: Path, aet: str = AE_TITLE) -> "subprocess.Popen[bytes]":
        """A sender that was started."""
        command = self.call("storescu", "+sd", "+r", what=folder, aet=aet)
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def echo(self) -> int:
        """The exit code of echoscu."""
        command = ["echoscu", "-aet", AE_TITLE, "-aec", "PRDIT", "127.0.0.1", str(self.port)]
        return subprocess.run(command, capture_output=True, check=False, timeout=DEADLINE_S).returncode

    def stored(self) -> list[Path]:
        """The files in the inbox that have their final names."""
        return sorted((self.inbox / "received").rglob("*.dcm"))

    def clear(self) -> None:
        """Empty its inbox, and forget what it has said."""
        shutil.rmtree(self.inbox / "received", ignore_errors=True)
        self._said = len(self.log.read_text())

    def said(self) -> str:
        """Its log since `clear`."""
        return self.log.read_text()[self._said :]

    def hidden(self) -> list[Path]:
        """Files in the inbox that are not whole."""
        return [path for path in self.inbox.glob(".incoming*/*") if path.is_file()]


@contextmanager
def listening(root: Path, **settings: Any) -> Iterator[ListenerProcess]:
    """A listener that runs for a block."""
    listener = ListenerProcess(root, **settings)
    listener.start()
    try:
        yield listener
    finally:
        if listener.process and listener.process.poll() is None:
            listener.stop()
