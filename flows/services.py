"""Local services of one machine: a Prefect server, an MLflow server and a worker, on 127.0.0.1 and free ports.

They are programs of a supervisord, which restarts what dies: `flows/supervisord.conf`; why, docs/decisions/0007-local-services.md.
Everything they write lies under one state directory (default `.prdit/services`):

    prefect/           PREFECT_HOME: database, results of nothing else
    mlflow/            SQLite backend and artifacts
    logs/<name>.log    output of each service, and what supervisord did

What runs and where, supervisord is asked. Its address is in the environment of whatever it starts and of all descendants: that
is how `stop` also finds a training whose parents were killed, and services whose supervisord was.
"""

import contextlib
import hashlib
import json
import logging
import os
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xmlrpc.client import Fault, ServerProxy

import psutil
from pydantic import BaseModel, ConfigDict
from supervisor.xmlrpc import SupervisorTransport

from storage.errors import UserError
from storage.files import naming_path
from storage.locks import locked
from tasks.run.machine import limit_threads

HOST = "127.0.0.1"
WORK_POOL = "prdit"
DEFAULT_STATE_DIR = Path(".prdit") / "services"
DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")
CONFIGURATION = Path(__file__).with_name("supervisord.conf")

_SOCKETS = Path(f"/tmp/prdit-{os.getuid()}")
_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 75.0  # a training has 60 s to save its state
# Without a proxy: a user's http_proxy must not carry requests to this machine away.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
logger = logging.getLogger("prdit.services")


class ServiceError(UserError, RuntimeError):
    """A local service did not come up, or a command against it failed."""


class Services(BaseModel):
    """Where the services of one state directory are.

    Attributes:
        state_dir: absolute path.
        prefect_ui_url: Prefect's UI; its API is `<prefect_ui_url>/api`.
        mlflow_url: MLflow's UI and tracking URI.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_dir: Path
    prefect_ui_url: str
    mlflow_url: str

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


def child_environment(services: Services) -> dict[str, str]:
    """The whole environment of a process working with the services.

    Ours without any Prefect or MLflow setting (a profile or key for another server must not leak in), with this Python's
    scripts first on PATH, so that a worker starts flow runs in the same venv. Without the safe path, Prefect's process for
    cancellation hooks finds a `storage` of its own, beside its script, instead of ours.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
    direct = [item for item in inherited.get("NO_PROXY", inherited.get("no_proxy", "")).split(",") if item]
    no_proxy = ",".join(dict.fromkeys([*direct, HOST, "localhost"]))
    limit_threads(inherited)
    return {
        **inherited,
        "PATH": str(Path(sys.executable).parent) + os.pathsep + inherited.get("PATH", ""),
        "PYTHONSAFEPATH": "1",
        "PREFECT_API_URL": services.prefect_api_url,
        "PREFECT_HOME": str(services.state_dir / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "prdit",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "MLFLOW_TRACKING_URI": services.mlflow_url,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }


def running(state_dir: Path) -> Services | None:
    """The services up under a state directory, or None unless every one of them runs and answers."""
    with contextlib.suppress(ServiceError):
        services = _supervised(state_dir.resolve())
        if all(_is_up(services, name) for name in ("prefect", "mlflow", "worker")):
            return services
    return None


def pids(services: Services) -> dict[str, int]:
    """Process ids by name, supervisord's first; 0 for a service that does not run. Raises: ServiceError: it does not answer."""
    first = {"supervisord": _supervisor(services.state_dir, "getPID")}
    return first | {item["name"]: item["pid"] for item in _supervisor(services.state_dir, "getAllProcessInfo")}


def start(state_dir: Path) -> Services:
    """Start the services, or those of them that do not run.

    Args:
        state_dir: directory for their databases and logs; made if needed.
    Raises: ServiceError: one did not come up (the message ends with its last output); nothing is left running.
    """
    state_dir = state_dir.resolve()
    for name in ("prefect", "mlflow", "logs"):
        with naming_path(state_dir / name):
            (state_dir / name).mkdir(parents=True, exist_ok=True)
    with _locked(state_dir):
        with contextlib.suppress(ServiceError):  # none runs
            services = _supervised(state_dir)
            try:
                return _bring_up(services)
            except ServiceError as error:
                logger.warning("%s\nAll services are started anew.", error)
        _stop(state_dir)
        try:
            return _bring_up(_start_supervisord(state_dir))
        except BaseException:  # Ctrl-C too: never leave half a set of servers behind
            _stop(state_dir)
            raise


def stop(state_dir: Path) -> list[int]:
    """End the services and everything they started: SIGTERM, wait, SIGKILL. Returns: ids of the processes ended, sorted."""
    state_dir = state_dir.resolve()
    with _locked(state_dir):
        return _stop(state_dir)


def deploy(services: Services, directory: Path) -> str:
    """Register the deployments of prdit.

    Args:
        services: the Prefect server among them.
        directory: where runs work, which is what relative paths of a configuration start from.

    Returns: Prefect's own output.
    Raises: ServiceError: Prefect refused (the message holds its output), or runs there would import other modules than ours.
    """
    rooms = ("flows", "tasks", "prdit_models", "storage")
    own = [name for name in rooms if (directory / name / "__init__.py").exists() or (directory / f"{name}.py").exists()]
    if own and directory.resolve() != Path(__file__).resolve().parents[1]:
        raise ServiceError(
            f"{directory} has Python modules named {', '.join(own)}. Prefect looks for modules in the folder a run works in, so "
            "runs there would import them instead of prdit's. Call prdit in another folder."
        )
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)],
        cwd=directory,
        env={**child_environment(services), "PRDIT_HOME": str(directory.resolve())},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceError(
            f"`prefect deploy --all` in {directory} ended with exit code {done.returncode}:\n{done.stdout[-2000:]}"
        )
    return done.stdout


def call_api(services: Services, method: str, path: str, body: Any = None, *, timeout_s: float = 10.0) -> Any:
    """One request to Prefect's REST API; `path` as in `/flow_runs/<id>`. Returns the decoded JSON (None for an empty answer).

    Raises: ServiceError: no answer, or an error status.
    """
    text = _request(services.prefect_api_url + path, method, body, timeout_s)
    return json.loads(text) if text else None


def _request(url: str, method: str = "GET", body: Any = None, timeout_s: float = 5.0) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json"})
    try:
        with _OPENER.open(request, timeout=timeout_s) as answer:
            return str(answer.read().decode())
    except (OSError, HTTPException) as error:
        # An error status, no connection, or a stranger on the port that speaks no HTTP.
        raise ServiceError(f"{method} {url} failed: {error}") from error


# --- starting -------------------------------------------------------------------------------------------------------------


def _start_supervisord(state_dir: Path) -> Services:
    """Start supervisord, which starts nothing yet."""
    services = _services(state_dir, *(ports := _free_ports()))
    os.umask(umask := os.umask(0o077))  # the user's, where supervisord would set its own
    # It goes into the background once its socket is open. A session of its own: Ctrl-C in our terminal is ours to handle.
    done = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(CONFIGURATION), "-m", f"{umask:o}"],
        cwd=state_dir,
        env=child_environment(services)
        | {"PRDIT_PYTHON": sys.executable, "PRDIT_SOCKET": str(_socket(state_dir))}
        | {"PRDIT_PREFECT_PORT": ports[0], "PRDIT_MLFLOW_PORT": ports[1]},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceError(f"supervisord ended with exit code {done.returncode}:\n{done.stdout[-2000:]}")
    return services


def _free_ports() -> tuple[str, str]:
    """Two ports that nobody listens on now; `_is_up` proves afterwards that ours are held by our own processes."""
    with socket.create_server((HOST, 0)) as one, socket.create_server((HOST, 0)) as other:
        return str(one.getsockname()[1]), str(other.getsockname()[1])


def _bring_up(services: Services) -> Services:
    """Start what does not run, the worker once Prefect answers, and wait until everything is up.

    Raises: ServiceError: supervisord does not answer or has given a service up, or one does not answer in time.
    """
    for started, awaited in ((("prefect", "mlflow"), ("prefect",)), (("worker",), ("mlflow", "worker"))):
        for name in started:
            with contextlib.suppress(ServiceError):  # it runs
                _supervisor(services.state_dir, "startProcess", name, False)
        for name in awaited:
            deadline = time.monotonic() + _START_TIMEOUT_S
            while not _is_up(services, name):
                if time.monotonic() > deadline:
                    raise ServiceError(f"{name} did not answer within {_START_TIMEOUT_S:.0f} s. {_log(services, name)}")
                time.sleep(0.2)
    return services


def _is_up(services: Services, name: str) -> bool:
    """Whether a service runs and answers, from a process of its own.

    Raises: ServiceError: supervisord does not answer, or has given the service up.
    """
    info = _supervisor(services.state_dir, "getProcessInfo", name)
    if info["statename"] == "FATAL":
        raise ServiceError(f"{name} ended while starting. {_log(services, name)}")
    url = {"prefect": services.prefect_api_url, "mlflow": services.mlflow_url}.get(name)
    try:
        if url is not None:
            _request(f"{url}/health")
            return _listens(info["pid"], urlsplit(url).port)
        workers = call_api(services, "POST", f"/work_pools/{WORK_POOL}/workers/filter", {})
    except ServiceError:
        return False
    own = f"local-{urlsplit(services.prefect_ui_url).port}"
    return info["pid"] > 0 and any(item["name"] == own and item["status"] == "ONLINE" for item in workers)


def _listens(pid: int, port: int | None) -> bool:
    """Whether the process or a descendant of it holds the listening socket: another may have been quicker to bind the port."""
    with contextlib.suppress(psutil.Error):  # ended meanwhile
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in member.net_connections("tcp")):
                return True
    return False


def _log(services: Services, name: str) -> str:
    path = services.state_dir / "logs" / f"{name}.log"
    return f"{path} ends with:\n{_supervisor(services.state_dir, 'readProcessStdoutLog', name, -2000, 0)}"


# --- supervisord ----------------------------------------------------------------------------------------------------------


def _services(state_dir: Path, *ports: str) -> Services:
    prefect_url, mlflow_url = (f"http://{HOST}:{port}" for port in ports)
    return Services(state_dir=state_dir, prefect_ui_url=prefect_url, mlflow_url=mlflow_url)


def _supervised(state_dir: Path) -> Services:
    """The services as supervisord has them, with the ports in its identifier. Raises: ServiceError: it does not answer."""
    return _services(state_dir, *_supervisor(state_dir, "getIdentification").split())


def _socket(state_dir: Path) -> Path:
    """Where supervisord listens: derived from the state directory, so that any session of the user finds it.

    In /tmp, because the path of a socket has at most 107 bytes; in a folder that nobody else can open.
    Raises: ServiceError: that folder is somebody else's.
    """
    with contextlib.suppress(FileExistsError):
        _SOCKETS.mkdir(mode=0o700)
    found = _SOCKETS.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ServiceError(
            f"{_SOCKETS} holds the sockets that control your services, so it must be a folder that is yours and that nobody else "
            f"can open (drwx------). It is {stat.filemode(found.st_mode)} of user {found.st_uid}: remove it, or have it removed."
        )
    return _SOCKETS / f"{hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:16]}.sock"


@contextlib.contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """One start or stop at a time per state directory; the kernel drops the lock when we die."""
    with locked(_socket(state_dir).with_suffix(".lock")):
        yield


def _supervisor(state_dir: Path, method: str, *arguments: Any) -> Any:
    """One call to supervisord's XML-RPC interface. Raises: ServiceError: it does not answer, or refuses."""
    transport = SupervisorTransport(serverurl=f"unix://{_socket(state_dir)}")
    try:
        with ServerProxy("http://localhost", transport=transport) as proxy:
            return getattr(proxy.supervisor, method)(*arguments)
    except (OSError, Fault) as error:
        raise ServiceError(f"supervisord of {state_dir}: {method}{arguments} failed: {error}") from error


def _stop(state_dir: Path) -> list[int]:
    ended = _started(state_dir)
    with contextlib.suppress(ServiceError, psutil.NoSuchProcess):  # none answers
        supervisord = psutil.Process(_supervisor(state_dir, "getPID"))
        worker = _supervisor(state_dir, "getProcessInfo", "worker")["pid"]
        # While worker and server are up, so that flow runs can report how they ended: the worker's own end would just kill them.
        _end(process for process, name in ended.items() if name == "worker" and process.pid != worker)
        _end([supervisord])
    _end(_started(state_dir))  # what is left of a supervisord that was killed
    _socket(state_dir).unlink(missing_ok=True)
    return sorted(process.pid for process in ended)


def _started(state_dir: Path) -> dict[psutil.Process, str]:
    """Every process that came of a service, however far down, with the service's name."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            variables = process.environ()
            if variables.get("SUPERVISOR_SERVER_URL") == f"unix://{_socket(state_dir)}" and process.pid != os.getpid():
                found[process] = variables["SUPERVISOR_PROCESS_NAME"]
    return found


def _end(processes: Iterable[psutil.Process]) -> None:
    processes = list(processes)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_STOP_TIMEOUT_S)
    for process in alive:
        logger.warning("process %d ignored SIGTERM for %.0f s and is killed", process.pid, _STOP_TIMEOUT_S)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
