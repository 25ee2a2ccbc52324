"""`reference/<number>.json` in the working folder: the frozen volumes on which champion and challenger are compared."""

from typing import ClassVar

from pydantic import Field

from storage.documents.document import Document
from storage.documents.snapshot import Digest


class Reference(Document):
    """Held-out volumes and noise of the comparison; the file of the highest number counts.

    Attributes:
        volumes: patient key by volume id.
        snapshot: of which they were taken; says their labels.
        num_noises: noises per volume at each of the process's validation times.
        seed: of the noises.
        why: this one was made, one sentence.
        created: UTC time.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "frozen reference of the retraining"
    REMEDY: ClassVar[str] = "Remove it: the next retraining makes a new one of the volumes that are held out now."

    volumes: dict[str, str]
    snapshot: Digest
    num_noises: int = Field(ge=1)
    seed: int
    why: str
    created: str

    @property
    def num_patients(self) -> int:
        """Patients behind the volumes."""
        return len(set(self.volumes.values()))
