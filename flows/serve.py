"""One service in this process: prepares its settings, then becomes the Prefect server, MLflow server, worker, watcher or listener.

supervisord runs it (flows/supervisord.conf), and so do systemd units and containers (deploy/): all start the servers alike, with
the same login, and on no database of another version.
"""

import argparse
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from ipaddress import ip_address
from pathlib import Path

from flows.databases import databases, prepare
from flows.mlflow_login import APP_NAME
from flows.server_settings import ServerSettings, server_settings
from flows.servers import common_environment
from flows.site import load_site
from storage.errors import ConfigError, UserError
from tasks.run.heartbeat import VARIABLE as HEARTBEAT
from tasks.run.machine import limit_threads

SERVICES = ("prefect", "mlflow", "worker", "watcher", "listener")
WORK_POOL = "prdit"
DEFAULT_STATE_DIR = Path(".prdit") / "services"
PORTS = {"prefect": 4200, "mlflow": 5000}


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m flows.serve NAME`: works in PRDIT_HOME where that is set, else in the current folder."""
    parser = argparse.ArgumentParser(prog="flows.serve")
    parser.add_argument("name", choices=SERVICES)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int)
    parser.add_argument("--worker-name", default="")
    parser.add_argument("--state", type=Path, default=Path.cwd() if "PRDIT_HOME" in os.environ else DEFAULT_STATE_DIR)
    given = parser.parse_args(arguments)
    state_dir = given.state.resolve()
    if home := os.environ.get("PRDIT_HOME"):
        os.chdir(home)
    try:
        become(given.name, state_dir, host=given.host, port=given.port, worker_name=given.worker_name)
    except UserError as error:
        sys.exit(f"{given.name} cannot start: {error}")


def become(name: str, state_dir: Path, *, host: str, port: int | None, worker_name: str = "") -> None:
    """Replace this process by a service.

    Args:
        name: one of `SERVICES`.
        state_dir: of the services.
        host, port: what a server listens on; None: its usual port.
        worker_name: of the worker; empty: the machine's.
    Raises:
        ConfigError: settings that cannot be used, or a server for others without a login.
        DatabaseError: a database that cannot be reached, or of another version.
    """
    settings = server_settings()
    words, variables = {
        "prefect": _prefect,
        "mlflow": _mlflow,
    }.get(name, _client)(name, settings, state_dir, host, port or PORTS.get(name, 0))
    if name == "worker":
        words += ["--name", worker_name or socket.gethostname()]
    environment = {**_environment(name, state_dir), **settings.client_variables(), **variables}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *words], environment)


def _environment(name: str, state_dir: Path) -> dict[str, str]:
    """What every service needs. Who talks to scanners and people's folders does not get the database's password.

    The worker does, as PRDIT_DATABASE where that is set: maintenance empties MLflow's trash, which only its database can.
    """
    inherited = {k: v for k, v in os.environ.items() if k != "PRDIT_DATABASE" or name not in ("watcher", "listener")}
    limit_threads(inherited)
    defaults = {**common_environment(state_dir), "PYTHONUNBUFFERED": "1"}
    return {**defaults, **inherited, HEARTBEAT: str(state_dir / "alive" / name)}


Command = tuple[list[str], Mapping[str, str]]


def _prefect(name: str, settings: ServerSettings, state_dir: Path, host: str, port: int) -> Command:
    _check_host(host, settings)
    database, _ = databases(settings, state_dir)
    prepare(database)
    variables = {
        **{name: os.environ.get(name, value) for name, value in load_site().retention.prefect_environment().items()},
        **database.variables(),
        # The UI's files are rewritten at each start, by default inside site-packages, where two servers would collide.
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(state_dir / "prefect" / "ui"),
    }
    if settings.login:
        variables["PREFECT_SERVER_API_AUTH_STRING"] = settings.login.get_secret_value()
    return ["-m", "prefect", "server", "start", "--host", host, "--port", str(port)], variables


def _mlflow(name: str, settings: ServerSettings, state_dir: Path, host: str, port: int) -> Command:
    _check_host(host, settings)
    _, database = databases(settings, state_dir)
    if database.file:
        database.file.parent.mkdir(parents=True, exist_ok=True)
    prepare(database)
    words = ["-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    if settings.login:
        if APP_NAME not in entry_points(group="mlflow.app").names:
            raise ConfigError(
                "this installation of prdit is older than its code and has no login for MLflow: install it again (make setup)."
            )
        words += ["--app-name", APP_NAME]
    variables = {
        **database.variables(),
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts_place(settings, state_dir),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # several processes of 240 MB, for what prdit does not use
    }
    return words, variables


def _client(name: str, settings: ServerSettings, state_dir: Path, host: str, port: int) -> Command:
    if name == "worker":
        pool = ["--pool", WORK_POOL, "--type", "process", "--limit", "1", "--install-policy", "never"]
        return ["-m", "prefect", "worker", "start", *pool], {"PREFECT_WORKER_QUERY_SECONDS": "2"}
    return ["-m", "flows.cli", {"watcher": "watch", "listener": "listen"}[name]], {}


def artifacts_place(settings: ServerSettings, state_dir: Path) -> str:
    """Where MLflow keeps artifacts: an address on S3, or an absolute folder."""
    if settings.artifacts and "://" in settings.artifacts:
        return settings.artifacts
    return str(Path(settings.artifacts).resolve() if settings.artifacts else state_dir / "mlflow" / "artifacts")


def _check_host(host: str, settings: ServerSettings) -> None:
    """Other machines may ask a server only with a login."""
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and settings.login is None:
        raise ConfigError(
            f"--host {host} would let everybody on the network in: set PRDIT_AUTH=user:password first (docs/operations.md)."
        )


if __name__ == "__main__":
    main()
