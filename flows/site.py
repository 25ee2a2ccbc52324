"""The site's settings: inbox, what retraining runs with, the servers, whom to notify, what is kept.

They stand in `.prdit/site.yaml`, beside the state of the services; every key has a default. Secrets and addresses of servers can be
given by environment variables instead (`PRDIT_DATABASE`, `PRDIT_ARTIFACTS`, `PRDIT_AUTH`), which come before the file.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flows.named_files import SITE_FILE, config_names, is_file_name, policy_names
from flows.notify import NotifyConfig
from flows.settings_text import explained, read_settings
from storage.errors import ConfigError
from storage.places import as_folder, as_place
from tasks.inbox.config import QUIET_S, ListenerConfig, overlapping
from tasks.maintain.config import RetentionConfig


class InboxSettings(BaseModel):
    """Where new scans arrive."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    folder: str = Field(
        ".prdit/inbox", min_length=1, description="people and the listener put scans here; it is only read"
    )
    arrivals: str = Field(".prdit/arrivals", min_length=1, description="ledger and batches; not in the inbox")
    quiet_s: float = Field(
        QUIET_S, gt=0, description="a series whose number of images is unknown is complete after this time"
    )


class ServiceSettings(BaseModel):
    """Where the servers keep what they know, and who may ask them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database: str | None = Field(
        None,
        min_length=1,
        description="postgresql://user@host:port with the databases prefect and mlflow (or PRDIT_DATABASE); null: SQLite files",
    )
    artifacts: str | None = Field(
        None,
        min_length=1,
        description="MLflow's artifacts: a folder or s3://bucket/prefix (or PRDIT_ARTIFACTS); null: beside its database",
    )
    auth_file: str | None = Field(
        None,
        min_length=1,
        description="file with user:password, for both servers (or the text itself in PRDIT_AUTH); null: no authentication",
    )


class SiteConfig(BaseModel):
    """Settings of one installation."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="prdit site")

    configuration: str = Field(
        "small", min_length=1, description="what retraining runs: a named configuration or a YAML file"
    )
    store: str = Field(".prdit/store", min_length=1, description="volume store: a folder, or s3://bucket/prefix")
    overrides: dict[str, Any] = Field(default_factory=dict, description="settings on top of the configuration")
    policy: str = Field("default", min_length=1, description="policy of retraining by name")
    inbox: InboxSettings = Field(default_factory=InboxSettings, description="where new scans arrive")
    listener: ListenerConfig | None = Field(None, description="DICOM listener; null: none runs")
    notify: NotifyConfig = Field(default_factory=NotifyConfig, description="where messages go besides the log")
    retention: RetentionConfig = Field(default_factory=RetentionConfig, description="what is kept, and for how long")
    services: ServiceSettings = Field(
        default_factory=ServiceSettings, description="databases, artifacts and authentication of the servers"
    )


def load_site(path: Path = SITE_FILE) -> SiteConfig:
    """The site's settings; defaults where there is no file.

    Raises: ConfigError: unknown keys or values out of range, each on a line; an inbox in the store, or the store in the inbox.
    """
    values = read_settings(path, "the site's settings", "policy: default") if path.exists() else {}
    with explained(f"site settings {path}", SiteConfig):
        site = SiteConfig.model_validate(values)
    for key in ("folder", "arrivals"):
        as_folder(getattr(site.inbox, key), f"site settings {path}: inbox.{key}")
    places = overlapping(Path(site.inbox.folder), Path(site.inbox.arrivals), as_place(site.store))
    problems = [*_unknown_names(site), *places]
    if problems:
        raise ConfigError("\n".join([f"site settings {path}:", *(f"  {line}" for line in problems)]))
    return site


def _unknown_names(site: SiteConfig) -> list[str]:
    kinds = {"configuration": config_names(), "policy": policy_names()}
    problems = []
    for key, names in kinds.items():
        name = getattr(site, key)
        if name not in names and not (is_file_name(name) and Path(name).is_file()):
            missing = "no such file" if is_file_name(name) else f"no {key} of prdit"
            problems.append(
                f"{key}: {name!r} is {missing}; there are {', '.join(names)}, and files whose name ends in .yaml"
            )
    return problems
