"""The patient key that replaces a patient's id, and the secret it is made with, which lies outside the store."""

import hashlib
import hmac
import secrets
from pathlib import Path

from storage.bucket_path import BucketPath
from storage.documents.patient_key_id import PatientKeyId
from storage.errors import SourceError, StoreFormatError
from storage.files import put_if_absent

# What de-identifiers and consoles write where there is no id.
_NO_IDS = (
    "0", "00", "000", "0000", "00000", "000000", "0000000", "00000000", "-", "?", "anon", "anonym", "anonymous", "anonymized",
    "anonymised", "anonymous patient", "deidentified", "de-identified", "n/a", "na", "nan", "no id", "no_id", "noid", "no name",
    "none", "null", "patient", "pseudonym", "removed", "test", "unknown", "xx", "xxx", "xxxx",
)  # fmt: skip


def load_patient_key(key_file: Path) -> bytes:
    """The secret that turns patient ids into patient keys; made (mode 0600) when missing.

    Raises:
        SourceError: the file is unreadable or holds no key.
        UnwritableError: it cannot be made.
    """
    put_if_absent(key_file, (secrets.token_hex(32) + "\n").encode(), mode=0o600)
    try:
        key = bytes.fromhex(key_file.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise SourceError(f"Patient key file {key_file} cannot be read ({error}); expected 64 hex digits.") from error
    if len(key) < 16:
        raise SourceError(f"Patient key file {key_file} holds {len(key)} bytes; expected at least 16 (32 hex digits).")
    return key


def key_id(key: bytes) -> str:
    """Which secret it is, without revealing it: 16 hex digits."""
    return hashlib.sha256(b"prdit key id" + key).hexdigest()[:16]


def check_patient_key(store_path: Path, key: bytes, key_file: Path) -> None:
    """Bind a store to one key: with another, known patients would look new and change roles.

    Raises:
        StoreFormatError: the store was filled with another key.
        StorageError: the store's record of its key cannot be read.
    """
    record, given = store_path / PatientKeyId.NAME, key_id(key)
    PatientKeyId(key_id=given).put(record)
    recorded = PatientKeyId.read(record).key_id
    if recorded != given:
        raise StoreFormatError(
            f"The store {store_path} was filled with patient key {recorded}, {key_file} holds {given}: patients would get "
            "new keys and change roles. Restore the original key file or give it by patient_key_file."
        )


def check_key_there(store_path: Path, key_file: Path) -> None:
    """Refuse to make a new secret for a store that was filled with another one.

    Raises: StoreFormatError: the store has patient keys, and the file that they were made with is missing.
    """
    if key_file.exists() or not (store_path / PatientKeyId.NAME).is_file():
        return
    where = "from the folder that the first ingest ran in" if isinstance(store_path, BucketPath) else "from a back-up"
    raise StoreFormatError(
        f"The store {store_path} was filled with a patient key, and its file {key_file} is not there: with a new one patients "
        f"would get new keys and change roles. Copy it to that place {where}, or give it by ingest.patient_key_file."
    )


def patient_key(key: bytes, patient_id: str, scan_id: str) -> tuple[str, bool]:
    """(patient key, known): HMAC-SHA256 of the patient id, or of the scan id where there is none, as 32 hex digits."""
    known = bool(patient_id.strip())
    text = f"patient:{patient_id.strip()}" if known else f"series:{scan_id}"
    return _keyed(key, text), known


def keys_of_no_ids(key: bytes) -> frozenset[str]:
    """Patient keys of texts that are written where there is no id, such as `anonymous`, in small and large letters."""
    spelled = {spell(text) for text in _NO_IDS for spell in (str.lower, str.upper, str.capitalize, str.title)}
    return frozenset(patient_key(key, text, "")[0] for text in spelled)


def alike_key(key: bytes, patient_id: str) -> str:
    """A hash that ids have in common which differ in case and blanks alone; "" where there is no id."""
    text = "".join(patient_id.casefold().split())
    if not text:
        return ""
    return _keyed(key, f"alike:{text}")


def _keyed(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode("utf-8", "backslashreplace"), hashlib.sha256).hexdigest()[:32]
