"""References: how one stage names what another made."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from storage.places import as_place

Kind = Literal[
    "source",
    "verdicts",
    "snapshot",
    "split",
    "checkpoint",
    "measurement",
    "samples",
    "report",
]


class Ref(BaseModel):
    """A reference to one artifact: all that crosses a task boundary.

    Attributes:
        kind: what it is.
        uri: absolute path or URL of its directory; of the store, for a snapshot; of a source an opaque id, as its
            path may reveal who was scanned.
        digest: `sha256:<hex>` of its content.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    uri: str
    digest: str

    @property
    def path(self) -> Path:
        """The artifact's directory."""
        return as_place(self.uri)
