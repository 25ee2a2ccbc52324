"""`retrain/<number>.json` in the working folder: which retraining was begun, why, and what became of it."""

from typing import ClassVar, Literal

from storage.documents.document import Document
from storage.documents.snapshot import Digest

Outcome = Literal["", "promoted", "held", "failed", "given up"]


class Retraining(Document):
    """One retraining, as far as it has come; the file of the highest number counts.

    Attributes:
        outcome: empty while it is under way, also after its process was killed; `failed`: its losses or samples came to nothing
            usable; `given up`: its settings were changed before it came to an end, a patient of its snapshot was forgotten, or what
            it was given could not be used.
        snapshot: digest of the snapshot that the challenger is trained on.
        num_volumes, num_patients: of the snapshot.
        reason: why it was begun.
        policy: name.
        settings: digest of policy and configuration: with others it is not continued.
        champion: version that it is compared with; None: there was none.
        initial: digest of the checkpoint with whose weights it begins; empty: from scratch.
        begun, ended: UTC times; the last is empty while it is under way.
        challenger: version of its challenger, once it is registered.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "record of a retraining"
    REMEDY: ClassVar[str] = "Remove it: the next retraining then decides anew; what was trained is found in the cache."

    outcome: Outcome = ""
    snapshot: Digest
    num_volumes: int
    num_patients: int
    reason: str
    policy: str
    settings: str
    champion: int | None
    initial: str
    begun: str
    ended: str = ""
    challenger: int | None = None
