"""The scans of a source -> committed volumes, and from them what the store lists."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from storage.artifacts import Ref
from storage.documents.verdicts import SourceVerdicts
from storage.documents.volume import ScanFacts, VolumeRecord
from storage.errors import StorageError
from storage.snapshots import Listing, history, update
from storage.sources.single_slices import SingleSlice, one_scan_each
from storage.verdicts import sentence
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.costs import allowance
from tasks.ingest.listing import Seen, listed_with, patient_notes
from tasks.ingest.report import entry_notes
from tasks.ingest.scan import Scan, SourceScan
from tasks.ingest.series import RECIPE, SeriesJob, ingest_series, part_id, scan_and_part, used_entry
from tasks.run.fanout import Lost, Pool


@dataclass(frozen=True)
class StoreState:
    """A store as an ingest finds it.

    Attributes:
        store: opened.
        now: what it lists.
        broken: volumes to write again: the attributes they are listed with by id, empty where no snapshot lists them.
        notes: sentences for the report.
    """

    store: VolumeStore
    now: Listing
    broken: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class ScansRead:
    """What became of the scans of a source.

    Attributes:
        entries: with their verdicts: of the volumes of scans, of scans without one, and of images that a volume was made without.
        seen: the scans that are committed volumes, by volume id.
        num_unknown: scans without a PatientID.
        store_notes: what is wrong with records of the store, and scans whose patient it lists otherwise.
        num_done: scans whose entries are here.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    seen: dict[str, Seen] = field(default_factory=dict)
    num_unknown: int = 0
    store_notes: list[str] = field(default_factory=list)
    num_done: int = 0
    _all: dict[str, list[Seen]] = field(default_factory=dict)
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
                self._all.setdefault(volume_id, []).append(one)
            self.entries.append(entry)
        self.num_done += 1

    def finish(self) -> None:
        """Of scans with the pixels and geometry of one volume only the first by id counts, in whatever order they were read."""
        self.seen = {volume_id: min(scans, key=lambda one: one.scan) for volume_id, scans in self._all.items()}
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
    earlier = _images_left_out(before)
    longest = _longest(state.now, records)

    def jobs() -> Iterator[SeriesJob]:
        for one in scan.scans():
            read.num_unknown += not one.patient_known
            if one.digest in have:
                read.add(one, [*_unchanged(have[one.digest], one), *earlier.get(one.scan_id, ())])
            else:
                known = longest.get(one.scan_id, {})
                yield SeriesJob(str(scan.source), str(state.store.path), one, config, known, state.broken)

    # A scheduler is given where this machine should not do the work.
    few = 0 if config.scheduler else 1
    for job, result in pool.map(ingest_series, jobs(), few=few, allowance=lambda job: allowance(job.scan.size)):
        read.add(job.scan, [_lost_entry(job.scan, result)] if isinstance(result, Lost) else result)
        if progress:
            progress(read.num_done, scan.num_scans)
    if progress:
        progress(read.num_done, scan.num_scans)
    read.finish()
    return read


def _of_settings(facts: ScanFacts, config: IngestConfig) -> bool:
    """Whether a volume would be placed the same now: the spacing of .npz is a setting."""
    return facts.format != "npz" or facts.spacing_mm == (round(config.npz_spacing_mm, 5),) * 3


def list_scans(read: ScansRead, state: StoreState, *, source: str, before: SourceVerdicts | None) -> Ref | None:
    """Take a snapshot of what the store lists with these scans; scans whose volume it does not list get the reason why.

    None where the store has never listed a volume and still has none: there is nothing to take a snapshot of.

    Args:
        read: the scans.
        state: the store as the ingest found it.
        source: opaque id of the source.
        before: last verdicts on the source.
    """
    if not read.seen and not history(state.store.path).numbers():
        return None
    had = {str(entry.series_uid): str(entry.volume_id) for entry in before.used} if before else {}
    earlier, listed = state.now, state.now
    records: dict[str, VolumeRecord] = {}

    def change(old: Listing) -> Listing:
        nonlocal earlier, listed, records
        earlier = old
        records = _readable(state.store, {*old.volumes, *old.withdrawn, *read.seen})
        listed = listed_with(old, list(read.seen.values()), records, source, had)
        return listed

    snapshot = update(state.store, change, "ingest")
    read.store_notes += patient_notes(earlier, listed, sorted(read.seen.values(), key=lambda one: one.scan))
    found = {volume_id: records[volume_id].scan for volume_id in listed.volumes if volume_id in records}
    by_scan = {facts.scan: (facts.num_slices, volume_id) for volume_id, facts in found.items() if facts}
    for place, entry in enumerate(read.entries):
        volume_id = entry.get("volume_id")
        if volume_id is None or volume_id in listed.volumes:
            continue
        num_slices, other = by_scan.get(entry["series_uid"], (0, ""))
        if volume_id in listed.withdrawn or not other:
            read.entries[place] = _left_out(entry, "withdrawn", volume_id)
        elif num_slices > entry["num_slices"]:
            detail = f"{entry['num_slices']} slices, volume {other} of it {num_slices}"
            read.entries[place] = _left_out(entry, "shorter_copy", detail)
        else:
            read.entries[place] = _left_out(entry, "other_copy", other)
    return snapshot


def _longest(now: Listing, records: Mapping[str, VolumeRecord]) -> dict[str, dict[str, tuple[int, str]]]:
    """(slices, volume id) of the longest known volume of each scan, by the scan's id and the part."""
    found: dict[str, dict[str, tuple[int, str]]] = {}
    for volume_id in (*now.volumes, *now.withdrawn):
        if volume_id in records and (facts := records[volume_id].scan):
            scan_id, part = scan_and_part(facts.scan)
            parts = found.setdefault(scan_id, {})
            parts[part] = max(parts.get(part, (0, "")), (facts.num_slices, volume_id))
    return found


def _unchanged(records: Sequence[VolumeRecord], scan: Scan) -> Iterator[dict[str, Any]]:
    """Entries of a scan whose volumes are all in the store; the scan's id may be another than when they were read."""
    for record in records:
        part = scan_and_part(record.scan.scan)[1] if record.scan else ""
        yield used_entry(record, part_id(scan.scan_id, part), "unchanged")


def _images_left_out(before: SourceVerdicts | None) -> dict[str, list[dict[str, Any]]]:
    """Images that volumes were made without, by scan, as the last ingest of the source named them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for verdict in ("skipped", "quarantined"):
        for entry in getattr(before, verdict, ()):
            if entry.image_of_volume:
                found.setdefault(str(entry.series_uid), []).append(
                    {"verdict": verdict, **entry.model_dump(exclude_none=True)}
                )
    return found


def _readable(store: VolumeStore, volume_ids: Collection[str]) -> dict[str, VolumeRecord]:
    """Commit records of volumes, without those that are lost or damaged."""
    records = {}
    for volume_id in volume_ids:
        with suppress(StorageError):
            records[volume_id] = store.commit_record(volume_id)
    return records


def _left_out(entry: dict[str, Any], reason: str, detail: str) -> dict[str, Any]:
    """The entry of a scan that is committed, but not listed."""
    kept: dict[str, Any] = {key: entry[key] for key in ("series_uid", "num_slices") if key in entry}
    message = sentence(reason, f"Scan {entry['series_uid']}", detail)
    return {**kept, "verdict": "skipped", "reason": reason, "message": message}


def _lost_entry(scan: Scan, lost: Lost) -> dict[str, Any]:
    """Raises: UserError: what the worker met concerns the whole ingest, as a full disk does."""
    if lost.error is not None:
        raise lost.error
    entry = {"series_uid": scan.scan_id, "num_slices": len(scan.files), "reason": lost.reason}
    return {**entry, "verdict": "quarantined", "message": sentence(lost.reason, f"scan {scan.scan_id}", lost.detail)}
