"""Integer labels of a store's volumes: one column of its volume table, values numbered in order."""

from collections.abc import Sequence

from storage.errors import InputError
from storage.volume_store import VolumeStore

_MOST = 100  # distinct values; a column with more is a measurement, not a label


def label_values(store: VolumeStore, column: str, volume_ids: Sequence[str]) -> tuple[str, ...]:
    """Distinct values of a column among some volumes, as text, in order; their positions are the integers a model sees.

    Raises: InputError: no such column, fewer than two values or more than a hundred.
    """
    rows = {row["volume_id"]: row for row in store.table()}
    known = sorted({key for row in rows.values() for key in row} - {"volume_id", "shape", "patient_key"})
    if column not in known:
        raise InputError(f"label_column {column!r} is not a column of the store at {store.path}; it has {known}.")
    values = sorted({_text(rows[name].get(column)) for name in volume_ids} - {""})
    if not 2 <= len(values) <= _MOST:
        raise InputError(
            f"label_column {column!r} has {len(values)} distinct values in the training volumes ({', '.join(values[:5])}); "
            f"expected 2 to {_MOST}. Choose a column of labels."
        )
    return tuple(values)


def labels_of(store: VolumeStore, column: str, values: Sequence[str], volume_ids: Sequence[str]) -> list[int]:
    """The integer of each volume; len(values), "no label", where it has none or one the model does not know."""
    places = {value: place for place, value in enumerate(values)}
    return [places.get(_text(store.commit_record(name)["attributes"].get(column)), len(values)) for name in volume_ids]


def _text(value: object) -> str:
    return "" if value is None else str(value)
