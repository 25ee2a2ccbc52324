"""Local services of one machine, on 127.0.0.1 and free ports: Prefect server, MLflow server, worker; of a site also its intake.

The intake is what runs by itself: the watcher of the inbox, the DICOM listener where one is configured, and the health checker.

They are programs of a supervisord, which restarts what dies: `flows/supervisord.conf`; why, docs/decisions/0007-local-services.md.
Everything they write lies under one state directory (default `.prdit/services`):

    prefect/           PREFECT_HOME: database, results of nothing else
    mlflow/            SQLite backend and artifacts
    logs/<name>.log    output of each service, and what supervisord did
    alive/<name>       touched by services that answer no requests

What runs and where, supervisord is asked. Its address is in the environment of whatever it starts and of all descendants: that
is how `stop` also finds a training whose parents were killed, and services whose supervisord was.
"""

import contextlib
import hashlib
import logging
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xmlrpc.client import Fault, ProtocolError, ServerProxy

import psutil
from supervisor.xmlrpc import SupervisorTransport

from flows.databases import databases, prepare
from flows.serve import DEFAULT_STATE_DIR as DEFAULT_STATE_DIR
from flows.serve import WORK_POOL as WORK_POOL
from flows.server_settings import server_settings
from flows.servers import HOST as HOST
from flows.servers import LoginError as LoginError
from flows.servers import ServiceError as ServiceError
from flows.servers import Services as Services
from flows.servers import call_api as call_api
from flows.servers import check_login, is_healthy
from flows.servers import child_environment as child_environment
from flows.servers import mlflow_page as mlflow_page
from flows.site import load_site
from storage.errors import ConfigError, UserError
from storage.files import naming_path
from storage.locks import locked

DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")
CONFIGURATION = Path(__file__).with_name("supervisord.conf")

_SOCKETS = Path(f"/tmp/prdit-{os.getuid()}")
_CORE = ("prefect", "mlflow", "worker")
_START_TIMEOUT_S = 90.0
_LOG_END = 2000
_STOP_TIMEOUT_S = 75.0  # a training has 60 s to save its state
logger = logging.getLogger("prdit.services")


class IntakeError(UserError, RuntimeError):
    """Servers and worker run, but watcher, listener or health checker does not."""


def running(state_dir: Path) -> Services | None:
    """The services up under a state directory, or None unless servers and worker run and answer.

    Raises: LoginError: they ask for a login that is not set here.
    """
    with contextlib.suppress(ServiceError):
        services = supervised(state_dir)
        if all(_is_up(services, name) for name in _CORE):
            return services
    return None


def started(state_dir: Path) -> Services | None:
    """The services that were started under a state directory, also while one of them is down; None where none were."""
    with contextlib.suppress(ServiceError):
        return supervised(state_dir)
    return None


def pids(services: Services) -> dict[str, int]:
    """Process ids by name, supervisord's first; 0 for a service that should run and does not.

    Raises: ServiceError: supervisord does not answer.
    """
    first = {"supervisord": _supervisor(services.state_dir, "getPID")}
    return first | {name: info["pid"] for name, info in processes(services).items()}


def processes(services: Services) -> dict[str, dict[str, Any]]:
    """What supervisord says of every service that was started, by name. Raises: ServiceError: it does not answer."""
    found = _supervisor(services.state_dir, "getAllProcessInfo")
    return {item["name"]: item for item in found if item["statename"] != "STOPPED" or item["name"] in _CORE}


def start(state_dir: Path, *, home: Path | None = None) -> Services:
    """Start the services, or those of them that do not run.

    Args:
        state_dir: directory for their databases and logs; made if needed.
        home: folder of the site whose scans are taken in; None: servers and worker only.
    Raises:
        ConfigError: settings that cannot be used, or the services run for another folder.
        DatabaseError: a database cannot be reached, or another version of its server wrote it.
        ServiceError: one did not come up (the message ends with its last output); nothing is left running.
        LoginError: they run with another login than the one that is set here.
        IntakeError: they run, but the intake does not.
    """
    state_dir = state_dir.resolve()
    server_settings()  # before anything is made
    with _locked(state_dir):
        if home:
            _check_home(state_dir, home)
        intake = _intake() if home else ()
        for name in ("prefect", "mlflow", "logs"):
            with naming_path(state_dir / name):
                (state_dir / name).mkdir(parents=True, exist_ok=True)
        services = _start_core(state_dir)
        _start_intake(services, intake)
    return services


def _start_core(state_dir: Path) -> Services:
    with contextlib.suppress(ServiceError):  # none runs
        services = supervised(state_dir)
        try:
            return _bring_up(services)
        except ServiceError as error:
            logger.warning("%s\nAll services are started anew.", error)
    _stop(state_dir)
    for database in databases(server_settings(), state_dir):
        prepare(database)
    try:
        return _bring_up(_start_supervisord(state_dir))
    except BaseException:  # Ctrl-C too: never leave half a set of servers behind
        _stop(state_dir)
        raise


def _intake() -> tuple[str, ...]:
    """Names of the programs that take scans in; the inbox is made where it is missing. Raises: ConfigError."""
    site = load_site()
    inbox = Path(site.inbox.folder)
    with naming_path(inbox):
        inbox.mkdir(parents=True, exist_ok=True, mode=0o700)
    return ("watcher", *(["listener"] if site.listener else []), "health")


def _check_home(state_dir: Path, home: Path) -> None:
    with contextlib.suppress(psutil.Error, ServiceError):  # none run
        other = psutil.Process(_supervisor(state_dir, "getPID")).environ().get("PRDIT_HOME", "")
        if other and Path(other) != home.resolve():
            raise ConfigError(
                f"The services of {state_dir} run for the folder {other}. Call `prdit up` there, or end them first: "
                f"prdit down --state {state_dir}"
            )


def _start_intake(services: Services, names: tuple[str, ...]) -> None:
    """Start the intake and wait until it has run for some seconds. Raises: IntakeError."""
    for name in names:
        with contextlib.suppress(ServiceError):  # it runs
            start_program(services, name)
    deadline = time.monotonic() + _START_TIMEOUT_S
    waiting = list(names)
    while waiting:
        info = _supervisor(services.state_dir, "getProcessInfo", waiting[0])
        if info["statename"] == "RUNNING":
            waiting.pop(0)
        elif info["statename"] == "FATAL" or time.monotonic() > deadline:
            raise IntakeError(
                f"Servers and worker run, but {waiting[0]} ended while starting. Correct what it says and call prdit up again; "
                f"prdit down ends the rest. {_log(services, waiting[0])}"
            )
        else:
            time.sleep(0.2)


def start_program(services: Services, name: str) -> None:
    """Start one service. Raises: ServiceError: it runs already, or supervisord does not answer."""
    _supervisor(services.state_dir, "startProcess", name, False)


def stop(state_dir: Path) -> list[int]:
    """End the services and everything they started: SIGTERM, wait, SIGKILL. Returns: ids of the processes ended, sorted."""
    state_dir = state_dir.resolve()
    with _locked(state_dir):
        return _stop(state_dir)


def running_processes(state_dir: Path) -> list[int]:
    """Ids of everything that came of the services and still runs, sorted; also after their supervisord was killed."""
    return sorted(process.pid for process in _started(state_dir.resolve()))


def deploy(services: Services, directory: Path) -> str:
    """Register the deployments of prdit, and what Prefect's server does by itself (flows/automations.py).

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
    from flows.automations import ensure_automations, switched_off  # which need the services themselves

    off = switched_off(services)
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
    ensure_automations(services, off)
    return done.stdout


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
        | {"PRDIT_PREFECT_PORT": ports[0], "PRDIT_MLFLOW_PORT": ports[1], "PRDIT_HOME": str(Path.cwd())},
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

    Raises:
        ServiceError: supervisord does not answer or has given a service up, or one does not answer in time.
        LoginError: the servers were started with another login, or without one.
    """
    for started, awaited in ((("prefect", "mlflow"), ("prefect",)), (("worker",), ("mlflow", "worker"))):
        for name in started:
            with contextlib.suppress(ServiceError):  # it runs
                start_program(services, name)
        for name in awaited:
            deadline = time.monotonic() + _START_TIMEOUT_S
            while not _is_up(services, name):
                if time.monotonic() > deadline:
                    raise ServiceError(f"{name} did not answer within {_START_TIMEOUT_S:.0f} s. {_log(services, name)}")
                time.sleep(0.2)
    check_login(services)
    return services


def _is_up(services: Services, name: str) -> bool:
    """Whether a service runs and answers, from a process of its own.

    Raises:
        ServiceError: supervisord does not answer, or has given the service up.
        LoginError: the Prefect server asks for another login.
    """
    info = _supervisor(services.state_dir, "getProcessInfo", name)
    if info["statename"] == "FATAL":
        raise ServiceError(f"{name} ended while starting. {_log(services, name)}")
    if name == "worker":
        try:
            return info["pid"] > 0 and worker_is_online(services)
        except ServiceError:
            return False
    url = {"prefect": services.prefect_ui_url, "mlflow": services.mlflow_url}[name]
    return is_healthy(services, name) and _listens(info["pid"], urlsplit(url).port)


def worker_is_online(services: Services) -> bool:
    """Whether the Prefect server has heard of our worker lately. Raises: ServiceError, LoginError: it does not say."""
    workers = call_api(services, "POST", f"/work_pools/{WORK_POOL}/workers/filter", {})
    own = f"local-{urlsplit(services.prefect_ui_url).port}"
    return any(item["name"] == own and item["status"] == "ONLINE" for item in workers)


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
    return f"{path} ends with:\n{last_output(services.state_dir, name)}"


def last_output(state_dir: Path, name: str) -> str:
    """The end of a service's log, empty without one; supervisord itself cannot send every character that is in it."""
    try:
        with (state_dir / "logs" / f"{name}.log").open("rb") as stream:
            if (begin := stream.seek(0, os.SEEK_END) - _LOG_END) > 0:
                stream.seek(begin)
                stream.readline()  # the rest of a line
            else:
                stream.seek(0)
            return stream.read().decode(errors="replace").strip()
    except OSError:
        return ""


# --- supervisord ----------------------------------------------------------------------------------------------------------


def _services(state_dir: Path, *ports: str) -> Services:
    prefect_url, mlflow_url = (f"http://{HOST}:{port}" for port in ports)
    return Services(state_dir=state_dir, prefect_ui_url=prefect_url, mlflow_url=mlflow_url)


def supervised(state_dir: Path) -> Services:
    """The services as supervisord has them, with the ports in its identifier. Raises: ServiceError: it does not answer."""
    state_dir = state_dir.resolve()
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
    except (OSError, Fault, ProtocolError) as error:
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
