"""`maintenance.json` in the working folder: what the last maintenance found and removed."""

from typing import ClassVar

from pydantic import Field

from storage.documents.document import Document, Part


class Damage(Part):
    """Something that is damaged or lost.

    Attributes:
        kind: `volume`, `snapshot`, …
        name: id of it.
        message: what is wrong.
    """

    kind: str
    name: str
    message: str


class Removal(Part):
    """What was removed of one kind.

    Attributes:
        what: the kind.
        count: of folders, files or runs.
        size_bytes: of them; 0 where it is not known.
    """

    what: str
    count: int
    size_bytes: int


class Place(Part):
    """What one part of the installation takes.

    Attributes:
        name: of the part, such as `store`.
        size_bytes: of its files.
    """

    name: str
    size_bytes: int


class Upkeep(Document):
    """One maintenance.

    Attributes:
        created: UTC time of its end.
        verified: volumes whose every byte was checked, at the last verification; None: there was none.
        verified_at: UTC time of that; None: there was none.
        damage: what it found damaged or lost.
        removed: what was removed by retention.
        places: what the parts of the installation take, afterwards.
        free_bytes: free disk, afterwards.
        min_free_bytes: that the site keeps free.
        unfinished: stages that began and that no process works on, as `stage/key`.
        notes: what could not be done, and why.
    """

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "maintenance.json"
    WHAT: ClassVar[str] = "record of a maintenance"
    REMEDY: ClassVar[str] = "Run `prdit maintain`."

    created: str
    verified: int | None
    verified_at: str | None = None
    damage: tuple[Damage, ...] = ()
    removed: tuple[Removal, ...] = ()
    places: tuple[Place, ...] = ()
    free_bytes: int
    min_free_bytes: int
    unfinished: tuple[str, ...] = ()
    notes: tuple[str, ...] = Field(())

    @property
    def is_low(self) -> bool:
        """Whether less disk is free than the site keeps free."""
        return self.free_bytes < self.min_free_bytes
