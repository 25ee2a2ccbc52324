"""The installation that a command or flow works in: its places by settings, and what its registry knows."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from flows.config import PipelineConfig, from_parameters, merge
from flows.databases import databases
from flows.faults import ERRORS_DIRECTORY
from flows.named_files import config_names
from flows.serve import artifacts_place
from flows.server_settings import server_settings
from flows.services import DEFAULT_STATE_DIR, child_environment, running, started
from flows.site import SiteConfig
from storage.errors import StorageError
from storage.inbox_database import NAME
from storage.inbox_ledger import Ledger
from storage.places import as_place
from storage.registry import ModelVersion, Registry
from tasks.maintain.run import Installation

SiteChoice = Annotated[str, Field(json_schema_extra={"enum": ["", *config_names()]})]  # of a flow; "" is the site's
logger = logging.getLogger("prdit.maintain")


def site_config(
    site: SiteConfig, configuration: str = "", store: str = "", overrides: Mapping[str, Any] | None = None
) -> PipelineConfig:
    """The configuration of a flow's parameters; the site's where they are not given.

    Raises: ConfigError: as `from_parameters`.
    """
    return from_parameters(
        configuration or site.configuration, "", store or site.store, merge(site.overrides, dict(overrides or {}))
    )


def installation(config: PipelineConfig, site: SiteConfig, tracking_uri: str | None) -> Installation:
    """The installation, with what the registry knows.

    Args:
        config: names store and working folder.
        site: names the rest.
        tracking_uri: of MLflow; None: there is none.
    """
    return Installation(
        store=as_place(config.store),
        workdir=Path(config.workdir),
        services=DEFAULT_STATE_DIR,
        arrivals=Path(site.inbox.arrivals),
        errors=ERRORS_DIRECTORY,
        versions=versions(tracking_uri, Path(config.workdir)),
        experiment=config.experiment,
    )


def mlflow_address() -> str | None:
    """Tracking address of MLflow: `MLFLOW_TRACKING_URI`, else that of the local services where they were started."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    services = started(DEFAULT_STATE_DIR)  # one that is down for a moment is not another one
    return services.mlflow_url if services else None


def use_services() -> None:
    """Have this process work with the local services where they run, except for servers that its environment names.

    To be called before Prefect or MLflow is imported. Raises: LoginError: they ask for a login that is not set here.
    """
    named = {name: os.environ[name] for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI") if os.environ.get(name)}
    if "PREFECT_API_URL" not in named and (services := running(DEFAULT_STATE_DIR)):
        os.environ.update(child_environment(services) | named)
    elif address := mlflow_address():
        os.environ["MLFLOW_TRACKING_URI"] = address


def registry_uri(workdir: Path) -> str:
    """Address of the MLflow that has the registered model: `mlflow_address`, else the file in the working folder."""
    from flows.record import tracking_uri

    return mlflow_address() or tracking_uri(workdir)


@contextmanager
def opened_ledger(arrivals: Path) -> Iterator[Ledger | None]:
    """The ledger of an inbox, closed again afterwards; None where nothing has arrived, and nothing is made.

    Raises: StorageError: the ledger is damaged.
    """
    if not (arrivals / NAME).exists():
        yield None
        return
    with closing(Ledger(arrivals)) as ledger:
        yield ledger


def versions(tracking_uri: str | None, workdir: Path) -> list[ModelVersion] | None:
    """The versions of the registered model; None where MLflow does not answer."""
    if not tracking_uri:
        return None
    try:
        return Registry(tracking_uri, workdir=workdir).versions()
    except StorageError as error:
        logger.warning("the registered model is not known: %s", error)
        return None


def mlflow_backend(tracking_uri: str, services: Path) -> tuple[str, str | None]:
    """Address of the database behind a tracking address, with its password, and where its artifacts are.

    A file, or else the database of this site's server. Raises: ConfigError: the servers' settings cannot be used.
    """
    if tracking_uri.startswith("sqlite:///"):
        return tracking_uri, None
    settings = server_settings()
    _, database = databases(settings, services.resolve())
    return database.url.render_as_string(hide_password=False), artifacts_place(settings, services.resolve())
