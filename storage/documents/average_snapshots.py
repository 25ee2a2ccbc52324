"""snapshots.json: the averages a training kept, from which one of another width can be made."""

from typing import ClassVar

from storage.documents.document import Document, Part


class AverageSnapshot(Part):
    """One file of averaged weights: its name, the optimiser step it is of, and the average's relative width."""

    file: str
    updates: int
    sigma_rel: float


class AverageSnapshots(Document):
    """The snapshots of a training's averages, in order."""

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "snapshots.json"
    WHAT: ClassVar[str] = "list of averages"
    REMEDY: ClassVar[str] = (
        "Train with ema_snapshots above 0 (such as --set recipe.global.ema_snapshots=500); only then are averages kept."
    )

    snapshots: tuple[AverageSnapshot, ...]
