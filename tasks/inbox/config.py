"""Settings of what brings new scans: how an inbox is watched, and the DICOM listener."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from storage.errors import ConfigError

QUIET_S = 120.0


@dataclass(frozen=True)
class Timing:
    """When a file, and a series, count as whole.

    Attributes:
        quiet_s: a series of which no list says how many images it has is complete after so long without a change.
        association_s: the same, where the listener received all of it in associations that the sender ended properly. Not at
            once: some senders open an association for each image.
        settle_s: a file is read when it has not changed for so long.
    """

    quiet_s: float = QUIET_S
    association_s: float = 15.0
    settle_s: float = 2.0


def overlapping(inbox: Path, arrivals: Path, store: Path) -> list[str]:
    """Which of the places contain each other, a line each: what we write would be read as new scans, or the other way round."""
    named = {"inbox.folder": inbox, "inbox.arrivals": arrivals, "store": store}
    problems = []
    for one, other in (("inbox.folder", "store"), ("inbox.folder", "inbox.arrivals"), ("inbox.arrivals", "store")):
        here, there = named[one].resolve(), named[other].resolve()
        if here == there:
            relation = f"the same folder as {other}"
        elif there in here.parents:
            relation = f"inside {other} ({named[other]})"
        elif here in there.parents:
            relation = f"a folder that contains {other} ({named[other]})"
        else:
            continue
        problems.append(f"{one}: {named[one]} is {relation}; give each a folder of its own")
    return problems


def check_places(inbox: Path, arrivals: Path, store: Path) -> None:
    """Refuse an inbox that would find our own files, or lies in them. Raises: ConfigError: places that are `overlapping`."""
    if problems := overlapping(inbox, arrivals, store):
        raise ConfigError(
            "Inbox, ledger and store must not lie in each other (options of the command, or .prdit/site.yaml): "
            f"{'. '.join(problems)}."
        )


def check_ae_title(title: str) -> None:
    """Refuse what DICOM does not take as the title of an application. Raises: ValueError."""
    if not title.strip() or len(title) > 16 or not title.isascii() or not title.isprintable() or "\\" in title:
        raise ValueError(
            f"{title!r} is no AE title: 1 to 16 characters of ASCII, no backslash (DICOM PS3.5, value representation AE)"
        )


class ListenerConfig(BaseModel):
    """The DICOM listener (C-STORE): who may send what."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for the whole network")
    port: int = Field(11112, ge=1, le=65535, description="TCP port")
    ae_title: str = Field("PRDIT", description="its own AE title; calls to another are rejected")
    allowed: tuple[str, ...] = Field((), description="AE titles that may send; none: the listener does not start")
    max_object_mb: int = Field(2048, ge=1, description="larger objects end their association")
    min_free_gb: float = Field(5.0, ge=0, description="free space in the inbox below which nothing is accepted")
    max_associations: int = Field(8, ge=1, le=100, description="at the same time")
    timeout_s: float = Field(60.0, gt=0, description="without a word from a sender, its association is ended")

    @field_validator("ae_title", "allowed")
    @classmethod
    def _are_titles(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for title in (value,) if isinstance(value, str) else value:
            check_ae_title(title)
        return value
