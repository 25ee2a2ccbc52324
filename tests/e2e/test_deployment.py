"""The tiny configuration through real servers, a real worker and `prefect deployment run`; then messages, cancel, retry, down."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow.tracking import MlflowClient
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import services as local
from flows.automations import RETRAIN_QUEUE, crash_silent, ensure_automations
from flows.config import load_config
from flows.events import DEPLOYMENT, emit_arrived
from flows.named_files import SITE_FILE as SITE
from storage.files import read_json
from storage.phantom.series import write_demo_data
from tasks.ingest.run import ingest
from tests.factories import page_submits
from tests.processes import alive, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


PATIENCE_S = 300.0  # machines that run tests may be busy


class Site:
    """Servers, a source, a working directory, and the messages that the site's webhook got."""

    def __init__(self, root: Path, services: local.Services, messages: list[dict[str, str]]) -> None:
        self.root, self.services, self.messages = root, services, messages

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
            timeout=600,
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
            run: dict[str, Any] = self.api("GET", f"/flow_runs/{created['id']}")
            return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED") else None

        return wait_for(ended, PATIENCE_S)

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """One request, tried again while the server's database is busy."""

        def answer() -> Any:
            with suppress(local.ServiceError):
                return (local.call_api(self.services, method, path, body),)

        return wait_for(answer, 60)[0]

    def flow_runs(self) -> list[dict[str, Any]]:
        """Runs of the pipeline, the newest first; those of schedules lie in the future."""
        mine = {"flows": {"name": {"any_": ["prdit"]}}, "sort": "EXPECTED_START_TIME_DESC"}
        found = self.api("POST", "/flow_runs/filter", mine)
        assert isinstance(found, list)
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    write_demo_data(root / "source", num_patients=3, small=True)
    folder = root / "folder"  # where runs work: a form left untouched takes `.prdit/store` of that folder
    (folder / ".prdit").mkdir(parents=True)
    with webhook() as (url, messages):
        (folder / SITE).write_text(yaml.safe_dump({"notify": {"least": "info", "webhook": {"url": url}}}))
        services = local.start(root / "services")
        try:
            local.deploy(services, folder)
            yield Site(root, services, messages)
        finally:
            local.stop(root / "services")


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that keeps the messages that are posted to it."""
    messages: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", messages
        server.shutdown()


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
    assert run["run_count"] == 1  # a retry would not change it
    message = wait_for(lambda: [one for one in site.messages if run["name"] in one["text"]], PATIENCE_S)
    assert [(one["severity"], one["subject"]) for one in message] == [("failure", "prdit failed (ConfigError)")]
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


def test_new_scans_run_retrain_once_also_when_it_is_deployed_again(site: Site) -> None:
    """The run is created by the server from the event; its queue is paused meanwhile, so that it waits."""
    [queue] = [
        item for item in site.api("POST", "/work_pools/prdit/queues/filter", {}) if item["name"] == RETRAIN_QUEUE
    ]
    assert queue["concurrency_limit"] == 1
    site.api("PATCH", f"/work_pools/prdit/queues/{RETRAIN_QUEUE}", {"is_paused": True})
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--name", DEPLOYMENT.partition("/")[2]]
    env = {**local.child_environment(site.services), "PRDIT_HOME": str(site.root / "folder")}
    before = site.api("POST", "/automations/filter", {})
    subprocess.run([*command, "--prefect-file", str(local.DEPLOYMENTS)], env=env, check=True, capture_output=True)
    ensure_automations(site.services)
    after = site.api("POST", "/automations/filter", {})
    assert sorted(item["name"] for item in after) == sorted(item["name"] for item in before)
    assert len({item["name"] for item in after}) == len(after) == 3

    deployment = site.api("GET", f"/deployments/name/{DEPLOYMENT}")
    mine = {"deployments": {"id": {"any_": [deployment["id"]]}}}
    with temporary_settings({PREFECT_API_URL: site.services.prefect_api_url}):
        assert emit_arrived(2, 0)
        [run] = wait_for(lambda: site.api("POST", "/flow_runs/filter", mine), PATIENCE_S)
        assert emit_arrived(3, 0)  # a run waits, so no event is needed
    site.api("DELETE", f"/flow_runs/{run['id']}")
    site.api("PATCH", f"/work_pools/prdit/queues/{RETRAIN_QUEUE}", {"is_paused": False})
    assert set(run["tags"]) >= {"prdit", "retrain"}
    assert run["work_queue_name"] == RETRAIN_QUEUE
    arrived = {"filter": {"event": {"name": ["prdit.scans.arrived"]}}}
    # The server starts runs from events before it writes these into its database.
    events = wait_for(lambda: site.api("POST", "/events/filter", arrived)["events"], PATIENCE_S)
    assert [event["payload"] for event in events] == [{"num_series": 2, "num_batches_open": 0}]


def test_a_run_whose_process_says_nothing_is_crashed_and_one_that_never_starts_is_scheduled_again(site: Site) -> None:
    """Runs without any process, set to the states in which a killed process or worker leaves them."""
    deployment = site.api("GET", "/deployments/name/prdit/split")

    def left_in(state: str) -> str:
        later = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}}
        run_id = str(site.api("POST", f"/deployments/{deployment['id']}/create_flow_run", later)["id"])
        site.api("POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": state}, "force": True})
        return run_id

    ensure_automations(site.services, silence_s=10.0)  # Prefect's least
    site.api("PATCH", "/work_pools/prdit", {"is_paused": True})
    try:
        silent, stuck = left_in("RUNNING"), left_in("PENDING")

        def state(run_id: str) -> dict[str, Any]:
            found: dict[str, Any] = site.api("GET", f"/flow_runs/{run_id}")["state"]
            return found

        wait_for(lambda: state(silent)["type"] == "CRASHED", PATIENCE_S)
        assert (
            state(silent)["message"]
            == "No heartbeat: the process of this run died. Retry goes on from the last checkpoint."
        )
        wait_for(lambda: state(stuck)["type"] == "SCHEDULED", PATIENCE_S)
        assert state(stuck)["message"] == "It did not start in time: scheduled again."
        lost = left_in("RUNNING")  # and the event of it was lost: asked when deployments are registered
        assert crash_silent(site.services, silence_s=0.0) == [lost]
        assert state(lost)["type"] == "CRASHED"
        for run_id in (silent, stuck, lost):
            site.api("DELETE", f"/flow_runs/{run_id}")
    finally:
        site.api("PATCH", "/work_pools/prdit", {"is_paused": False})
        ensure_automations(site.services)


def ranks(site: Site) -> list[psutil.Process]:
    """The processes that train."""
    found = []
    for process in local._started(site.services.state_dir):
        with suppress(psutil.Error):  # it ends at this moment
            if "tasks.train" in process.cmdline():
                found.append(process)
    return found


class Training:
    """A training too long to end by itself: its flow run, its two ranks, the folder of its states, and what it has logged."""

    def __init__(self, site: Site) -> None:
        self.run_id = site.flow_runs()[0]["id"]

        self.ranks = wait_for(lambda: len(found := ranks(site)) == 2 and found, PATIENCE_S)
        self.scratch = Path(self.ranks[0].cmdline()[-2]).parent
        wait_for(lambda: len(self.logged()) > 2, PATIENCE_S)

    @classmethod
    def begin(cls, site: Site) -> "Training":
        long = {"seed": 1, "steps": 100_000, "val_every": 100_000, "checkpoint_every": 100_000}
        site.run("prdit/train-local", recipe={"local": long}, launcher={"ranks_per_node": 2})
        return cls(site)

    def logged(self) -> list[str]:
        path = self.scratch / "metrics.jsonl"
        return path.read_text().splitlines() if path.is_file() else []

    def saved(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.scratch.glob("checkpoints/step-*"))


@pytest.fixture(scope="module")
def cancelled(site: Site) -> Training:
    """A training that was cancelled in the page."""
    training = Training.begin(site)
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    site.api("POST", f"/flow_runs/{training.run_id}/set_state", state)
    wait_for(lambda: not any(rank.is_running() for rank in training.ranks), PATIENCE_S)
    return training


def test_cancelling_the_flow_run_stops_and_saves_the_training(site: Site, cancelled: Training) -> None:
    assert len(cancelled.saved()) == 1
    run = site.api("GET", f"/flow_runs/{cancelled.run_id}")
    state = wait_for(
        lambda: (s := site.api("GET", f"/flow_runs/{run['id']}")["state"])["type"] != "CANCELLING" and s, 60
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
    said = [one["subject"] for one in site.messages if run["name"] in one["text"]]
    assert said in (["prdit was cancelled"], ["prdit crashed"])


def test_a_retry_goes_on_from_the_saved_step_and_down_saves_it_again(site: Site, cancelled: Training) -> None:
    [step], logged = cancelled.saved(), cancelled.logged()
    retry = [sys.executable, "-m", "prefect", "--no-prompt", "flow-run", "retry", cancelled.run_id]
    subprocess.run(retry, env=local.child_environment(site.services), check=True, capture_output=True)
    wait_for(lambda: len(cancelled.logged()) > len(logged) + 2, PATIENCE_S)
    assert site.api("GET", f"/flow_runs/{cancelled.run_id}")["run_count"] == 2

    members = {process.pid for process in local._started(site.services.state_dir)}
    training = {process.pid for process in ranks(site)}
    assert len(training) == 2
    # Servers start helpers and end them again, so what was there a moment ago need not be what is ended.
    lasting = training | {pid for name, pid in local.pids(site.services).items() if pid and name != "supervisord"}
    stopped = set(local.stop(site.services.state_dir))
    assert lasting <= stopped
    assert [pid for pid in members | stopped if alive(pid)] == []
    assert cancelled.saved()[-1] > step
    steps = [json.loads(line)["step"] for line in cancelled.logged()]
    assert cancelled.logged()[: len(logged)] == logged  # nothing was begun anew
    assert steps == sorted(set(steps))
    site.services = local.start(
        site.services.state_dir
    )  # the history is the same; the run had time to say how it ended
    state = site.api("GET", f"/flow_runs/{cancelled.run_id}")["state"]
    assert state["type"] in ("CANCELLED", "CRASHED", "FAILED"), state
