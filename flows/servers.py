"""The servers of one state directory: where they are, the environment of their clients, and requests to them."""

import base64
import contextlib
import json
import os
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from pydantic import BaseModel, ConfigDict

from flows.server_settings import ServerSettings, server_settings
from storage.errors import UserError
from tasks.run.machine import limit_threads

HOST = "127.0.0.1"

# Without a proxy: a user's http_proxy must not carry requests to this machine away.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServiceError(UserError, RuntimeError):
    """A local service did not come up, or a command against it failed."""


class LoginError(UserError, PermissionError):
    """A server asks for another login than the one that is set here, or for none."""


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


def common_environment(state_dir: Path) -> dict[str, str]:
    """What a service, and every process that works with the services, has in its environment, whoever starts it.

    With the safe path: else Prefect's process for cancellation hooks finds a `storage` of its own, beside its script, instead of
    ours. Heartbeats of runs come by default too seldom for flows/automations.py, which takes a silent run for dead.
    """
    return {
        "PYTHONSAFEPATH": "1",
        "PREFECT_HOME": str(state_dir / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "prdit",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
    }


def child_environment(services: Services) -> dict[str, str]:
    """The whole environment of a process working with the services.

    Ours without any Prefect or MLflow setting (a profile or key for another server must not leak in), with this Python's
    scripts first on PATH, so that a worker starts flow runs in the same venv.

    Raises: ConfigError: the login that the servers ask for cannot be used.
    """
    inherited = {key: value for key, value in os.environ.items() if not _is_for_other_servers(key)}
    direct = [item for item in inherited.get("NO_PROXY", inherited.get("no_proxy", "")).split(",") if item]
    no_proxy = ",".join(dict.fromkeys([*direct, HOST, "localhost"]))
    limit_threads(inherited)
    return {
        **inherited,
        **common_environment(services.state_dir),
        **server_settings().client_variables(),
        "PATH": str(Path(sys.executable).parent) + os.pathsep + inherited.get("PATH", ""),
        "PREFECT_API_URL": services.prefect_api_url,
        "MLFLOW_TRACKING_URI": services.mlflow_url,
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }


def _is_for_other_servers(key: str) -> bool:
    return key.startswith(("PREFECT_", "MLFLOW_")) and not key.startswith("MLFLOW_S3_")


# ---- requests ----------------------------------------------------------------------------------------------------------


def call_api(services: Services, method: str, path: str, body: Any = None, *, timeout_s: float = 10.0) -> Any:
    """One request to Prefect's REST API; `path` as in `/flow_runs/<id>`. Returns the decoded JSON (None for an empty answer).

    Raises:
        ServiceError: no answer, or an error status.
        LoginError: the server asks for a login that we have not.
    """
    text = _request(services.prefect_api_url + path, method, body, timeout_s, server_settings())
    try:
        return json.loads(text) if text else None
    except ValueError as error:
        raise ServiceError(
            f"{services.prefect_api_url}{path} answers with something else than JSON: is it Prefect?"
        ) from error


def is_healthy(services: Services, name: str) -> bool:
    """Whether a server, `prefect` or `mlflow`, answers its health page. No password is sent: a stranger may have the port."""
    url = {"prefect": services.prefect_api_url, "mlflow": services.mlflow_url}[name]
    with contextlib.suppress(ServiceError, LoginError):
        _request(f"{url}/health")
        return True
    return False


def check_login(services: Services) -> None:
    """Make sure that servers which should ask for a login do.

    Raises:
        LoginError: they answer without, or take another.
        ServiceError: no answer.
    """
    if server_settings().login is None:
        return
    call_api(services, "GET", "/admin/version")
    for label, url in (
        ("Prefect", f"{services.prefect_api_url}/admin/version"),
        ("MLflow", f"{services.mlflow_url}/version"),
    ):
        with contextlib.suppress(LoginError):
            _request(url)
            raise _open_error(label)


def _open_error(label: str) -> UserError:
    return ServiceError(
        f"The {label} server answers without a login, because it was started before PRDIT_AUTH (services.auth_file) was set. "
        "Start the services again: prdit down, then prdit up."
    )


def _request(
    url: str, method: str = "GET", body: Any = None, timeout_s: float = 5.0, settings: ServerSettings | None = None
) -> str:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if settings and settings.login:
        headers["Authorization"] = f"Basic {base64.b64encode(settings.login.get_secret_value().encode()).decode()}"
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    try:
        with _OPENER.open(request, timeout=timeout_s) as answer:
            return str(answer.read().decode())
    except HTTPError as error:
        if error.code == 401:
            what = "takes another login than" if settings and settings.login else "asks for a login:"
            raise LoginError(
                f"The server at {url} {what} PRDIT_AUTH=user:password (or services.auth_file in .prdit/site.yaml)."
            ) from error
        raise ServiceError(f"{method} {url} failed: {error}") from error
    except (OSError, HTTPException) as error:
        # No connection, or a stranger on the port that speaks no HTTP.
        raise ServiceError(f"{method} {url} failed: {error}") from error
