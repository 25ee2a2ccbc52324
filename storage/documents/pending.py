"""pending.json: what an unfinished stage reads, in its scratch folder."""

from typing import Any, ClassVar

from pydantic import Field

from storage.documents.document import Document
from storage.refs import Ref


class Pending(Document):
    """A stage that has begun. Its inputs are needed until it is finished, so `prdit prune` keeps them.

    Attributes:
        stage: name of the stage.
        inputs: references it reads, by role.
        config: resolved configuration of the stage.
    """

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "pending.json"
    WHAT: ClassVar[str] = "record of an unfinished stage"
    REMEDY: ClassVar[str] = "Run the stage again."

    stage: str
    inputs: dict[str, Ref]
    config: dict[str, Any] = Field(default_factory=dict)
