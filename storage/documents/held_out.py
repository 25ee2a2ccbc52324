"""`held-out/<reference>/<checkpoint>.json` in the working folder: losses of a checkpoint on a frozen reference."""

from typing import ClassVar, Literal

from storage.documents.document import Document
from storage.documents.snapshot import Digest


class HeldOutLosses(Document):
    """Losses per volume.

    Attributes:
        checkpoint: digest of the checkpoint.
        weights: which of its two sets.
        reference: number of the reference.
        losses: by volume id.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "list of held-out losses"
    REMEDY: ClassVar[str] = "Remove it: the next retraining measures them again."

    checkpoint: Digest
    weights: Literal["ema", "raw"]
    reference: int
    losses: dict[str, float]
