"""The site's settings: inbox, what retraining runs with, the servers, whom to notify, what is kept.

They stand in `.prdit/site.yaml`, beside the state of the services; every key has a default. Secrets and addresses of servers can be
given by environment variables instead (`PRDIT_DATABASE`, `PRDIT_ARTIFACTS`, `PRDIT_AUTH`).
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flows.notify import NotifyConfig

FILE = Path(".prdit") / "site.yaml"


class InboxSettings(BaseModel):
    """Where new scans arrive. Owner: tasks/inbox."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field(
        ".prdit/inbox", min_length=1, description="people and the listener put scans here; it is only read"
    )
    arrivals: str = Field(".prdit/arrivals", min_length=1, description="ledger and batches; not in the inbox")
    quiet_s: float = Field(
        120.0, gt=0, description="a series whose number of images is unknown is complete after this time"
    )


class SiteConfig(BaseModel):
    """Settings of one installation."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="prdit site")

    configuration: str = Field("small", min_length=1, description="what retraining runs: a named configuration")
    store: str = Field(".prdit/store", min_length=1, description="volume store")
    overrides: dict[str, Any] = Field(default_factory=dict, description="settings on top of the configuration")
    policy: str = Field("default", min_length=1, description="policy of retraining by name")
    inbox: InboxSettings = Field(default_factory=InboxSettings)
    notify: NotifyConfig = Field(default_factory=NotifyConfig)


def load_site(path: Path = FILE) -> SiteConfig:
    """The site's settings; defaults where there is no file.

    Raises: ConfigError: unknown keys or values out of range, each on a line; an inbox in the store, or the store in the inbox.
    """
    raise NotImplementedError
