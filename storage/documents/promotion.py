"""`decisions/<number>.json` beside the working folder: every decision about champion and challenger, with its reason."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from storage.documents.document import Document
from storage.documents.snapshot import Digest

Action = Literal["promoted", "held", "rolled back"]


class Decision(Document):
    """One decision; the file of the highest number is the last.

    Attributes:
        action: what was decided. `promoted`, `rolled back`: `champion` is the version named afterwards.
        reason: a paragraph that a person reads; with figures.
        champion: version of the registered model that is champion afterwards; None: there is none.
        champion_before: the one before.
        challenger: version that was judged; None for a rollback.
        checkpoint: digest of the challenger's checkpoint, or of the one rolled back to.
        snapshot: digest of the snapshot that it was trained on; empty where it is not known.
        figures: what the decision rests on, by name.
        by: `policy <name>`, or `command`.
        created: UTC time.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "decision about a champion"
    REMEDY: ClassVar[str] = "Restore it from a backup; MLflow's aliases say which version is champion."

    action: Action
    reason: str
    champion: int | None
    champion_before: int | None
    challenger: int | None = None
    checkpoint: Digest
    snapshot: str = ""
    figures: dict[str, Any] = Field(default_factory=dict)
    by: str
    created: str
