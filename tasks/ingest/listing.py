"""How an ingest changes what a store lists: which copy of a scan, whose patient, which labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from storage.documents.snapshot import SnapshotVolume
from storage.documents.volume import VolumeRecord
from storage.snapshots import Listing


@dataclass(frozen=True)
class Seen:
    """One scan of the source, and the committed volume with its pixels.

    Attributes:
        scan: its id.
        volume_id: of its volume.
        patient_key: HMAC of the PatientID, or of the scan's id.
        patient_known: whether there was a PatientID.
        patient_given: whether it came from `patients.csv`.
        labels: of `labels.csv`.
    """

    scan: str
    volume_id: str
    patient_key: str
    patient_known: bool
    patient_given: bool = False
    labels: dict[str, str] = field(default_factory=dict)


def listed_with(
    old: Listing, seen: Sequence[Seen], records: Mapping[str, VolumeRecord], source: str, before: Mapping[str, str]
) -> Listing:
    """The list of a store after an ingest.

    A volume that is listed stays: what a source no longer has is not taken away. Of two volumes of one scan the one with more
    slices is listed; of two with as many, the one that is there, unless it came from this source, which now has the other.
    Patient and labels are those that tables of the source give. Where they give none, they stay as another source gave them.

    Args:
        old: the list now.
        seen: scans of the source.
        records: commit records of the volumes of `old` and `seen`.
        source: opaque id of the source.
        before: volume id by scan, as the last ingest of this source had it.
    """
    volumes, given_by = dict(old.volumes), dict(old.given_by)
    by_scan: dict[str, set[str]] = {}
    for volume_id in (*old.volumes, *old.withdrawn):
        if volume_id in records and (facts := records[volume_id].scan):
            by_scan.setdefault(facts.scan, set()).add(volume_id)
    for scan in seen:
        others = by_scan.get(scan.scan, set()) - {scan.volume_id}
        if scan.volume_id in old.withdrawn or not all(_replaces(scan, other, records, before) for other in others):
            continue
        for other in others:
            volumes.pop(other, None)
        given = given_by.get(scan.volume_id)
        volumes[scan.volume_id] = _entry(
            scan, records[scan.volume_id], volumes.get(scan.volume_id), ours=given == source
        )
        if scan.patient_given or scan.labels:
            given_by[scan.volume_id] = source
        elif given == source:
            del given_by[scan.volume_id]
    return Listing(volumes, old.withdrawn, {key: value for key, value in given_by.items() if key in volumes})


def _replaces(scan: Seen, other: str, records: Mapping[str, VolumeRecord], before: Mapping[str, str]) -> bool:
    here, there = records[scan.volume_id].scan, records[other].scan
    if here is None or there is None:
        return False
    if here.num_slices != there.num_slices:
        return here.num_slices > there.num_slices
    return before.get(scan.scan) == other


def _entry(scan: Seen, record: VolumeRecord, old: SnapshotVolume | None, *, ours: bool) -> SnapshotVolume:
    """How a volume is listed. `ours`: whether patient and labels were last given by this source, and go when it gives none."""
    patient, known = scan.patient_key, scan.patient_known
    if old is not None and not scan.patient_given and not ours and (old.patient_known or not known):
        # Another copy of the scan may have lost its PatientID, or have another; a moved one without is the same patient still.
        patient, known = old.patient_key, old.patient_known
    labels = scan.labels if scan.labels or ours or old is None else old.labels
    return SnapshotVolume(
        patient_key=patient,
        patient_known=known,
        shape=record.shape,
        attributes=record.attributes,
        labels=labels,
    )
