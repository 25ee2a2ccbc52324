"""How an ingest changes what a store lists: which copy of a scan, whose patient, which labels."""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from storage.documents.snapshot import SnapshotVolume
from storage.documents.volume import VolumeRecord
from storage.snapshots import Listing
from storage.verdicts import counted
from tasks.ingest.copies import Copy, with_facts


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


def together(record: VolumeRecord, scans: Sequence[Seen]) -> Seen:
    """What scans say of one volume together: the patient that a table gives, or else files; labels of the first that has any;
    attributes of each that has one, of the volume's own scan where several have it.

    Args:
        record: of the volume that stands for them.
        scans: those of the volume itself first.
    """
    first = scans[0]
    whose = next((one for one in scans if one.patient_given), None) or next(
        (one for one in scans if one.patient_known), first
    )
    own = [one.attributes for one in scans if one.volume_id == record.volume_id]
    return replace(
        first,
        volume_id=record.volume_id,
        patient_key=whose.patient_key,
        patient_known=whose.patient_known,
        patient_given=whose.patient_given,
        labels=next((one.labels for one in scans if one.labels), {}),
        attributes=dict(ChainMap(*own, record.attributes, *(one.attributes for one in scans))),
    )


def listed_with(
    old: Listing,
    groups: Mapping[str, Sequence[Seen]],
    records: Mapping[str, VolumeRecord],
    source: str,
    before: Mapping[str, str],
) -> Listing:
    """The list of a store after an ingest.

    A volume that is listed stays: what a source no longer has is not taken away. Of two volumes of one scan the one with more
    slices is listed; of two with as many, the one that is there, unless it came from this source, which now has the other. What
    another source has under the id of a scan is no copy of it where `Copy.other_than` says so: the one that is there stays.
    Shorter copies of a volume that is withdrawn stay away with it; another copy is listed, which is how to have that one instead.
    Patient and labels are those that tables of the source give. Where they give none, they stay as another source gave them. A
    PatientID that is corrected in the files counts where it came from the files of this source.

    Args:
        old: the list now.
        groups: scans of the source by the volume that stands for them (`tasks.ingest.duplicates.by_volume`).
        records: commit records of the volumes of `old` and of the scans.
        source: opaque id of the source.
        before: volume id by scan, as the last ingest of this source had it.
    """
    volumes = dict(old.volumes)
    patients_by, labels_by, identified_by = dict(old.patients_by), dict(old.labels_by), dict(old.identified_by)
    by_scan: dict[str, set[str]] = {}
    for volume_id, facts in with_facts((*old.volumes, *old.withdrawn), records):
        by_scan.setdefault(facts.scan, set()).add(volume_id)
    for name, copies in groups.items():
        kept = []
        for one in copies:
            ids = {one.scan}
            if one.volume_id != name:  # a volume of another scan stands for it
                ids |= {facts.scan for _, facts in with_facts([name], records)}
            others = set().union(*(by_scan.get(scan_id, ()) for scan_id in ids)) - {name}
            if name in old.withdrawn or not all(_replaces(one, other, records, before, old) for other in others):
                continue
            for other in others:
                volumes.pop(other, None)
            kept.append(one)
        if not kept:
            continue
        scan = together(records[name], kept)
        was = volumes.get(name)
        ours = source in (patients_by.get(name), identified_by.get(name) if scan.patient_known else None)
        patient = _patient(scan, was, ours=ours)
        keep_labels = was is not None and not scan.labels and labels_by.get(name) != source
        volumes[name] = SnapshotVolume(
            patient_key=patient[0],
            patient_known=patient[1],
            shape=records[name].shape,
            attributes=scan.attributes | (was.attributes if was is not None else {}),
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
            f"{counted(len(corrected), 'scan')} with another PatientID than at an earlier ingest of this source, the first is "
            f"{corrected[0]}: the new patient is listed from now on. Earlier snapshots stay as they are."
        )
    if kept:
        notes.append(
            f"{counted(len(kept), 'scan')} with another PatientID than the listed one, which another source gave, the first "
            f"is {kept[0]}: the patient stays. To have the one of these files, name it in patients.csv of this source."
        )
    return notes


def _note(given_by: dict[str, str], volume_id: str, source: str, *, given: bool) -> None:
    """Remember which source a table's values came from, and forget it when that source gives none any more."""
    if given:
        given_by[volume_id] = source
    elif given_by.get(volume_id) == source:
        del given_by[volume_id]


def _replaces(
    scan: Seen, other: str, records: Mapping[str, VolumeRecord], before: Mapping[str, str], old: Listing
) -> bool:
    here = Copy.of(records[scan.volume_id], scan)
    there = Copy.of(records[other], old.volumes.get(other))
    if here is None or there is None:
        return False
    if other in old.withdrawn:  # its shorter copies stay away with it
        return here.num_slices >= there.num_slices or bool(here.other_than(there))
    if before.get(scan.scan) != other and here.other_than(there):
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
