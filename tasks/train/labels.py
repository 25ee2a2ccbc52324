"""Integer labels of volumes: one column of attributes and labels in a snapshot, values numbered in order."""

from collections.abc import Sequence

from storage.documents.snapshot import Snapshot
from storage.errors import InputError
from tasks.model.conditions import as_text

MOST_VALUES = 100  # distinct values; a column with more is a measurement, not a label


def label_values(snapshot: Snapshot, column: str, volume_ids: Sequence[str]) -> tuple[str, ...]:
    """Distinct values of a column among some volumes, as text, in order; their positions are the integers a model sees.

    Raises: InputError: no such column, fewer than two values or more than a hundred.
    """
    known = sorted({name for volume in snapshot.volumes.values() for name in volume.columns})
    if column not in known:
        raise InputError(
            f"label_column {column!r} is not a column of the snapshot; it has {', '.join(known) or 'none'}. Labels come from "
            "labels.csv in the source (docs/data-model.md)."
        )
    values = sorted({as_text(snapshot.volumes[name].columns.get(column)) for name in volume_ids} - {""})
    if not 2 <= len(values) <= MOST_VALUES:
        raise InputError(
            f"label_column {column!r} has {len(values)} distinct values in the training volumes ({', '.join(values[:5])}); "
            f"expected 2 to {MOST_VALUES}. Choose a column of labels."
        )
    return tuple(values)


def labels_of(snapshot: Snapshot, column: str, values: Sequence[str], volume_ids: Sequence[str]) -> list[int]:
    """The integer of each volume; len(values), "no label", where it has none or one the model does not know."""
    places = {value: place for place, value in enumerate(values)}
    return [places.get(as_text(snapshot.volumes[name].columns.get(column)), len(values)) for name in volume_ids]
