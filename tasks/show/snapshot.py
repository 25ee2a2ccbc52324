"""One snapshot of a store: how much it lists, what its attributes are, and how it differs from the one before it."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from storage.documents.snapshot import HistoryEntry, Snapshot
from storage.refs import Ref
from storage.snapshots import changes, find, history, load_snapshot, newest, snapshot_ref
from storage.volume_store import VolumeStore

_OF_ONE_SCAN = {
    "patient_key",
    "patient_known",
    "StudyInstanceUID",
    "SeriesInstanceUID",
}  # no attributes of a population
_MOST_VALUES = 8


def snapshot_facts(store: VolumeStore, name: str | None = None) -> dict[str, Any]:
    """What a snapshot lists, summarised; no pixel is read.

    Args:
        store: opened store.
        name: number, digest or beginning of the digest; default: the newest.
    Returns: JSON values: number (None where no step of the history has it), snapshot (digest), created, change, num_volumes,
        num_patients, num_unknown_patients, forgotten, size_mm (of x, y and z), attributes and labels (a summary each), before.
    Raises:
        InputError: there is no such snapshot.
        StorageError: history or snapshot is damaged, or the store has none.
    """
    ref = find(store, name) if name is not None else newest(store)
    number, entry = _step(store, ref, name)
    snapshot = load_snapshot(ref)
    volumes = snapshot.volumes.values()
    sizes = zip(*(tuple(n * snapshot.grid.spacing_mm for n in reversed(v.shape)) for v in volumes), strict=True)
    return {
        "store": str(store.path),
        "number": number,
        "snapshot": ref.digest,
        "created": entry.created if entry else None,
        "change": entry.change if entry else None,
        "num_volumes": len(volumes),
        "num_patients": len(snapshot.patients),
        "num_unknown_patients": len({v.patient_key for v in volumes if not v.patient_known}),
        "forgotten": list(snapshot.forgotten),
        "size_mm": {axis: _numbers(values) for axis, values in zip("xyz", sizes, strict=False)},
        "attributes": summary([v.attributes for v in volumes]),
        "labels": summary([v.labels for v in volumes]),
        "before": _before(store, number, snapshot),
    }


def _step(store: VolumeStore, ref: Ref, name: str | None) -> tuple[int | None, HistoryEntry | None]:
    """The step of the history that a snapshot was asked for by, else the last one with it."""
    steps = history(store.path)
    found = [(number, entry) for number in steps.numbers() if (entry := steps.read(number)).snapshot == ref.digest]
    asked = [step for step in found if name is not None and name.isdigit() and step[0] == int(name)]
    return (asked or found)[-1] if found else (None, None)


def _before(store: VolumeStore, number: int | None, snapshot: Snapshot) -> dict[str, Any] | None:
    """How a snapshot differs from that of the step before; None for the first."""
    steps = history(store.path)
    earlier = [each for each in steps.numbers() if number is not None and each < number]
    if not earlier:
        return None
    old = load_snapshot(snapshot_ref(store.path, steps.read(earlier[-1]).snapshot))
    changed = {what.replace(" ", "_"): ids for what, ids in changes(old.volumes, snapshot.volumes).items()}
    return {"number": earlier[-1], "snapshot": old.digest, **changed}


def summary(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every attribute of some volumes: numbers by their range, other values by how often each occurs.

    Args:
        rows: the attributes of each volume.
    Returns: by name, sorted: `missing` (volumes without it), and `min`, `median`, `max`, or `counts` with the most frequent values
        and `num_others`, how many further values there are.
    """
    table = list(rows)
    found: dict[str, dict[str, Any]] = {}
    for name in sorted({key for row in table for key in row} - _OF_ONE_SCAN):
        values = [row[name] for row in table if row.get(name) is not None]
        facts: dict[str, Any] = {"missing": len(table) - len(values)}
        if values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            facts |= _numbers(values)
        else:
            counts = Counter(_word(value) for value in values)
            shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST_VALUES]
            facts |= {"counts": dict(shown), "num_others": len(counts) - len(shown)}
        found[name] = facts
    return found


def _numbers(values: Iterable[float]) -> dict[str, float]:
    table = list(values)
    return {"min": min(table), "median": statistics.median(table), "max": max(table)}


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "\\".join(str(part) for part in value) if isinstance(value, list | tuple) else str(value)
