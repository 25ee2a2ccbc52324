"""An installation for drills: services, deployments of prdit, a small store, and runs of the configuration tiny."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from flows import services as local
from flows.config import load_config
from storage.phantom.series import write_demo_data
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.processes import wait_for

PATIENCE_S = 240.0  # two cores that everything shares
OVER = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
_ENDLESS = {"steps": 1_000_000, "val_every": 1_000_000, "checkpoint_every": 1_000_000}


def until(condition: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """`wait_for` with the drills' patience; looking at every process of the machine costs, so not so often."""
    return wait_for(condition, seconds, every_s=0.2)


class Deployed:
    """Runs of deployments, and their processes.

    Args:
        root: with the store and the folder of stages.
        services: that run.
    """

    def __init__(self, root: Path, services: local.Services) -> None:
        self.root, self.services = root, services

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """One request; tried again while a server starts anew."""

        def answer() -> Any:
            with contextlib.suppress(local.ServiceError):
                return (local.call_api(self.services, method, path, body),)

        return until(answer)[0]

    def start(self, deployment: str, **overrides: Any) -> str:
        """Schedule a run on the store, at once; returns its id."""
        overrides = {"workdir": str(self.root / "work"), **overrides}
        store = str(self.root / "store")
        return self.schedule(f"prdit/{deployment}", configuration="tiny", store=store, overrides=overrides)

    def schedule(self, deployment: str, **parameters: Any) -> str:
        """Schedule a run of any deployment, at once, with parameters beside its own; returns its id."""
        found = self.api("GET", f"/deployments/name/{deployment}")
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(self.api("POST", f"/deployments/{found['id']}/create_flow_run", body)["id"])

    def train(self, seed: int) -> str:
        """Schedule a training that does not end by itself; returns the run's id."""
        return self.start("train-local", recipe={"local": {"seed": seed, **_ENDLESS}})

    def read(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api("GET", f"/flow_runs/{run_id}")
        return found

    def state(self, run_id: str) -> str:
        return str(self.read(run_id)["state"]["type"])

    def ended(self, run_id: str) -> dict[str, Any]:
        """The run, once it is over."""
        found: dict[str, Any] = until(lambda: (run := self.read(run_id))["state"]["type"] in OVER and run)
        return found

    def training(self, run_id: str) -> list[psutil.Process]:
        """The processes of a run, once it trains: the first is the flow's."""

        def training() -> list[psutil.Process]:
            found = self._processes(run_id)
            return [one for one, _ in found] if any("tasks.train" in words for _, words in found) else []

        return list(until(training))

    def processes(self, run_id: str) -> list[psutil.Process]:
        """Every process of a run that is alive, the flow's first."""
        return [process for process, _ in self._processes(run_id)]

    def _processes(self, run_id: str) -> list[tuple[psutil.Process, list[str]]]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # it ends at this moment
                if process.environ().get("PREFECT__FLOW_RUN_ID", "").replace("-", "") == run_id.replace("-", ""):
                    found.append((process, process.cmdline()))
        return sorted(found, key=lambda item: "prefect.engine" not in item[1])

    def cancel(self, run_id: str) -> str:
        """Cancel a run, as on its page; returns the type of its last state."""
        self.api("POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        return str(self.ended(run_id)["state"]["type"])

    def pid(self, service: str) -> int:
        """Process of a service, once it runs."""

        def running() -> int:
            with contextlib.suppress(local.ServiceError):
                return local.pids(self.services)[service]
            return 0

        return int(until(running))

    def free(self) -> bool:
        """Whether no run holds a slot."""
        return not self.runs(type=["RUNNING", "PENDING", "CANCELLING"])

    def runs(self, **states: list[str]) -> list[dict[str, Any]]:
        """Runs by the `type` or `name` of their state."""
        which = {key: {"any_": values} for key, values in states.items()}
        found: list[dict[str, Any]] = self.api("POST", "/flow_runs/filter", {"flow_runs": {"state": which}})
        return found


@contextlib.contextmanager
def deployed(root: Path) -> Iterator[Deployed]:
    """Start services and register the deployments, with a store of three patients."""
    write_demo_data(root / "source", num_patients=3, small=True)
    ingest(root / "source", root / "store", load_config("tiny").ingest, runner=Local(1))
    (root / "folder").mkdir(exist_ok=True)
    services = local.start(root / "services")
    try:
        local.deploy(services, root / "folder")
        yield Deployed(root, services)
    finally:
        local.stop(root / "services")
