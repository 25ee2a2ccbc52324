"""How an ingest changes what a store lists: which copy of a scan, whose patient, which labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
        attributes: allow-listed attributes, as this scan has them.
    """

    scan: str
    volume_id: str
    patient_key: str
    patient_known: bool
    patient_given: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)


def listed_with(
    old: Listing, seen: Sequence[Seen], records: Mapping[str, VolumeRecord], source: str, before: Mapping[str, str]
) -> Listing:
    """The list of a store after an ingest.

    A volume that is listed stays: what a source no longer has is not taken away. Of two volumes of one scan the one with more
    slices is listed; of two with as many, the one that is there, unless it came from this source, which now has the other.
    Patient and labels are those that tables of the source give. Where they give none, they stay as another source gave them. A
    PatientID that is corrected in the files counts where it came from the files of this source.

    Args:
        old: the list now.
        seen: scans of the source.
        records: commit records of the volumes of `old` and `seen`.
        source: opaque id of the source.
        before: volume id by scan, as the last ingest of this source had it.
    """
    volumes = dict(old.volumes)
    patients_by, labels_by, identified_by = dict(old.patients_by), dict(old.labels_by), dict(old.identified_by)
    by_scan: dict[str, set[str]] = {}
    for volume_id in (*old.volumes, *old.withdrawn):
        if volume_id in records and (facts := records[volume_id].scan):
            by_scan.setdefault(facts.scan, set()).add(volume_id)
    for scan in seen:
        name = scan.volume_id
        others = by_scan.get(scan.scan, set()) - {name}
        if name in old.withdrawn or not all(_replaces(scan, other, records, before) for other in others):
            continue
        for other in others:
            volumes.pop(other, None)
        was = volumes.get(name)
        ours = source in (patients_by.get(name), identified_by.get(name) if scan.patient_known else None)
        patient = _patient(scan, was, ours=ours)
        keep_labels = was is not None and not scan.labels and labels_by.get(name) != source
        volumes[name] = SnapshotVolume(
            patient_key=patient[0],
            patient_known=patient[1],
            shape=records[name].shape,
            attributes=scan.attributes if was is None else was.attributes,
            labels=was.labels if was is not None and keep_labels else scan.labels,
        )
        if (
            patient != (was and (was.patient_key, was.patient_known))
            or scan.patient_given
            or patients_by.get(name) == source
        ):
            identified_by.pop(name, None)
            _note(identified_by, name, source, given=scan.patient_known and not scan.patient_given)
        _note(patients_by, name, source, given=scan.patient_given)
        _note(labels_by, name, source, given=bool(scan.labels))
    return Listing(volumes, old.withdrawn, patients_by, labels_by, identified_by)


def patient_notes(old: Listing, new: Listing, seen: Sequence[Seen]) -> list[str]:
    """Sentences about scans whose PatientID is another than the patient that their volumes were listed with.

    Args:
        old, new: the list of the store before and after.
        seen: scans of the source.
    """
    corrected, kept = [], []
    for scan in seen:
        was, now = old.volumes.get(scan.volume_id), new.volumes.get(scan.volume_id)
        if was is None or now is None or not (was.patient_known and scan.patient_known) or scan.patient_given:
            continue
        if now.patient_key != was.patient_key:
            corrected.append(scan.scan)
        elif scan.patient_key != now.patient_key:
            kept.append(scan.scan)
    notes = []
    if corrected:
        notes.append(
            f"{len(corrected)} scan(s) have another PatientID than at an earlier ingest of this source, the first is "
            f"{corrected[0]}: they are listed with the new patient from now on. Earlier snapshots stay as they are."
        )
    if kept:
        notes.append(
            f"{len(kept)} scan(s) have another PatientID than the one they are listed with, which another source gave, the first "
            f"is {kept[0]}: the patient stays. To have another, name it in patients.csv."
        )
    return notes


def _note(given_by: dict[str, str], volume_id: str, source: str, *, given: bool) -> None:
    """Remember which source a table's values came from, and forget it when that source gives none any more."""
    if given:
        given_by[volume_id] = source
    elif given_by.get(volume_id) == source:
        del given_by[volume_id]


def _replaces(scan: Seen, other: str, records: Mapping[str, VolumeRecord], before: Mapping[str, str]) -> bool:
    here, there = records[scan.volume_id].scan, records[other].scan
    if here is None or there is None:
        return False
    if here.num_slices != there.num_slices:
        return here.num_slices > there.num_slices
    return before.get(scan.scan) == other


def _patient(scan: Seen, old: SnapshotVolume | None, *, ours: bool) -> tuple[str, bool]:
    """(patient key, known) of a volume. `ours`: whether this source gave it last, by a table or a PatientID that it still has."""
    if old is not None and not scan.patient_given and not ours and (old.patient_known or not scan.patient_known):
        # Another copy of the scan may have lost its PatientID, or have another; a moved one without is the same patient still.
        return old.patient_key, old.patient_known
    return scan.patient_key, scan.patient_known
