"""Which volumes a stage works on: a snapshot and a split of it."""

from storage.artifacts import Ref
from storage.documents.snapshot import Snapshot
from storage.documents.split import Split
from storage.errors import InputError


def check_split(snapshot: Snapshot, document: Split, split: Ref) -> None:
    """Refuse a split that names volumes that a snapshot does not list.

    Raises: InputError: it was made for another snapshot.
    """
    if missing := sorted(set(document.volume_ids) - snapshot.volumes.keys()):
        raise InputError(
            f"The split at {split.uri} names {len(missing)} volume(s) that the snapshot {snapshot.digest[:19]}… does not list "
            f"(first: {missing[0]}). Split this snapshot again."
        )
