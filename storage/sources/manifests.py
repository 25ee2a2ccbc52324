"""Lists of what a download or a disc should hold: NBIA and IDC tables, `.tcia` lists, DICOMDIR.

They say how many images a series has, or only that it belongs here. A list that does not fit is a note, never an error: the images
are what is ingested. Notes name kinds of lists and series, no files.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pydicom

from storage.sources.dicom_errors import DECODE_ERRORS
from storage.sources.files import open_file
from storage.verdicts import counted

_LISTS = {".tcia": "tcia list", ".s5cmd": "s5cmd list"}
_MAX_BYTES = 64 << 20
_UID_COLUMNS = ("seriesuid", "seriesinstanceuid")
_COUNT_COLUMNS = ("numberofimages", "imagecount", "instancecount", "numinstances")


@dataclass(frozen=True)
class Manifest:
    """One list.

    Attributes:
        kind: how notes call it.
        series: UIDs it names.
        counts: images of those of which it says how many there are.
        notes: what is wrong with it.
    """

    kind: str
    series: frozenset[str] = frozenset()
    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def is_manifest(name: str, reason: str) -> bool:
    """Whether a file is such a list, by its name and why it is no image."""
    if reason == "dicomdir":
        return True
    base = PurePosixPath(name).name.lower()
    if reason != "unknown_format":
        return False
    return base.endswith((".tcia", ".s5cmd")) or base in ("metadata.csv", "manifest.csv", "idc_manifest.csv")


def read_manifest(source: Path, name: str) -> Manifest:
    """What a list of a source says."""
    base = PurePosixPath(name).name.lower()
    kind = base if base.endswith(".csv") else _LISTS.get(base[base.rfind(".") :], "DICOMDIR")
    try:
        with open_file(source, name) as stream:
            if kind.endswith(("csv", "list")):
                text = stream.read(_MAX_BYTES).decode("utf-8-sig")
                return _read_table(kind, text) if kind.endswith("csv") else _read_list(kind, text)
            return _read_dicomdir(source, name, pydicom.dcmread(stream))
    except (*DECODE_ERRORS, csv.Error) as error:
        if isinstance(error, MemoryError):
            raise
        return Manifest(kind, notes=(f"{kind}: it cannot be read ({type(error).__name__}); correct or remove it.",))


def _read_table(kind: str, text: str) -> Manifest:
    start = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=start.count))
    columns = ["".join(c for c in name.lower() if c.isalnum()) for name in next(rows, [])]
    uid = next((k for k, name in enumerate(columns) if name in _UID_COLUMNS), None)
    count = next((k for k, name in enumerate(columns) if name in _COUNT_COLUMNS), None)
    if uid is None:
        return Manifest(kind, notes=(f"{kind}: it has no column SeriesInstanceUID or Series UID, so it is not used.",))
    series, counts, bad = set(), _Counts(), 0
    for row in rows:
        if len(row) <= uid or not row[uid].strip():
            continue
        series.add(row[uid].strip())
        if count is None:
            continue
        try:
            counts.add(row[uid].strip(), int(row[count]))
        except (ValueError, IndexError):
            bad += 1
    notes = (f"{kind}: {counted(bad, 'row')} without a number of images, to be corrected.",) if bad else ()
    return Manifest(kind, frozenset(series), counts.sure(), (*notes, *counts.notes(kind)))


def _read_list(kind: str, text: str) -> Manifest:
    """A `.tcia` list has a UID per line after its settings; a `.s5cmd` list names folders, which say nothing of series."""
    lines = (line.strip() for line in text.splitlines())
    return Manifest(kind, frozenset(line for line in lines if line and set(line) <= set("0123456789.") and "." in line))


def _read_dicomdir(source: Path, name: str, data: Any) -> Manifest:
    records = {int(record.seq_item_tell): record for record in data.get("DirectoryRecordSequence") or ()}
    counts, series = _Counts(), set()
    missing = total = 0
    folder = PurePosixPath(name).parent
    for record in records.values():
        if record.get("DirectoryRecordType") != "SERIES":
            continue
        uid = str(record.get("SeriesInstanceUID") or "").strip()
        images = [one for one in _below(records, record) if one.get("DirectoryRecordType") == "IMAGE"]
        total += len(images)
        missing += sum(not _exists(source, folder, one.get("ReferencedFileID")) for one in images)
        if uid:
            series.add(uid)
            counts.add(uid, len(images))
    notes = counts.notes("DICOMDIR")
    if missing:
        notes = (*notes, f"DICOMDIR: {missing} of {total} files that it lists are not there; copy the disc again.")
    return Manifest("DICOMDIR", frozenset(series), counts.sure(), notes)


def _below(records: dict[int, Any], record: Any) -> Iterator[Any]:
    """The records one level below, in their order (PS3.3 F.3.2.2)."""
    seen: set[int] = set()
    place = int(record.get("OffsetOfReferencedLowerLevelDirectoryEntity") or 0)
    while place in records and place not in seen:
        seen.add(place)
        yield records[place]
        place = int(records[place].get("OffsetOfTheNextDirectoryRecord") or 0)


def _exists(source: Path, folder: PurePosixPath, parts: Any) -> bool:
    names = [parts] if isinstance(parts, str) else [str(part) for part in parts or ()]
    if not names or ".." in names:
        return False
    for spelled in (names, [part.lower() for part in names]):
        try:
            with open_file(source, str(folder.joinpath(*spelled))):
                return True
        except OSError:
            continue
    return False


class _Counts:
    """Images by series, where all that is said of a series is the same."""

    def __init__(self) -> None:
        self._all: dict[str, set[int]] = {}

    def add(self, uid: str, number: int) -> None:
        if number > 0:
            self._all.setdefault(uid, set()).add(number)

    def sure(self) -> dict[str, int]:
        return {uid: min(numbers) for uid, numbers in self._all.items() if len(numbers) == 1}

    def notes(self, kind: str) -> tuple[str, ...]:
        unsure = sorted(uid for uid, numbers in self._all.items() if len(numbers) > 1)
        if not unsure:
            return ()
        return (
            f"{kind}: it gives several numbers of images for {len(unsure)} series, the first {unsure[0]}; none is used.",
        )


class Expected:
    """What all lists of a source say together.

    Args:
        manifests: in any order.
    """

    def __init__(self, manifests: Iterable[Manifest] = ()) -> None:
        self._manifests = sorted(manifests, key=lambda one: (one.kind, sorted(one.series)))
        counts = _Counts()
        for one in self._manifests:
            for uid, number in one.counts.items():
                counts.add(uid, number)
        self._counts = counts.sure()
        self._notes = [*(note for one in self._manifests for note in one.notes), *counts.notes("manifests")]

    def count(self, scan_id: str) -> int | None:
        """How many images a series has; None where no list says it, or two disagree."""
        return self._counts.get(scan_id)

    def notes(self, found: Mapping[str, int]) -> list[str]:
        """What is wrong with the lists, how many series of each are not there, and which have more images than they say.

        Args:
            found: how many different slices each scan of the source has.
        """
        if not self._manifests:
            return []
        there = found.keys()
        notes = list(self._notes)
        if more := sorted(uid for uid, number in self._counts.items() if found.get(uid, 0) > number):
            notes.append(
                f"manifests: {len(more)} series have more images than listed, the first {more[0]} ({found[more[0]]} of "
                f"{self._counts[more[0]]}): the list is of another version of it, or it has images of others or twice."
            )
        for one in self._manifests:
            if missing := sorted(one.series - there):
                notes.append(
                    f"{one.kind}: {len(missing)} of {len(one.series)} series that it lists are not CT of this source, the first "
                    f"{missing[0]}. Where they are CT, fetch them; else nothing is to do."
                )
        return notes
