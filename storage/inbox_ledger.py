"""The ledger of an inbox: every series and file that was ever seen there, and the batches in which they were ingested.

A SQLite file outside the inbox, which is only read. Events of the file system only wake the watcher: what is true is what a look at
the inbox finds, held against this ledger. Every change is one transaction, so a killed process leaves the state before or after it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BatchState = Literal["open", "held", "listed", "rejected"]


@dataclass(frozen=True)
class Batch:
    """Complete series that are ingested together.

    Attributes:
        number: of the batch; later ones have higher numbers.
        state: `open`: taken, not ingested yet; `held`: the drift gate holds it for a person; `listed`: ingested; `rejected`: a
            person decided that it is not to be listed.
        folder: links to its files, what ingest reads.
        num_series: in it.
        created: UTC time.
        reason: why it is held or rejected; empty otherwise.
        volumes: ids of the volumes that its ingest made, as far as known.
    """

    number: int
    state: BatchState
    folder: Path
    num_series: int
    created: str
    reason: str = ""
    volumes: tuple[str, ...] = ()


class Ledger:
    """The ledger of one inbox.

    Args:
        folder: `<arrivals>`: holds `ledger.sqlite` and `batches/`; made when missing.
    Raises: StorageError: it is damaged, or of another format.
    """

    def __init__(self, folder: Path) -> None:
        raise NotImplementedError

    def batches(self, state: BatchState | None = None) -> list[Batch]:
        """The batches, oldest first; of one state, or all."""
        raise NotImplementedError

    def set_batch(self, number: int, state: BatchState, *, reason: str = "", volumes: tuple[str, ...] = ()) -> Batch:
        """Record what became of a batch. Raises: InputError: there is no such batch."""
        raise NotImplementedError
