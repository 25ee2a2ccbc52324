"""From complete series to a batch: the folder of links that ingest reads."""

from pathlib import Path

from storage.inbox_ledger import Batch, Ledger


def take_batch(ledger: Ledger, inbox: Path, *, max_series: int = 1000) -> Batch | None:
    """The batch to ingest next: an open one that an ended process left, else a new one of every complete series not taken yet.

    Args:
        ledger: of the inbox.
        inbox: folder; its files are linked, never moved or changed.
        max_series: in one batch.
    Returns: None where nothing is complete.
    """
    raise NotImplementedError
