"""`patients.csv` and `labels.csv` of a source: whose scans they are, and what is known of them beside their headers."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from storage.errors import SourceError
from storage.patient_key import keys_of_no_ids, patient_key
from storage.sources.attributes import RESERVED_NAMES, safe_text
from storage.sources.source import as_utf8
from storage.verdicts import counted

PATIENTS_CSV = "patients.csv"
LABELS_CSV = "labels.csv"
TABLES = (PATIENTS_CSV, LABELS_CSV)
_KNOWN_COLUMNS = ("patient_id", "series_uid", "path")
_USUAL_COLUMNS = {  # by their letters and digits
    "patientid", "patient", "patientname", "subject", "subjectid", "id", "pid", "uid", "seriesuid", "series", "seriesinstanceuid",
    "seriesid", "studyuid", "studyinstanceuid", "study", "scan", "scanid", "path", "file", "filename", "filepath", "folder", "name",
}  # fmt: skip
_LABEL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Row:
    """One row of a table: its line in the file, and its values by column, the key left out."""

    line: int
    values: dict[str, str]


@dataclass(frozen=True)
class Table:
    """One table: the column that says which scans a row is about, and the rows by its value."""

    name: str
    key: str = ""
    rows: dict[str, Row] = field(default_factory=dict)

    def find(self, scan_id: str, files: Sequence[str], patient: str) -> Row | None:
        """The row about a scan: by its id, by the key of its patient, or by one of its files or else the nearest folder above."""
        if self.key == "path":
            return next((self.rows[place] for place in _places(files) if place in self.rows), None)
        return self.rows.get(patient if self.key == "patient_id" else scan_id)


@dataclass(frozen=True)
class Assigned:
    """What the tables say of one scan.

    Attributes:
        patient_key, patient_known: as `storage.patient_key.patient_key` gives them.
        labels: value by name.
        patients_row, labels_row: the rows it is from.
        patient_given: whether patients.csv names the patient.
        contradicted: whether the row of patients.csv names another patient than the file, which is kept.
    """

    patient_key: str
    patient_known: bool
    labels: dict[str, str]
    patients_row: Row | None = None
    labels_row: Row | None = None
    patient_given: bool = False
    contradicted: bool = False


class SourceTables:
    """Both tables of a source, each empty where there is none.

    Patient ids are turned into patient keys when a table is read and then forgotten.

    Args:
        source: its folder.
        key: secret of the patient keys.

    Attributes:
        key: the same.
        patients, labels: the tables.

    Raises: SourceError: a table lacks a column, has two rows about one thing, a bad label name, or is not UTF-8.
    """

    def __init__(self, source: Path, key: bytes) -> None:
        self.key = key
        self._no_ids = keys_of_no_ids(key)
        self.patients = read_patients(source, key)
        self.labels = read_labels(source, key)

    def __bool__(self) -> bool:
        return bool(self.patients.rows or self.labels.rows)

    def assign(self, scan_id: str, files: Sequence[str], patient: str) -> Assigned:
        """What the tables say of one scan.

        Args:
            scan_id: a DICOM series' UID, say.
            files: relative paths.
            patient: patient key from the PatientID in its files, "" where there is none.
        """
        row = self.patients.find(scan_id, files, "")
        named = row.values["patient_key"] if row else ""
        if named and patient in self._no_ids:
            patient = ""
        known = patient or named
        key = known or patient_key(self.key, "", scan_id)[0]
        labels_row = self.labels.find(scan_id, files, known)
        labels = labels_row.values if labels_row else {}
        return Assigned(
            patient_key=key,
            patient_known=bool(known),
            labels=labels,
            patients_row=row,
            labels_row=labels_row,
            patient_given=bool(named and patient in ("", named)),
            contradicted=bool(patient and named and patient != named),
        )

    def notes(self, assigned: Iterable[tuple[str, Assigned]]) -> list[str]:
        """Sentences about rows that contradict a file or match no scan.

        Args:
            assigned: (scan id, what `assign` said of it) of every scan.
        """
        used: set[tuple[str, int]] = set()
        contradictions: list[tuple[int, str]] = []
        for scan_id, one in assigned:
            for table, row in ((self.patients, one.patients_row), (self.labels, one.labels_row)):
                if row is not None:
                    used.add((table.name, row.line))
            if one.contradicted and one.patients_row is not None:
                contradictions.append((one.patients_row.line, scan_id))
        notes = []
        if contradictions:
            line, scan_id = min(contradictions)
            notes.append(
                f"{PATIENTS_CSV}: {counted(len(contradictions), 'scan')} with another PatientID than the table gives, the first in "
                f"line {line} (scan {scan_id}): the PatientID in the files was kept. Correct the table."
            )
        for table in (self.patients, self.labels):
            unused = sorted(row.line for row in table.rows.values() if (table.name, row.line) not in used)
            if unused:
                notes.append(
                    f"{table.name}: {counted(len(unused), 'row')} without a scan, the first in line {unused[0]}: "
                    f"check column {table.key}."
                )
        return notes


def read_patients(source: Path, key: bytes) -> Table:
    """`patients.csv`: series_uid or path (of a file, or a folder above it) -> `patient_key`; rows without an id are left out.

    Raises: SourceError: see `SourceTables`.
    """
    path = source / PATIENTS_CSV
    if not path.is_file():
        return Table(PATIENTS_CSV)
    columns, lines = _read(path)
    first = next((name for name in ("series_uid", "path") if name in columns), None)
    if first is None or "patient_id" not in columns:
        raise SourceError(f"{path} has columns {_listed(columns)}; expected patient_id and series_uid (or path).")
    rows = _by_key(path, first, ((line, row[first], {"patient_id": row["patient_id"].strip()}) for line, row in lines))
    keyed = {
        name: Row(row.line, {"patient_key": patient_key(key, row.values["patient_id"], "")[0]})
        for name, row in rows.items()
        if row.values["patient_id"]
    }
    return Table(PATIENTS_CSV, first, keyed)


def read_labels(source: Path, key: bytes) -> Table:
    """`labels.csv`: one of series_uid, path or patient_id -> labels, which are all other columns; empty values are left out.

    Raises: SourceError: see `SourceTables`.
    """
    path = source / LABELS_CSV
    if not path.is_file():
        return Table(LABELS_CSV)
    columns, lines = _read(path)
    keys = [name for name in ("series_uid", "path", "patient_id") if name in columns]
    names = [name for name in columns if name not in keys]
    if len(keys) != 1 or not names:
        raise SourceError(
            f"{path} has columns {_listed(columns)}; expected exactly one of series_uid, path and patient_id, "
            "and a column per label."
        )
    for name in names:
        if not _LABEL_NAME.fullmatch(name) or name in RESERVED_NAMES:
            why = "the name of an attribute" if name in RESERVED_NAMES else "no label name"
            raise SourceError(
                f"{path}, line 1: column {safe_text(name)!r} is {why}; expected a letter, then up to 63 letters, digits, - or _."
            )
    found = (
        (line, row[keys[0]], {name: text for name in names if (text := safe_text(row[name]).strip())})
        for line, row in lines
    )
    rows = _by_key(path, keys[0], found)
    if keys[0] == "patient_id":
        rows = {patient_key(key, name, "")[0]: row for name, row in rows.items()}
    return Table(LABELS_CSV, keys[0], rows)


def _read(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Column names, and (line, values by column) of every row."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(f"{path}, line {line}: not UTF-8 text; save the table as CSV in UTF-8.") from error
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    columns = [_column(name) for name in _next(reader, path) or []]
    if len(columns) == 1 and (other := next((mark for mark in ";\t|" if mark in columns[0]), None)):
        raise SourceError(f"{path}, line 1: values are separated by {other!r}; save the table with commas.")
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise SourceError(
            f"{path}, line 1: column {columns.index(twice[0]) + 1} ({_listed(twice[:1])}) occurs twice; expected each once."
        )
    return columns, _rows(reader, columns, path)


def _rows(reader: Any, columns: list[str], path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    while True:
        line = reader.line_num + 1
        row = _next(reader, path)
        if row is None:
            return
        if not any(row):
            continue
        if len(row) != len(columns):
            raise SourceError(f"{path}, line {line}: {len(row)} values, but there are {len(columns)} columns.")
        yield line, dict(zip(columns, row, strict=True))


def _next(reader: Any, path: Path) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise SourceError(f"{path}, line {reader.line_num}: not readable as CSV ({error}).") from error


def _by_key(path: Path, column: str, found: Iterable[tuple[int, str, dict[str, str]]]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for line, name, values in found:
        name = name.strip()
        if column == "path":
            name = name.removeprefix("./").rstrip("/") or "."
        if not name:
            continue
        other = rows.setdefault(name, Row(line, values))
        if other.values != values:
            raise SourceError(
                f"{path}, line {line}: the same {column} as in line {other.line} with other values; keep one of the rows."
            )
    return rows


def _places(files: Sequence[str]) -> list[str]:
    """Paths that a row may name to mean a scan: its files, and the folders above, nearest first."""
    paths = [PurePosixPath(as_utf8(name)) for name in files]
    folders = {parent for path in {path.parent for path in paths} for parent in (path, *path.parents)}
    nearest = sorted((str(folder) for folder in folders), key=lambda place: (-len(PurePosixPath(place).parts), place))
    return [*(str(path) for path in paths), *nearest]


def _column(name: str) -> str:
    """A column's name without outer blanks; those that a table must have without regard to case."""
    name = name.strip()
    return name.lower() if name.lower() in _KNOWN_COLUMNS else name


def _listed(columns: Sequence[str]) -> str:
    """Columns by their names where they are usual ones, others by their number: without a header the first row is a patient's."""
    usual = [name for name in columns if "".join(c for c in name.lower() if c.isalnum()) in _USUAL_COLUMNS]
    others = len(columns) - len(usual)
    return ", ".join([*usual, *([counted(others, "other")] if others else [])]) or "none"
