"""The tiny configuration through real servers, a real worker and `prefect deployment run`; then cancellation and `prdit down`."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow.tracking import MlflowClient

from flows import services as local
from flows.config import load_config
from storage.files import read_json
from storage.phantom.series import write_demo_data
from tasks.ingest.run import ingest
from tests.factories import page_submits
from tests.processes import alive, descendants, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


class Site:
    """Servers, a source and a working directory."""

    def __init__(self, root: Path, services: local.Services) -> None:
        self.root, self.services = root, services

    def run(self, deployment: str, *flags: str, **overrides: Any) -> subprocess.CompletedProcess[str]:
        """Start a deployment with the configuration tiny, as a person would in a shell."""
        overrides = {"workdir": str(self.root / "workdir"), **overrides}
        parameters = ["configuration=tiny", f"source={self.root / 'source'}", f"store={self.root / 'store'}"]
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deployment", "run", deployment]
        for parameter in (*parameters, f"overrides={json.dumps(overrides)}"):
            command += ["--param", parameter]
        return subprocess.run(
            [*command, *flags],
            env=local.child_environment(self.services),
            capture_output=True,
            text=True,
            timeout=500,
        )

    def submit(self, deployment: str, **fields: Any) -> dict[str, Any]:
        """Submit a deployment's form as the page does, with some fields filled in, and wait for the run's end.

        The page shows a deployment's own parameters in place of the flow's defaults.
        """
        found = local.call_api(self.services, "GET", f"/deployments/name/prdit/{deployment}")
        parameters = page_submits(found["parameter_openapi_schema"]) | found["parameters"] | fields
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}, "enforce_parameter_schema": True}
        created = local.call_api(self.services, "POST", f"/deployments/{found['id']}/create_flow_run", body)

        def ended() -> dict[str, Any] | None:
            run: dict[str, Any] = local.call_api(self.services, "GET", f"/flow_runs/{created['id']}")
            return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED") else None

        return wait_for(ended)

    def flow_runs(self) -> list[dict[str, Any]]:
        found = local.call_api(self.services, "POST", "/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC"})
        assert isinstance(found, list)
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    write_demo_data(root / "source", num_patients=3, small=True)
    folder = root / "folder"  # where runs work: a form left untouched takes `.prdit/store` of that folder
    folder.mkdir()
    services = local.start(root / "services")
    try:
        local.deploy(services, folder)
        yield Site(root, services)
    finally:
        local.stop(root / "services")


def test_deployment_run_leaves_report_runs_and_records(site: Site) -> None:
    done = site.run("prdit/full-pipeline", "--watch")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    record = read_json(site.root / "workdir" / "runs" / "latest.json")
    assert record["error"] is None
    assert "research use only" in Path(record["report"]).read_text().lower()
    assert record["prefect_flow_run_id"] == site.flow_runs()[0]["id"]

    client = MlflowClient(site.services.mlflow_url)
    parent = client.get_run(record["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["prdit.config"] == "tiny"
    assert parent.data.tags["prdit.config_digest"] == record["config_digest"] == load_config("tiny").digest()
    assert parent.data.tags["prdit.snapshot"] == record["stages"]["ingest"]["ref"]["digest"]
    assert "evaluate/fid_random_features" in parent.data.metrics
    assert "report.html" in {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    children = client.search_runs([record["mlflow_experiment_id"]], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert {run.data.tags["prdit.stage"] for run in children} == set(record["stages"])
    local_run = next(run for run in children if run.data.tags["prdit.stage"] == "train-local")
    assert [p.step for p in client.get_metric_history(local_run.info.run_id, "train-local/val/loss")] == [0, 10, 20]


def test_the_form_submitted_untouched_runs_exactly_the_named_configuration(site: Site) -> None:
    work = site.root / "folder" / ".prdit"
    demo = load_config("demo")
    ingest(site.root / "source", work / "store", demo.ingest)
    run = site.submit("split")
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    untouched = {"configuration": "demo", "source": "", "store": "", "overrides": {}}
    assert run["parameters"] == untouched | {"stage": "split"}
    record = read_json(work / "work" / "runs" / "latest.json")
    assert record["prefect_flow_run_id"] == run["id"]
    assert record["config_digest"] == demo.digest()
    [resolved] = (work / "work" / "runs").glob("*/config.yaml")
    assert yaml.safe_load(resolved.read_text()) == demo.model_dump(mode="json")
    tags = MlflowClient(site.services.mlflow_url).get_run(record["mlflow_run_id"]).data.tags
    assert (tags["prdit.config"], tags["prdit.config_digest"]) == ("demo", demo.digest())


def test_an_unknown_setting_in_the_form_is_named_on_the_runs_page(site: Site) -> None:
    text = json.dumps({"recipe": {"local": {"learning_rate": 0.1}}})
    run = site.submit("full-pipeline", overrides={"__prefect_kind": "json", "value": text})
    assert run["state_type"] == "FAILED"
    assert "recipe.local.learning_rate: unknown key. Known here: accumulation, " in run["state"]["message"]
    for wrong in ({"configuration": "nothing"}, {"stage": "train"}):
        with pytest.raises(local.ServiceError):
            site.submit("full-pipeline", **wrong)


def test_a_stages_deployment_finds_what_has_run(site: Site) -> None:
    """After the full run, the stage deployment only verifies; its MLflow children say where the artifacts came from."""
    done = site.run("prdit/train-local", "--watch")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    record = read_json(site.root / "workdir" / "runs" / "latest.json")
    assert list(record["stages"]) == ["ingest", "split", "train-local"]
    assert all(outcome["cached"] for outcome in record["stages"].values())
    client = MlflowClient(site.services.mlflow_url)
    run = client.get_run(record["stages"]["train-local"]["mlflow_run_id"])
    assert client.get_run(run.data.tags["prdit.cached_from"]).data.tags["prdit.stage"] == "train-local"


def begin_training(site: Site, seed: int) -> tuple[str, list[psutil.Process], Path]:
    """A training too long to end by itself: the flow run's id, its two ranks, the folder of its states."""
    long = {"seed": seed, "steps": 100_000, "val_every": 100_000, "checkpoint_every": 100_000}
    site.run("prdit/train-local", recipe={"local": long}, launcher={"ranks_per_node": 2})

    def ranks() -> list[psutil.Process]:
        found = descendants(local.pids(site.services)["worker"], "tasks.train ")
        return found if len(found) == 2 else []

    found = wait_for(ranks)
    scratch = Path(found[0].cmdline()[-2]).parent
    metrics = scratch / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 2)
    return site.flow_runs()[0]["id"], found, scratch / "checkpoints"


def test_cancelling_the_flow_run_stops_and_saves_the_training(site: Site) -> None:
    run_id, ranks, checkpoints = begin_training(site, seed=1)
    local.call_api(
        site.services, "POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    )
    wait_for(lambda: not any(alive(rank.pid) for rank in ranks))
    assert len(list(checkpoints.glob("step-*"))) == 1
    state = wait_for(
        lambda: (
            (s := local.call_api(site.services, "GET", f"/flow_runs/{run_id}")["state"])["type"] != "CANCELLING" and s
        )
    )
    assert state["type"] in ("CANCELLED", "CRASHED")
    worker = (site.services.state_dir / "logs" / "worker.log").read_text()
    assert (
        "Runner failed to retrieve flow" not in worker
    )  # Prefect's process for hooks imports our modules, not its own
    record = read_json(site.root / "workdir" / "runs" / "latest.json")
    assert record["error"]
    client = MlflowClient(site.services.mlflow_url)
    assert client.get_run(record["mlflow_run_id"]).info.status == "KILLED"


def test_down_saves_the_training_and_ends_everything(site: Site) -> None:
    run_id, ranks, checkpoints = begin_training(site, seed=2)
    members = {process.pid for process in local._started(site.services.state_dir)}
    assert {rank.pid for rank in ranks} <= members
    # Servers start helpers and end them again, so what was there a moment ago need not be what is ended.
    lasting = {rank.pid for rank in ranks} | {
        pid for name, pid in local.pids(site.services).items() if name != "supervisord"
    }
    stopped = set(local.stop(site.services.state_dir))
    assert lasting <= stopped
    assert [pid for pid in members | stopped if alive(pid)] == []
    assert len(list(checkpoints.glob("step-*"))) == 1
    site.services = local.start(
        site.services.state_dir
    )  # the history is the same; the run had time to say how it ended
    state = local.call_api(site.services, "GET", f"/flow_runs/{run_id}")["state"]
    assert state["type"] in ("CANCELLED", "CRASHED", "FAILED"), state
