"""Scans that are one scan under several ids: what a store lists of them, and whose they are."""

from collections.abc import Mapping, Sequence

import numpy as np

from storage.documents.volume import VolumeRecord
from storage.snapshots import Listing
from storage.verdicts import counted
from tasks.ingest.copies import with_facts
from tasks.ingest.listing import Seen

_OFF_VOXELS = 1.0  # of the grid, that the volumes of two copies may lie apart: formats round positions


def listed_instead(old: Listing, seen: Sequence[Seen], records: Mapping[str, VolumeRecord]) -> dict[str, str]:
    """Of committed volumes that are not to be listed, as they have the pixels and place of another one: that one, by volume id.

    A copy in another format, or with its axes stored in another order, is a volume of its own, whose stored voxels may differ by
    rounding. What is listed stays; what is withdrawn does not come back under another id; else the first scan by id counts.

    Args:
        old: the list now.
        seen: scans of the source.
        records: commit records of the volumes of `old` and `seen`.
    """
    names = {one.volume_id: one.scan for one in sorted(seen, key=lambda one: one.scan, reverse=True)}
    order = [*sorted(old.volumes), *sorted(old.withdrawn), *sorted(names, key=lambda volume_id: names[volume_id])]
    by_pixels: dict[str, list[VolumeRecord]] = {}
    for volume_id, facts in with_facts(dict.fromkeys(order), records):
        if facts.pixels:
            by_pixels.setdefault(facts.pixels, []).append(records[volume_id])
    found = {}
    for volume_id, facts in with_facts(names.keys() - old.volumes.keys(), records):
        for other in by_pixels.get(facts.pixels, ()):
            if other.volume_id == volume_id:
                break
            if other.scan and other.scan.scan != names[volume_id] and _same_place(records[volume_id], other):
                found[volume_id] = other.volume_id
                break
    return found


def _same_place(one: VolumeRecord, other: VolumeRecord) -> bool:
    off_mm = _OFF_VOXELS * one.spacing_mm[0]
    low, other_low = np.asarray(one.origin_mm), np.asarray(other.origin_mm)
    high = low + np.asarray(one.shape[::-1]) * one.spacing_mm
    other_high = other_low + np.asarray(other.shape[::-1]) * other.spacing_mm
    return bool(np.abs(low - other_low).max() <= off_mm and np.abs(high - other_high).max() <= off_mm)


def by_volume(seen: Sequence[Seen], instead: Mapping[str, str]) -> dict[str, list[Seen]]:
    """Scans by the volume that stands for them, each list in the order in which they are heard: that volume's own scans first."""
    found: dict[str, list[Seen]] = {}
    for one in sorted(seen, key=lambda one: (one.volume_id in instead, one.scan)):
        found.setdefault(instead.get(one.volume_id, one.volume_id), []).append(one)
    return found


def patients_differ(groups: Mapping[str, Sequence[Seen]]) -> list[str]:
    """Sentences about copies of one scan that carry ids of different patients.

    Args:
        groups: scans by the volume that stands for them, see `by_volume`.
    """
    by_files: list[tuple[str, str]] = []
    by_table: list[tuple[str, str]] = []
    for scans in groups.values():
        heard = sorted((one for one in scans if one.patient_known), key=lambda one: not one.patient_given)
        if other := next((one for one in heard if one.patient_key != heard[0].patient_key), None):
            (by_table if heard[0].patient_given else by_files).append((heard[0].scan, other.scan))
    notes = []
    if by_files:
        first, second = min(by_files)
        notes.append(
            f"{counted(len(by_files), 'scan')} here more than once, with the ids of different patients, the first is {first}, "
            f"which is {second} too: its patient is that of scan {first}. If that is the wrong one, name the patient of scan "
            f"{second} in patients.csv."
        )
    if by_table:
        first, second = min(by_table)
        notes.append(
            f"{counted(len(by_table), 'scan')} here more than once, of whose patients patients.csv names another than the files of "
            f"a copy, the first is {first}, which is {second} too: the table counts."
        )
    return notes
