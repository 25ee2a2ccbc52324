"""Verdicts of an ingest: `ingest.json` of the stage, and the last verdicts on each source."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field

from storage.documents.document import Document, Part
from storage.places import as_place
from storage.privacy import opaque_id, shown, with_placeholder
from storage.verdicts import REASONS

_COUNT = re.compile(r"\d{1,4}")  # a file may be called so, and it reveals nobody
LISTS = ("committed", "unchanged", "skipped", "quarantined")


class Entry(Part):
    """One verdict on a scan, or on a file by itself.

    Attributes:
        series_uid: id of the scan.
        path: relative path of the file that the verdict is about, or that its message names; else of the scan's first file.
        volume_id: of a scan that is a volume.
        reason: code of `storage.verdicts.REASONS`, where it is none.
        message: the reason's sentence; it names the file only as `storage.privacy.PATH`.
        num_slices: of a scan.
        cut: share of body and of lung outside the default view.
        image_of_volume: True of a file that belongs to a scan whose volume was made without it.
        seconds: that the volume took.
        behind: what the verdict depends on: settings with their values, and tags.
        thumbnail: PNG in base64 of one image of a refused scan; only beside the store.
    """

    series_uid: str | None = None
    path: str | None = None
    volume_id: str | None = None
    reason: str | None = None
    message: str | None = None
    num_slices: int | None = None
    cut: dict[str, float] | None = None
    image_of_volume: bool | None = None
    seconds: float | None = None
    behind: tuple[str, ...] | None = None
    thumbnail: str | None = None


class Verdicts(Document):
    """Every series and every file that belongs to none, by verdict.

    Attributes:
        committed, unchanged, skipped, quarantined: the entries of each verdict.
        num_excluded: how many were skipped or quarantined, by reason: of single files the lists hold only some of each.
        num_odd_images: how many of them are skipped for a reason that quarantines a scan: images that a volume was made without.
        notes: sentences about the source as a whole, and about single scans.
    """

    committed: list[Entry] = Field(default_factory=list)
    unchanged: list[Entry] = Field(default_factory=list)
    skipped: list[Entry] = Field(default_factory=list)
    quarantined: list[Entry] = Field(default_factory=list)
    num_excluded: dict[str, int] = Field(default_factory=dict)
    num_odd_images: dict[str, int] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    def without_paths(self, key: bytes) -> Self:
        """As it may be stored and sent: file and folder names can reveal who was scanned, so paths become opaque ids.

        Args:
            key: secret of the patient keys, see `storage.privacy.opaque_id`.
        """
        named = self._renamed(lambda path: opaque_id(key, "file", path))
        changes = {of: [_without_thumbnail(entry) for entry in getattr(named, of)] for of in ("skipped", "quarantined")}
        return named.model_copy(update=changes)

    def with_paths(self) -> Self:
        """For the person who runs the ingest: messages name the files."""
        return self._renamed(lambda path: path)

    def _renamed(self, name: Callable[[str], str]) -> Self:
        changes = {of: [_named(entry, name) for entry in getattr(self, of)] for of in LISTS}
        return self.model_copy(update=changes)

    @property
    def counts(self) -> dict[str, int]:
        """How many items have which verdict, those that the lists leave out among them."""
        counts = {"committed": len(self.committed), "unchanged": len(self.unchanged), "skipped": 0, "quarantined": 0}
        for verdict, _, number in self.excluded:
            counts[verdict] += number
        return counts

    @property
    def excluded(self) -> list[tuple[str, str, int]]:
        """(verdict, reason, how many) of what was skipped or quarantined."""
        found = []
        for reason, number in self.num_excluded.items():
            odd = self.num_odd_images.get(reason, 0)
            found += [("skipped", reason, odd), (REASONS[reason].verdict, reason, number - odd)]
        return [one for one in found if one[2]]

    @property
    def used(self) -> list[Entry]:
        """Scans whose volume is listed: committed and unchanged, by scan."""
        return sorted([*self.committed, *self.unchanged], key=lambda entry: str(entry.series_uid))


class IngestReport(Verdicts):
    """What one ingest did; `snapshot` is the digest of what the store lists afterwards, `store` its path."""

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "ingest.json"
    WHAT: ClassVar[str] = "report of an ingest"
    REMEDY: ClassVar[str] = "Ingest the source again."

    snapshot: str
    store: str

    @classmethod
    def of(cls, verdicts: Verdicts, *, snapshot: str, store: Path) -> Self:
        """The report with some verdicts, on a store that lists a snapshot (its digest) afterwards."""
        fields = {name: getattr(verdicts, name) for name in Verdicts.model_fields}
        return cls(**fields, snapshot=snapshot, store=str(store.resolve()))

    def without_paths(self, key: bytes) -> Self:
        """As it may be stored and sent, see `Verdicts.without_paths`."""
        return super().without_paths(key).model_copy(update={"store": opaque_place(as_place(self.store), key)})


class SourceVerdicts(Verdicts):
    """The last verdicts on one source: beside the store with paths, in the store's `exclusions/` without.

    Attributes:
        source_digest, recipe, config: what the verdicts depend on: while they are the same, so are the verdicts.
        snapshot: digest of what the store listed afterwards. Another ingest since then may have listed other patients or labels.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "record of verdicts"
    REMEDY: ClassVar[str] = "Remove it and ingest the source again."

    source_digest: str
    recipe: int
    config: dict[str, Any]
    snapshot: str = ""


def opaque_place(store: Path, key: bytes) -> str:
    """A store's path as an id that shows only whether two paths are equal."""
    return opaque_id(key, "store", str(store.resolve()))


def _without_thumbnail(entry: Entry) -> Entry:
    return entry.model_copy(update={"thumbnail": None})


def _named(entry: Entry, name: Callable[[str], str]) -> Entry:
    if entry.path is None:
        return entry
    place = name(entry.path)
    if entry.message is None:
        return entry.model_copy(update={"path": place})
    message = entry.message
    if entry.num_slices is None or not _COUNT.fullmatch(
        entry.path
    ):  # else a scan's sentence may have the number without the file
        message = with_placeholder(message, entry.path)  # where `with_paths` has named it already
    return entry.model_copy(update={"path": place, "message": shown(message, place)})
