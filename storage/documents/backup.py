"""backup.json: what a back-up of an installation holds, and where each file goes when it is restored."""

from typing import ClassVar, Literal

from pydantic import Field

from storage.documents.document import Document, Part


class BackupFile(Part):
    """One file of a back-up.

    Attributes:
        sha256: hex digest of its bytes.
        target: where it belongs: relative to the folder of the installation, or absolute; empty for dumps of PostgreSQL.
        group: what is replaced together; `store` (with the records of removed checkpoints) is only ever added to.
    """

    sha256: str
    target: str
    group: Literal["databases", "settings", "inbox", "work", "store"]


class BackupDocument(Document):
    """A back-up.

    Attributes:
        created: UTC time.
        prdit: version that made it.
        databases: where the servers' databases were: SQLite files, or PostgreSQL.
        revisions: of the servers' tables, by server; None where there were none.
        files: by their path in the back-up.
    """

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "backup.json"
    WHAT: ClassVar[str] = "back-up of an installation"
    REMEDY: ClassVar[str] = "Name the folder that `prdit backup` wrote, or an older one."

    created: str
    prdit: str
    databases: Literal["sqlite", "postgresql"]
    revisions: dict[str, str | None]
    files: dict[str, BackupFile] = Field(default_factory=dict)
