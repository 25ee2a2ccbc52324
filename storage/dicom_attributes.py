"""The allow-list: which DICOM attributes may enter the store, and the patient key that replaces PatientID.

docs/data-model.md has the same table; everything not named here stays in the source.
"""

import csv
import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from storage.errors import SourceError, StoreFormatError
from storage.files import fsync_directory, read_json, write_json_atomic

TEXT_ATTRIBUTES = (
    "StudyInstanceUID", "SeriesInstanceUID", "Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "ScanOptions",
    "BodyPartExamined", "PatientPosition", "PatientSex",
)  # fmt: skip
NUMBER_ATTRIBUTES = ("KVP", "SliceThickness", "XRayTubeCurrent", "ReconstructionDiameter")
# Free text could hold anything: only these characters, and only this many of them, are kept.
_UNSAFE = re.compile(r"[^A-Za-z0-9 ._+/\\()-]")
_MAX_TEXT = 64
PATIENTS_CSV = "patients.csv"


def allowed_attributes(header: Dataset) -> dict[str, Any]:
    """Allow-listed attributes of a series: tags by DICOM keyword, `age_years` and `contrast` (whether an agent is named)."""
    found: dict[str, Any] = {}
    for name in TEXT_ATTRIBUTES:
        value = header.get(name)
        if value not in (None, ""):
            text = str(value) if isinstance(value, str) else "\\".join(str(v) for v in value)
            found[name] = _UNSAFE.sub("", text)[:_MAX_TEXT]
    for name in NUMBER_ATTRIBUTES:
        try:
            found[name] = float(header.get(name))
        except (TypeError, ValueError):
            continue
    if found.get("PatientSex") not in {"F", "M", "O"}:
        found.pop("PatientSex", None)
    age = age_years(header)
    if age is not None:
        found["age_years"] = age
    found["contrast"] = bool(str(header.get("ContrastBolusAgent") or "").strip())
    return found


def age_years(header: Dataset) -> int | None:
    """Whole years from PatientAge, else from birth and study date; 90 stands for 90 and above. None when unknown."""
    match = re.fullmatch(r"(\d{3})([DWMY])", str(header.get("PatientAge") or "").strip())
    if match:
        years = int(match[1]) // {"D": 365, "W": 52, "M": 12, "Y": 1}[match[2]]
        return min(years, 90)
    birth, study = str(header.get("PatientBirthDate") or ""), str(header.get("StudyDate") or "")
    if re.fullmatch(r"\d{8}", birth) and re.fullmatch(r"\d{8}", study) and study >= birth:
        return min(int(study[:4]) - int(birth[:4]) - (study[4:] < birth[4:]), 90)
    return None


def load_patient_key(key_file: Path) -> bytes:
    """The secret that turns PatientIDs into patient keys; made (mode 0600) when missing.

    Raises: SourceError: the file is unreadable or holds no key.
    """
    if not key_file.exists():
        key_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:  # another process has just made it
            pass
        else:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(secrets.token_hex(32) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            fsync_directory(key_file.parent)
    try:
        key = bytes.fromhex(key_file.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise SourceError(f"Patient key file {key_file} cannot be read ({error}); expected 64 hex digits.") from error
    if len(key) < 16:
        raise SourceError(f"Patient key file {key_file} holds {len(key)} bytes; expected at least 16 (32 hex digits).")
    return key


def check_patient_key(store_path: Path, key: bytes, key_file: Path) -> None:
    """Bind a store to one key: with another, known patients would look new and change roles.

    Raises: StoreFormatError: the store was filled with another key.
    """
    record, key_id = store_path / "patient-key-id.json", hashlib.sha256(b"prdit key id" + key).hexdigest()[:16]
    if not record.exists():
        write_json_atomic(record, {"key_id": key_id})
        return
    recorded = read_json(record)["key_id"]
    if recorded != key_id:
        raise StoreFormatError(
            f"The store {store_path} was filled with patient key {recorded}, {key_file} holds {key_id}: patients would get "
            "new keys and change roles. Restore the original key file or give it by patient_key_file."
        )


def patient_key(key: bytes, patient_id: str, series_uid: str) -> tuple[str, bool]:
    """(patient key, known): HMAC-SHA256 of the PatientID, or of the series UID where there is no id, as 32 hex digits."""
    known = bool(patient_id.strip())
    text = f"patient:{patient_id.strip()}" if known else f"series:{series_uid}"
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32], known


def read_patients_csv(source: Path) -> dict[str, str]:
    """`patients.csv` of a source: series_uid or path (of a folder or file) -> patient_id; {} when there is none.

    Raises: SourceError: the expected columns are missing.
    """
    path = source / PATIENTS_CSV
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        columns = set(reader.fieldnames or ())
        first = next((name for name in ("series_uid", "path") if name in columns), None)
        if first is None or "patient_id" not in columns:
            raise SourceError(f"{path} has columns {sorted(columns)}; expected patient_id and series_uid (or path).")
        return {
            str(row[first]).strip().rstrip("/"): str(row["patient_id"] or "").strip() for row in reader if row[first]
        }
