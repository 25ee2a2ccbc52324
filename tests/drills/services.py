"""The real services of a site, all of it, on SQLite and on PostgreSQL: artifacts on S3, runs, hanging services, back-up, migration.

`python -m tests.drills.services` prints JSON; PostgreSQL is left out where it is not installed. tests/integration has the login.
"""

import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from moto.server import ThreadedMotoServer

from flows import services as local
from tests import postgres
from tests.drills.deployed import Deployed
from tests.ports import free_ports
from tests.processes import wait_for
from tests.real_services import KINDS, Site, check_all_run, check_back_up_and_migration, check_secrets, real_site

_HANGING = ("prefect", "mlflow", "watcher")


def run(root: Path) -> dict[str, Any]:
    """Everything on each kind of database.

    Raises: AssertionError: a service does not run, does not come back, or a back-up or migration is not what it should be.
    """
    found: dict[str, Any] = {}
    with bucket() as address:
        for kind in KINDS:
            if kind == "postgresql" and (why := postgres.missing()):
                found[kind] = {"missing": why}
                continue
            folder = root / kind
            (folder / "site").mkdir(parents=True)
            with real_site(folder / "site", kind, f"{address}/{kind}") as site:
                found[kind] = _everything(site, folder, kind)
    return found


def _everything(site: Site, folder: Path, kind: str) -> dict[str, Any]:
    check_all_run(site)
    state = failed_run(site)
    check_artifacts(site, kind)
    check_secrets(site)
    back_s = hanging(site)
    check_back_up_and_migration(site, folder)
    return {"run": state, "back_after_s": back_s, "backed_up_and_migrated": True}


@contextmanager
def bucket() -> Iterator[str]:
    """Address of a bucket on a real S3 server of this machine, which the environment names."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_ports(), verbose=False)
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server._server.server_port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "key")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            boto3.client("s3").create_bucket(Bucket="scans")
            yield "s3://scans/prdit"
    finally:
        server.stop()


def failed_run(site: Site) -> str:
    """A run of the worker's asks the server for its parameters, with the login, and reports how it ended."""
    assert site.services
    local.deploy(site.services, site.folder)
    assert "prdit" in site.flows()
    runs = Deployed(site.folder, site.services)
    state = runs.ended(runs.schedule("prdit/split", overrides={"nonsense": 1}))["state"]
    assert "nonsense: unknown key" in state["message"]
    assert state["type"] == "FAILED"
    return str(state["type"])


def check_artifacts(site: Site, kind: str) -> None:
    """An artifact lies on S3 and nowhere else, and comes back."""
    run_id = site.run("on S3")
    keys = [item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket="scans")["Contents"]]
    assert [key for key in keys if run_id in key] == [f"prdit/{kind}/0/{run_id}/artifacts/text.txt"]
    assert not (site.state_dir / "mlflow" / "artifacts").exists()
    assert Path(site.mlflow.download_artifacts(run_id, "text.txt")).read_text() == "on S3"


def hanging(site: Site) -> dict[str, float]:
    """SIGSTOP: the process is there, and supervisord is content with it. Seconds until each service was back."""
    assert site.services
    services, seconds = site.services, {}
    for name in _HANGING:
        began, before = time.monotonic(), local.pids(services)
        stopped = [psutil.Process(before[name]), *psutil.Process(before[name]).children(recursive=True)]
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        wait_for(lambda name=name, before=before: local.pids(services)[name] not in (0, before[name]))
        assert psutil.wait_procs(stopped, timeout=30)[1] == []
        wait_for(lambda: local.running(site.state_dir) == services)
        after = local.pids(services)
        assert {key for key in after if after[key] != before[key]} == {name}
        seconds[name] = round(time.monotonic() - began, 1)
    log = (site.state_dir / "logs" / "health.log").read_text()
    killed = re.findall(r"(\w+) \(process \d+\) has not answered for \d+ s and is killed", log)
    assert tuple(killed) == _HANGING
    return seconds


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(run(Path(folder))) + "\n")
