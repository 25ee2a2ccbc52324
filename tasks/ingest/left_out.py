"""Images that volumes were made without, of volumes that are not read again."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from storage.documents.verdicts import SourceVerdicts
from storage.documents.volume import VolumeRecord
from storage.sources.source import as_utf8
from storage.volume_store import VolumeStore
from tasks.ingest.report import every_record
from tasks.ingest.scan import Scan
from tasks.ingest.series import scan_and_part


class ImagesLeftOut:
    """Images that volumes were made without, as an earlier ingest named them.

    Args:
        before: last verdicts on the source; None where there are none, as after the source was moved.
        store: of which the verdicts on other sources are looked through then.
    """

    def __init__(self, before: SourceVerdicts | None, store: VolumeStore) -> None:
        self._here = _by_scan(before) if before else {}
        self._known = {scan_and_part(str(entry.series_uid))[0] for entry in before.used} if before else set()
        self._store = store

    @cached_property
    def _elsewhere(self) -> dict[tuple[str, frozenset[str]], list[dict[str, Any]]]:
        """By scan and the ids of its volumes, which tell copies of it apart."""
        found: dict[tuple[str, frozenset[str]], list[dict[str, Any]]] = {}
        for record in every_record(self._store.path):
            volumes: dict[str, set[str]] = {}
            for entry in record.used:
                volumes.setdefault(scan_and_part(str(entry.series_uid))[0], set()).add(str(entry.volume_id))
            for scan_id, entries in _by_scan(record).items():
                found[scan_id, frozenset(volumes.get(scan_id, ()))] = entries
        return found

    def of(self, scan: Scan, records: Sequence[VolumeRecord]) -> list[dict[str, Any]]:
        """The entries of a scan whose volumes are these."""
        if scan.scan_id in self._known or scan.scan_id in self._here:
            return self._here.get(scan.scan_id, [])
        files = {as_utf8(name) for name in scan.files}
        entries = self._elsewhere.get((scan.scan_id, frozenset(record.volume_id for record in records)), [])
        return [entry for entry in entries if entry["path"] in files]


def _by_scan(record: SourceVerdicts) -> dict[str, list[dict[str, Any]]]:
    """Images that volumes were made without, by scan."""
    found: dict[str, list[dict[str, Any]]] = {}
    for verdict in ("skipped", "quarantined"):
        for entry in getattr(record, verdict):
            if entry.image_of_volume:
                fields = {"verdict": verdict, **entry.model_dump(exclude_none=True, exclude={"behind"})}
                found.setdefault(str(entry.series_uid), []).append(fields)
    return found
