"""Who may write in the folder of one training: numbered versions, of which the highest counts."""

from typing import ClassVar

from storage.documents.document import Document


class Lease(Document):
    """One launch of a training, or the end of one.

    Attributes:
        host: name of the machine that launched it.
        machine: that machine since its start, see `storage.processes`.
        pid: of the launching process.
        started: when that process started, whole seconds of Unix time.
        since: UTC time of this record, ISO 8601.
        released: whether the launch has ended, so that nobody may write.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "lease of a training"
    REMEDY: ClassVar[str] = "Make sure that no process of this training runs, remove the file, then run again."

    host: str
    machine: str
    pid: int
    started: int
    since: str
    released: bool
