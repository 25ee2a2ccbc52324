"""The scans of a source -> committed volumes, and from them what the store lists."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from storage.artifacts import Ref
from storage.documents.verdicts import SourceVerdicts
from storage.documents.volume import VolumeRecord
from storage.errors import StorageError
from storage.snapshots import Listing, update
from storage.verdicts import sentence
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.listing import Seen, listed_with
from tasks.ingest.report import entry_notes
from tasks.ingest.scan import Scan, SourceScan
from tasks.ingest.series import RECIPE, SeriesJob, ingest_series, used_entry
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
        entries: one per scan, with its verdict.
        seen: the scans that are committed volumes, by volume id.
        num_unknown: scans without a PatientID.
        store_notes: what is wrong with records of the store.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    seen: dict[str, Seen] = field(default_factory=dict)
    num_unknown: int = 0
    store_notes: list[str] = field(default_factory=list)

    def add(self, scan: Scan, entry: dict[str, Any]) -> None:
        """Take a scan's entry; of two scans with the pixels and geometry of one volume only the first counts."""
        volume_id = entry.get("volume_id")
        if volume_id in self.seen:
            entry = _left_out(entry, "duplicate_volume", volume_id)
        elif volume_id is not None:
            self.seen[volume_id] = Seen(
                scan.scan_id, volume_id, scan.patient_key, scan.patient_known, scan.patient_given, scan.labels
            )
        self.entries.append(entry)

    def notes(self) -> list[str]:
        """Sentences about the store's records and the scans."""
        return [*self.store_notes, *entry_notes(self.entries, self.num_unknown)]


def read_scans(
    scan: SourceScan,
    state: StoreState,
    config: IngestConfig,
    pool: Pool,
    progress: Callable[[int, int], None] | None,
) -> ScansRead:
    """Commit the scans whose volumes are not in the store yet, or are broken there.

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
    have = {record.scan.files_digest: record for record in whole if record.scan and record.scan.recipe == RECIPE}
    longest = _longest(state.now, records)

    def jobs() -> Iterator[SeriesJob]:
        for one in scan.scans():
            read.num_unknown += not one.patient_known
            if one.digest in have:
                read.add(one, used_entry(have[one.digest], one.scan_id, "unchanged"))
            else:
                known = longest.get(one.scan_id, (0, ""))
                yield SeriesJob(str(scan.source), str(state.store.path), one, config, known, state.broken)

    # A scheduler is given where this machine should not do the work.
    for job, result in pool.map(ingest_series, jobs(), in_process=0 if config.scheduler else 1):
        read.add(job.scan, _lost_entry(job.scan, result) if isinstance(result, Lost) else result)
        if progress:
            progress(len(read.entries), scan.num_scans)
    if progress:
        progress(len(read.entries), scan.num_scans)
    return read


def list_scans(read: ScansRead, state: StoreState, *, source: str, before: SourceVerdicts | None) -> Ref:
    """Take a snapshot of what the store lists with these scans; scans whose volume it does not list get the reason why.

    Args:
        read: the scans.
        state: the store as the ingest found it.
        source: opaque id of the source.
        before: last verdicts on the source.
    """
    had = {str(entry.series_uid): str(entry.volume_id) for entry in before.used} if before else {}
    listed: Listing = state.now
    records: dict[str, VolumeRecord] = {}

    def change(old: Listing) -> Listing:
        nonlocal listed, records
        records = _readable(state.store, {*old.volumes, *old.withdrawn, *read.seen})
        listed = listed_with(old, list(read.seen.values()), records, source, had)
        return listed

    snapshot = update(state.store, change, "ingest")
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


def _longest(now: Listing, records: Mapping[str, VolumeRecord]) -> dict[str, tuple[int, str]]:
    """(slices, volume id) of the longest known volume of each scan, by the scan's id."""
    found: dict[str, tuple[int, str]] = {}
    for volume_id in (*now.volumes, *now.withdrawn):
        if volume_id in records and (facts := records[volume_id].scan):
            found[facts.scan] = max(found.get(facts.scan, (0, "")), (facts.num_slices, volume_id))
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
