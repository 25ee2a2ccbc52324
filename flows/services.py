"""Local services of one machine: a Prefect server, an MLflow server and a worker, on 127.0.0.1 and free ports.

Everything they write lies under one state directory (default `.prdit/services`):

    services.json      what runs: URLs, process ids with their creation times, the token of this start
    prefect/           PREFECT_HOME: database, results of nothing else
    mlflow/            SQLite backend and artifacts
    logs/<name>.log    output of each process since its start

A process is ours when its id *and* creation time are recorded, or when its environment carries the start's random token
(which reaches every descendant, so that a training run whose parents were killed is still found). `stop` ends those only.
"""

import contextlib
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from storage.files import read_json, write_json_atomic

HOST = "127.0.0.1"
WORK_POOL = "prdit"
DEFAULT_STATE_DIR = Path(".prdit") / "services"
RECORD = "services.json"
TOKEN_VARIABLE = "PRDIT_SERVICES_TOKEN"

_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 15.0
_API_TIMEOUT_S = 10.0
_LINES_SHOWN = 25  # of what a failed process wrote
_CREATE_TIME_TOLERANCE_S = 1.0  # a clock step moves psutil's creation times a little; ids do not wrap that fast
_PORT_ATTEMPTS = 3
_PORT_TAKEN = re.compile(r"address already in use|errno 98|port \d+ is already in use", re.IGNORECASE)
# Without a proxy: a user's http_proxy must not carry requests to this machine away.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Log = Callable[[str], None]


class ServiceError(RuntimeError):
    """A local service did not come up, or a command against it failed."""


class ServiceProcess(BaseModel):
    """One process we started.

    Attributes:
        name: `prefect`, `mlflow` or `worker`.
        pid: process id.
        create_time: seconds since the epoch, as psutil gives it; with `pid` it names one process for good.
        log: file with its output.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pid: int
    create_time: float
    log: Path


class Services(BaseModel):
    """What runs under one state directory (the content of `services.json`).

    Attributes:
        state_dir: absolute path.
        prefect_ui_url: Prefect's UI; its API is `<prefect_ui_url>/api`.
        mlflow_url: MLflow's UI and tracking URI.
        token: random text in the environment of every process we started and of their descendants.
        ready: False while the services are coming up.
        processes: the processes, in the order they were started.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_dir: Path
    prefect_ui_url: str
    mlflow_url: str
    token: str
    ready: bool
    processes: list[ServiceProcess]

    @property
    def prefect_api_url(self) -> str:
        """Base URL of Prefect's REST API."""
        return f"{self.prefect_ui_url}/api"


def mlflow_page(services: Services, experiment_id: str | None = None, run_id: str | None = None) -> str:
    """Address of an experiment's runs, of one run, or (by default) of the list of experiments.

    MLflow 3.17 opens every page as "GenAI" until its reader has chosen "Model training" once, whatever the experiment's tags
    say; the address says it for this page, and names the table that shows our metrics.
    """
    view = "&viewStateShareKey=prdit" if experiment_id and not run_id else ""
    place = "experiments" + (f"/{experiment_id}/runs" if experiment_id else "") + (f"/{run_id}" if run_id else "")
    return f"{services.mlflow_url}/#/{place}?workflowType=machine_learning{view}"


def environment(services: Services) -> dict[str, str]:
    """Variables a client of the services needs (to lay over its own environment)."""
    return {
        "PREFECT_API_URL": services.prefect_api_url,
        "PREFECT_HOME": str(services.state_dir / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "prdit",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "MLFLOW_TRACKING_URI": services.mlflow_url,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "NO_PROXY": _no_proxy(),
        "no_proxy": _no_proxy(),
    }


def child_environment(services: Services) -> dict[str, str]:
    """The whole environment of a process working with the services.

    Ours without any Prefect or MLflow setting (a profile or key for another server must not leak in), with this Python's
    scripts first on PATH, so that a worker starts flow runs in the same venv.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
    scripts = str(Path(sys.executable).parent)
    return {**inherited, "PATH": scripts + os.pathsep + inherited.get("PATH", ""), **environment(services)}


def running(state_dir: Path) -> Services | None:
    """The services up under a state directory, or None unless every one of them lives and answers."""
    services = _load(state_dir.resolve())
    if services is None or not services.ready:
        return None
    if any(_process(item) is None for item in services.processes):
        return None
    return services if _prefect_healthy(services) and _mlflow_healthy(services) else None


def start(state_dir: Path, *, log: Log = lambda _: None) -> Services:
    """Start the services, or return those already up.

    Args:
        state_dir: directory for their databases, logs and record; made if needed.
        log: called with one sentence per event.
    Raises: ServiceError: one did not come up (the message ends with its last lines of output); nothing is left running.
    """
    state_dir = state_dir.resolve()
    for name in ("prefect", "mlflow", "logs"):
        (state_dir / name).mkdir(parents=True, exist_ok=True)
    with _locked(state_dir):
        if (services := running(state_dir)) is not None:
            log(f"services already up: Prefect {services.prefect_ui_url}, MLflow {services.mlflow_url}")
            return services
        _stop(state_dir, log)
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                return _start_once(state_dir, log)
            except _PortTakenError as error:
                log(f"{error}; trying other ports ({attempt} of {_PORT_ATTEMPTS})")
                _stop(state_dir, log)
            except BaseException:  # Ctrl-C too: never leave half a set of servers behind
                _stop(state_dir, log)
                raise
    raise ServiceError(f"No free port could be kept on {HOST} in {_PORT_ATTEMPTS} attempts; see {state_dir / 'logs'}.")


def stop(state_dir: Path) -> list[int]:
    """End the recorded processes and their descendants: SIGTERM, wait, SIGKILL.

    A record of processes that are gone, or whose ids now belong to others, is just removed.

    Returns: ids of the processes ended, sorted.
    """
    state_dir = state_dir.resolve()
    if not state_dir.is_dir():
        return []
    with _locked(state_dir):
        return _stop(state_dir, lambda _: None)


def deploy(services: Services, project_dir: Path) -> str:
    """Register every deployment of `<project_dir>/prefect.yaml`, with runs working in that directory.

    Returns: Prefect's own output.
    Raises: ServiceError: Prefect refused; the message holds its output.
    """
    command = [*_python_module("prefect"), "--no-prompt", "deploy", "--all"]
    variables = {**child_environment(services), "PRDIT_HOME": str(project_dir.resolve())}
    done = subprocess.run(
        command,
        cwd=project_dir,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceError(
            f"`prefect deploy --all` in {project_dir} ended with exit code {done.returncode}:\n{_last_lines(done.stdout)}"
        )
    return done.stdout


def call_api(services: Services, method: str, path: str, body: Any = None) -> Any:
    """One request to Prefect's REST API; `path` as in `/flow_runs/<id>`. Returns the decoded JSON (None for an empty answer).

    Raises: ServiceError: no answer, or an error status.
    """
    try:
        text = _request(services.prefect_api_url + path, method=method, body=body, timeout_s=_API_TIMEOUT_S)
    except OSError as error:
        raise ServiceError(f"{method} {services.prefect_api_url}{path} failed: {error}") from error
    return json.loads(text) if text else None


# --- starting -------------------------------------------------------------------------------------------------------------


class _PortTakenError(ServiceError):
    """Somebody bound the port between our choosing it and the server's binding it."""


def _start_once(state_dir: Path, log: Log) -> Services:
    prefect_port, mlflow_port = _free_ports(2)
    services = Services(
        state_dir=state_dir,
        prefect_ui_url=f"http://{HOST}:{prefect_port}",
        mlflow_url=f"http://{HOST}:{mlflow_port}",
        token=uuid.uuid4().hex,
        ready=False,
        processes=[],
    )
    log(f"starting Prefect on port {prefect_port} and MLflow on port {mlflow_port}")
    services = _spawn(services, "prefect", _prefect_command(prefect_port), _prefect_variables(state_dir))
    services = _spawn(
        services, "mlflow", _mlflow_command(state_dir, mlflow_port), {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    )
    _wait_until(lambda: _prefect_healthy(services), services, "prefect", prefect_port)
    worker = [*_python_module("prefect"), "worker", "start", "--pool", WORK_POOL, "--type", "process"]
    worker += ["--limit", "1", "--install-policy", "never", "--name", f"local-{services.token[:8]}"]
    services = _spawn(services, "worker", worker, {"PREFECT_WORKER_QUERY_SECONDS": "2"})
    _wait_until(lambda: _mlflow_healthy(services), services, "mlflow", mlflow_port)
    _wait_until(lambda: _worker_online(services), services, "worker", None)
    services = services.model_copy(update={"ready": True})
    _save(services)
    log(f"up: Prefect {services.prefect_ui_url}, MLflow {services.mlflow_url}, worker on pool {WORK_POOL!r}")
    return services


def _python_module(name: str) -> list[str]:
    return [sys.executable, "-m", name]


def _prefect_command(port: int) -> list[str]:
    return [*_python_module("prefect"), "server", "start", "--host", HOST, "--port", str(port)]


def _prefect_variables(state_dir: Path) -> dict[str, str]:
    # The UI's files are rewritten at each start, by default inside site-packages, where two servers would collide.
    return {"PREFECT_SERVER_UI_STATIC_DIRECTORY": str(state_dir / "prefect" / "ui")}


def _mlflow_command(state_dir: Path, port: int) -> list[str]:
    folder = state_dir / "mlflow"
    command = [*_python_module("mlflow"), "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    return [*command, "--artifacts-destination", str(folder / "artifacts")]


def _spawn(services: Services, name: str, command: list[str], variables: dict[str, str]) -> Services:
    """Start one process in a session of its own (Ctrl-C in our terminal is ours to handle) and record it at once."""
    path = services.state_dir / "logs" / f"{name}.log"
    env = {**child_environment(services), **variables, TOKEN_VARIABLE: services.token}
    with path.open("wb") as output:
        child = subprocess.Popen(
            command,
            cwd=services.state_dir,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        create_time = psutil.Process(child.pid).create_time()
    except psutil.NoSuchProcess as error:
        raise ServiceError(f"{name} ended at once:\n{_tail(path)}") from error
    item = ServiceProcess(name=name, pid=child.pid, create_time=create_time, log=path)
    services = services.model_copy(update={"processes": [*services.processes, item]})
    _save(services)
    return services


def _wait_until(healthy: Callable[[], bool], services: Services, name: str, port: int | None) -> None:
    """Wait for a service to answer from a process of its own.

    Raises: ServiceError: it ended, or did not answer in time.
    """
    item = next(item for item in services.processes if item.name == name)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if _process(item) is None:
            tail = _tail(item.log)
            kind = _PortTakenError if port is not None and _PORT_TAKEN.search(tail) else ServiceError
            raise kind(f"{name} ended while starting. Last lines of {item.log}:\n{tail}")
        if healthy() and (port is None or _listens(item, port)):
            return
        time.sleep(0.2)
    raise ServiceError(
        f"{name} did not answer within {_START_TIMEOUT_S:.0f} s. Last lines of {item.log}:\n{_tail(item.log)}"
    )


def _free_ports(count: int) -> list[int]:
    """Distinct ports nobody listens on now; `_wait_until` proves afterwards that ours are held by our own processes."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind((HOST, 0))
        return [int(item.getsockname()[1]) for item in sockets]


def _listens(item: ServiceProcess, port: int) -> bool:
    """Whether the process or a descendant of it holds the listening socket."""
    process = _process(item)
    if process is None:
        return False
    with contextlib.suppress(psutil.Error):  # ended meanwhile: the caller's loop says so
        for member in [process, *process.children(recursive=True)]:
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in member.net_connections("tcp")):
                return True
    return False


# --- health ---------------------------------------------------------------------------------------------------------------


def _request(url: str, *, method: str = "GET", body: Any = None, timeout_s: float = 5.0) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json"})
    with _OPENER.open(request, timeout=timeout_s) as answer:
        return str(answer.read().decode())


def _answers(url: str, **request: Any) -> str | None:
    try:
        return _request(url, **request)
    except OSError:  # URLError, refused and timed-out connections
        return None


def _prefect_healthy(services: Services) -> bool:
    return _answers(f"{services.prefect_api_url}/health") == "true"


def _mlflow_healthy(services: Services) -> bool:
    return _answers(f"{services.mlflow_url}/health") == "OK"


def _worker_online(services: Services) -> bool:
    url = f"{services.prefect_api_url}/work_pools/{WORK_POOL}/workers/filter"
    text = _answers(url, method="POST", body={})
    name = f"local-{services.token[:8]}"
    return text is not None and any(w["name"] == name and w["status"] == "ONLINE" for w in json.loads(text))


# --- record, stopping -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """One start or stop at a time per state directory; the kernel drops the lock when we die."""
    with (state_dir / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _save(services: Services) -> None:
    write_json_atomic(services.state_dir / RECORD, services.model_dump(mode="json"))


def _load(state_dir: Path) -> Services | None:
    path = state_dir / RECORD
    try:
        return Services.model_validate(read_json(path))
    except FileNotFoundError:
        return None
    except ValueError as error:  # not JSON, or (ValidationError) other fields
        problem = f"{error.error_count()} fields are wrong" if isinstance(error, ValidationError) else str(error)
        raise ServiceError(
            f"{path} is not a record of services ({problem}). If `ps` shows none of them running, delete that file."
        ) from error


def _process(item: ServiceProcess) -> psutil.Process | None:
    """The live process of a record, or None if it ended or its id now belongs to another."""
    try:
        process = psutil.Process(item.pid)
        same = abs(process.create_time() - item.create_time) <= _CREATE_TIME_TOLERANCE_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _ours(services: Services) -> list[psutil.Process]:
    """Recorded processes, their descendants, and whoever carries this start's token."""
    found: set[psutil.Process] = set()
    for item in services.processes:
        if (process := _process(item)) is not None:
            found.add(process)
            with contextlib.suppress(psutil.NoSuchProcess):
                found.update(process.children(recursive=True))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(TOKEN_VARIABLE) == services.token:
                found.add(process)
    return [process for process in found if process.pid != os.getpid()]


def _stop(state_dir: Path, log: Log) -> list[int]:
    services = _load(state_dir)
    if services is None:
        return []
    ended: set[psutil.Process] = set()
    # Worker first, while the server still answers: its flow runs can then report how they ended.
    first = services.model_copy(
        update={"processes": [p for p in services.processes if p.name == "worker"], "token": ""}
    )
    for group in (first, services):
        members = _ours(group)
        ended.update(members)
        _end(members, log)
    (state_dir / RECORD).unlink(missing_ok=True)
    if ended:
        log(f"stopped {len(ended)} processes")
    return sorted(process.pid for process in ended)


def _end(processes: list[psutil.Process], log: Log) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_STOP_TIMEOUT_S)
    for process in alive:
        log(f"process {process.pid} ignored SIGTERM for {_STOP_TIMEOUT_S:.0f} s: killing it")
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def _tail(path: Path) -> str:
    return _last_lines(path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "")


def _last_lines(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-_LINES_SHOWN:]) or "(no output)"


def _no_proxy() -> str:
    kept = [item for item in os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")).split(",") if item]
    return ",".join(dict.fromkeys([*kept, HOST, "localhost"]))
