"""A real MLflow server that can be stopped and started again on its port."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil

from tests.ports import free_ports
from tests.processes import descendants, kill


class Server:
    """MLflow with a SQLite file below a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_ports()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.root / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self.root / "artifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.root / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 240
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                assert time.monotonic() < deadline, (self.root / "server.log").read_text()[-2000:]
                time.sleep(0.3)

    def stop(self) -> None:
        if self.process is None:
            return
        family = [*descendants(self.process.pid), psutil.Process(self.process.pid)]
        kill(family)
        self.process.wait(30)
        psutil.wait_procs(family, 30)
        self.process = None
