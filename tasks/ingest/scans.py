"""The scans of a source -> committed volumes, and from them what the store lists."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from storage.artifacts import Ref
from storage.documents.snapshot import Snapshot, SnapshotVolume
from storage.documents.verdicts import SourceVerdicts
from storage.documents.volume import ScanFacts, VolumeRecord
from storage.errors import StorageError, UserError
from storage.patient_key import patient_key
from storage.snapshots import Listing, history, newest, snapshot_ref, update
from storage.sources.single_slices import SingleSlice, one_scan_each
from storage.tombstones import Forgotten, forgotten
from storage.verdicts import REASONS, sentence
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.copies import Copy, with_facts
from tasks.ingest.costs import allowance
from tasks.ingest.duplicates import by_volume, listed_instead, patients_differ
from tasks.ingest.left_out import ImagesLeftOut
from tasks.ingest.listing import Seen, listed_with, patient_notes, together
from tasks.ingest.report import entry_notes, limit_notes
from tasks.ingest.scan import Scan, SourceScan
from tasks.ingest.series import RECIPE, SeriesJob, first_file, ingest_series, part_id, scan_and_part, used_entry
from tasks.run.fanout import Lost, Pool

Admit = Callable[[VolumeStore, Mapping[str, SnapshotVolume], Ref | None], None]  # see `tasks.ingest.run.ingest`


@dataclass(frozen=True)
class StoreState:
    """A store as an ingest finds it.

    Attributes:
        store: opened.
        now: what it lists.
        broken: volumes to write again: the attributes they are listed with by id, empty where no snapshot lists them.
        notes: sentences for the report.
        secret: of the patient keys.
    """

    store: VolumeStore
    now: Listing
    broken: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    secret: bytes = field(default=b"", repr=False)


@dataclass
class ScansRead:
    """What became of the scans of a source.

    Attributes:
        entries: with their verdicts: of the volumes of scans, of scans without one, and of images that a volume was made without.
        seen: the scans that are committed volumes, by volume id.
        num_unknown: listed volumes of scans of the source whose patient is not known.
        store_notes: what is wrong with records of the store, and scans whose patient it lists otherwise.
        num_done: scans whose entries are here.
        scans: all that are committed volumes, copies among them.
        refusal: why none of the volumes that are new to the list was listed; None: they were.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    seen: dict[str, Seen] = field(default_factory=dict)
    num_unknown: int = 0
    store_notes: list[str] = field(default_factory=list)
    num_done: int = 0
    scans: list[Seen] = field(default_factory=list)
    refusal: UserError | None = None
    _singles: dict[str, SingleSlice] = field(default_factory=dict)

    def add(self, scan: Scan, entries: Iterable[dict[str, Any]]) -> None:
        """Take the entries of a scan."""
        for entry in entries:
            attributes = entry.pop("attributes", {})
            single = entry.pop("single", None)
            if single is not None and entry["reason"] == "too_few_slices":
                self._singles[scan.scan_id] = single
            if volume_id := entry.get("volume_id"):
                one = Seen(
                    str(entry["series_uid"]),
                    volume_id,
                    scan.patient_key,
                    scan.patient_known,
                    scan.patient_given,
                    scan.labels,
                    attributes,
                )
                self.scans.append(one)
            self.entries.append(entry)
        self.num_done += 1

    def finish(self) -> None:
        """Of scans with the pixels and geometry of one volume only the first by id counts, in whatever order they were read."""
        self.seen = {volume_id: scans[0] for volume_id, scans in by_volume(self.scans, {}).items()}
        written = {entry.get("volume_id") for entry in self.entries if entry["verdict"] == "committed"}
        for place, entry in enumerate(self.entries):
            volume_id = entry.get("volume_id")
            if volume_id is None:
                continue
            if self.seen[volume_id].scan != entry["series_uid"]:
                self.entries[place] = _left_out(entry, "duplicate_volume", volume_id)
            elif volume_id in written:  # by whichever of them was read first
                entry["verdict"] = "committed"
        self._name_slices()

    def _name_slices(self) -> None:
        """Scans of one slice that are together one scan get a reason of their own."""
        sizes = one_scan_each(self._singles)
        for entry in self.entries:
            if entry.get("reason") == "too_few_slices" and (size := sizes.get(str(entry["series_uid"]))):
                reason = "one_series_per_slice"
                where = f"Series {entry['series_uid']}"
                entry |= {"reason": reason, "message": sentence(reason, where, f"{size} series of one image each")}

    def notes(self) -> list[str]:
        """Sentences about the store's records and the scans."""
        return [*self.store_notes, *entry_notes(self.entries, self.num_unknown)]


def read_scans(
    scan: SourceScan,
    state: StoreState,
    config: IngestConfig,
    pool: Pool,
    *,
    before: SourceVerdicts | None,
    progress: Callable[[int, int], None] | None,
) -> ScansRead:
    """Commit the scans whose volumes are not in the store yet, or are broken there.

    Args:
        scan: the source.
        state: the store as the ingest found it.
        config: grid and limits.
        pool: worker processes.
        before: last verdicts on the source.
        progress: called with (done, total) scans.

    Raises: UserError: what a worker met concerns the whole ingest, as a full disk does.
    """
    read = ScansRead()
    records = {}
    for volume_id in state.store.volume_ids():
        try:
            records[volume_id] = state.store.commit_record(volume_id)
        except StorageError as error:
            if volume_id not in state.broken:
                read.store_notes.append(str(error))
    whole = [record for volume_id, record in records.items() if volume_id not in state.broken]
    parts: dict[str, list[VolumeRecord]] = {}
    for record in whole:
        if record.scan and record.scan.recipe == RECIPE and _of_settings(record.scan, config):
            parts.setdefault(record.scan.files_digest, []).append(record)
    have = {digest: found for digest, found in parts.items() if found[0].scan and len(found) == found[0].scan.num_parts}
    images = ImagesLeftOut(before, state.store)
    gone = forgotten(state.store.path)
    longest = _longest(state.now, records)

    def jobs() -> Iterator[SeriesJob]:
        for one in scan.scans():
            volumes = [record.volume_id for record in have.get(one.digest, ())]
            if gone and (why := _forgotten(gone, one, volumes, state.secret)):
                for volume_id in volumes:  # of a process that was killed right after its commit
                    if volume_id not in state.now.volumes:
                        state.store.delete(volume_id)
                read.add(one, [_forgotten_entry(one, why)])
            elif one.digest in have:
                read.add(one, [*_unchanged(have[one.digest], one), *images.of(one, have[one.digest])])
                read.store_notes += _known_incomplete(have[one.digest], one)
            else:
                known = longest.get(one.scan_id, {})
                yield SeriesJob(str(scan.source), str(state.store.path), one, config, known, state.broken)

    few = 0 if pool.remote else 1  # a cluster is named where this machine should not do the work
    for job, result in pool.map(ingest_series, jobs(), few=few, allowance=lambda job: allowance(job.scan.size)):
        read.add(job.scan, [_lost_entry(job.scan, result)] if isinstance(result, Lost) else result)
        if progress:
            progress(read.num_done, scan.num_scans)
    if progress:
        progress(read.num_done, scan.num_scans)
    read.finish()
    before_now = read.seen.keys() & state.now.volumes.keys() & records.keys()
    read.store_notes += limit_notes([records[volume_id] for volume_id in sorted(before_now)], config)
    return read


def _forgotten(gone: Forgotten, scan: Scan, volume_ids: Sequence[str], secret: bytes) -> str:
    """By what a scan is known as one of a forgotten patient, see `Forgotten.why`; its id alone is enough."""
    keys = scan.patient_key, patient_key(secret, "", scan.scan_id)[0]
    return next(filter(None, (gone.why(*keys, volume_id=volume_id) for volume_id in (*volume_ids, ""))), "")


def _forgotten_entry(scan: Scan, why: str) -> dict[str, Any]:
    message = sentence("forgotten", f"Scan {scan.scan_id}", f"known by its {why}")
    entry = {"series_uid": scan.scan_id, "num_slices": len(scan.files), "path": first_file(scan)}
    return {**entry, "verdict": REASONS["forgotten"].verdict, "reason": "forgotten", "message": message}


def _of_settings(facts: ScanFacts, config: IngestConfig) -> bool:
    """Whether a volume would be placed the same now: the spacing of .npz is a setting."""
    return facts.format != "npz" or facts.spacing_mm == (round(config.npz_spacing_mm, 5),) * 3


def list_scans(
    read: ScansRead,
    state: StoreState,
    *,
    source: str,
    before: SourceVerdicts | None,
    admit: Admit | None = None,
) -> Ref | None:
    """Take a snapshot of what the store lists with these scans; scans whose volume it does not list get the reason why.

    None where the store has never listed a volume and still has none: there is nothing to take a snapshot of. Where volumes are
    not admitted, the list stays as it is, and `read.refusal` says why.

    Args:
        read: the scans.
        state: the store as the ingest found it.
        source: opaque id of the source.
        before: last verdicts on the source.
        admit: asked before volumes that the store does not list are listed.
    """
    if not read.seen and not history(state.store.path).numbers():
        return None
    had = {str(entry.series_uid): str(entry.volume_id) for entry in before.used} if before else {}
    earlier, listed = state.now, state.now
    records: dict[str, VolumeRecord] = {}
    instead: dict[str, str] = {}
    scans, gone = read.scans, Forgotten()
    admitted: set[str] = set()

    def change(old: Listing) -> Listing:
        nonlocal earlier, listed, records, instead, scans, gone
        earlier = old
        records = _readable(state.store, {*old.volumes, *old.withdrawn, *read.seen})
        gone = forgotten(state.store.path)  # after the records: one that is deleted by now has its tombstone
        scans = [one for one in read.scans if not gone.why(one.patient_key, volume_id=one.volume_id)]
        instead = listed_instead(old, scans, records)
        listed = listed_with(old, by_volume(scans, instead), records, source, had)
        left = {name: one for name, one in listed.volumes.items() if not gone.why(one.patient_key, volume_id=name)}
        listed = replace(listed, volumes=left)
        new = listed.volumes.keys() - old.volumes.keys() - admitted
        if admit and new:
            try:
                admit(state.store, {name: listed.volumes[name] for name in sorted(new)}, _listed_now(state.store, old))
            except UserError as error:
                raise _NotAdmittedError(error, frozenset(new)) from error
            admitted.update(new)
        return listed

    held: Collection[str] = ()
    try:
        snapshot: Ref | None = update(state.store, change, "ingest")
    except _NotAdmittedError as refused:
        read.refusal, held, listed = refused.reason, refused.volumes, earlier
        snapshot = newest(state.store) if history(state.store.path).numbers() else None
    groups = {name: found for name, found in by_volume(scans, instead).items() if name in listed.volumes}
    read.num_unknown = sum(not listed.volumes[name].patient_known for name in groups)
    read.store_notes += patients_differ(groups)
    seen = [together(records[name], found) for name, found in groups.items()]
    read.store_notes += patient_notes(earlier, listed, sorted(seen, key=lambda one: one.scan))
    _explain_unlisted(read, listed, records, instead, had, held, gone)
    _hold(read, held)
    return snapshot


class _NotAdmittedError(Exception):
    """Volumes are not to be listed, and why; nothing is listed then."""

    def __init__(self, reason: UserError, volumes: frozenset[str]) -> None:
        super().__init__(str(reason))
        self.reason, self.volumes = reason, volumes


def _listed_now(store: VolumeStore, old: Listing) -> Ref | None:
    """The snapshot that a list is of; None: of no volume."""
    if not old.volumes:
        return None
    return snapshot_ref(store.path, Snapshot(grid=store.grid, volumes=dict(sorted(old.volumes.items()))).digest)


def _hold(read: ScansRead, held: Collection[str]) -> None:
    """Give the scans of volumes that were not admitted the reason why."""
    for place, entry in enumerate(read.entries):
        if entry.get("volume_id") in held:
            read.entries[place] = _left_out(entry, "held", str(read.refusal).rstrip("."))


def _explain_unlisted(
    read: ScansRead,
    listed: Listing,
    records: Mapping[str, VolumeRecord],
    instead: Mapping[str, str],
    had: Mapping[str, str],
    held: Collection[str],
    gone: Forgotten,
) -> None:
    """Give scans whose volume is not listed the reason why; name volumes that stay listed of scans that are broken now.

    Args:
        read: the scans; it is changed.
        listed: what the store lists.
        records: commit records of all volumes that are meant.
        instead: volumes that stand for others (`tasks.ingest.duplicates.listed_instead`).
        had: volume id by scan, as the last ingest of the source had it.
        held: volumes that were not admitted, which have another reason.
        gone: what the store's tombstones name.
    """
    by_scan = {facts.scan: volume_id for volume_id, facts in with_facts(listed.volumes, records)}
    withdrawn = {facts.scan: volume_id for volume_id, facts in with_facts(listed.withdrawn, records)}
    for place, entry in enumerate(read.entries):
        scan, volume_id = str(entry["series_uid"]), entry.get("volume_id")
        if volume_id is None:
            broken = entry["verdict"] == "quarantined" and not entry.get("image_of_volume")
            stays = by_scan.get(scan)
            if broken and stays and had.get(scan) == stays:
                read.store_notes.append(
                    f"Scan {scan} is broken now, and volume {stays}, made of it at an earlier ingest, stays listed. "
                    f"If that is wrong too, withdraw it: prdit remove <store> {stays}."
                )
            continue
        if volume_id in listed.volumes or volume_id in held:
            continue
        if why := gone.why(read.seen[volume_id].patient_key, volume_id=volume_id):
            read.entries[place] = _left_out(entry, "forgotten", f"known by its {why}")
            continue
        name = instead.get(volume_id, volume_id)  # the volume that stands for it, where there is one
        own = {facts.scan for _, facts in with_facts([name], records)}
        other = next((by_scan[one] for one in (scan, *own) if one in by_scan), None)
        copy = Copy.of(records[volume_id], read.seen[volume_id])
        beside = Copy.of(records[other], listed.volumes[other]) if other else None
        if name in listed.volumes:
            reason = "duplicate_volume", name
        elif name in listed.withdrawn:
            reason = "withdrawn", name
        elif copy is None or beside is None:
            reason = "withdrawn", withdrawn.get(scan, name)
        else:
            reason = copy.why_not_listed(beside)
        read.entries[place] = _left_out(entry, *reason)


def _longest(now: Listing, records: Mapping[str, VolumeRecord]) -> dict[str, dict[str, Copy]]:
    """The longest listed volume of each scan, by the scan's id and the part."""
    found: dict[str, dict[str, Copy]] = {}
    for volume_id, facts in with_facts(now.volumes, records):
        scan_id, part = scan_and_part(facts.scan)
        copies = [found.setdefault(scan_id, {}).get(part), Copy.of(records[volume_id], now.volumes[volume_id])]
        found[scan_id][part] = max(filter(None, copies), key=lambda copy: (copy.num_slices, copy.volume_id))
    return found


def _unchanged(records: Sequence[VolumeRecord], scan: Scan) -> Iterator[dict[str, Any]]:
    """Entries of a scan whose volumes are all in the store; the scan's id may be another than when they were read."""
    for record in records:
        part = scan_and_part(record.scan.scan)[1] if record.scan else ""
        yield used_entry(record, part_id(scan.scan_id, part), "unchanged") | {"path": first_file(scan)}


def _known_incomplete(records: Sequence[VolumeRecord], scan: Scan) -> list[str]:
    """A sentence where a list that came later says that a committed scan has more images."""
    num_files = len(scan.files) + scan.num_no_slices
    if scan.num_expected is None or num_files >= scan.num_expected:
        return []
    ids = " ".join(record.volume_id for record in records)
    return [
        f"Scan {scan.scan_id} is committed with {num_files} of the {scan.num_expected} images that a manifest of the source "
        f"lists now. Fetch the missing images and ingest again, or withdraw it: prdit remove <store> {ids}."
    ]


def _readable(store: VolumeStore, volume_ids: Collection[str]) -> dict[str, VolumeRecord]:
    """Commit records of volumes, without those that are lost or damaged."""
    records = {}
    for volume_id in volume_ids:
        with suppress(StorageError):
            records[volume_id] = store.commit_record(volume_id)
    return records


def _left_out(entry: dict[str, Any], reason: str, detail: str) -> dict[str, Any]:
    """The entry of a scan that is committed, but not listed."""
    kept: dict[str, Any] = {key: entry[key] for key in ("series_uid", "path", "num_slices") if key in entry}
    message = sentence(reason, f"Scan {entry['series_uid']}", detail)
    return {**kept, "verdict": REASONS[reason].verdict, "reason": reason, "message": message}


def _lost_entry(scan: Scan, lost: Lost) -> dict[str, Any]:
    """Raises: UserError: what the worker met concerns the whole ingest, as a full disk does."""
    if lost.error is not None:
        raise lost.error
    entry = {"series_uid": scan.scan_id, "num_slices": len(scan.files), "reason": lost.reason, "path": first_file(scan)}
    return {**entry, "verdict": "quarantined", "message": sentence(lost.reason, f"scan {scan.scan_id}", lost.detail)}
