"""Where something of a patient is kept, and how it is deleted there: the store, what lies beside it, and working folders.

Every function does what is left to do: after a kill the same call makes the rest.
"""

import logging
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from storage.artifacts import PROVENANCE, SCRATCH, redact_artifact
from storage.documents.document import Document
from storage.documents.held_out import HeldOutLosses
from storage.documents.promotion import Decision
from storage.documents.provenance import Provenance
from storage.documents.snapshot import Roles
from storage.documents.split import Split
from storage.documents.verdicts import SourceVerdicts
from storage.encoded import forget_encoded
from storage.errors import StorageError
from storage.files import entries, naming_path, remove_leftovers, write_bytes_atomic
from storage.privacy import INGESTS, beside_store
from storage.snapshots import role_ledgers
from storage.sources.index import forget_files
from storage.volume_store import VolumeStore
from tasks.evaluate.cache import forget_features
from tasks.ingest.qc import write_page
from tasks.ingest.scan import file_cache
from tasks.patients.patient import Patient
from tasks.patients.redact import TEXTS, Names, without
from tasks.retrain.decisions import FOLDER as DECISIONS
from tasks.run.stage import TRACKING

_OF_PATIENT = ("report", "verdicts")  # artifacts that say something of single volumes; a split only names them
_LARGEST = 64 << 20  # a text of more is none that says something of a patient
_PICTURES = ("real-", "pair-")  # of a report: whose they are, only the page says
_MODELS: dict[str, type[Document]] = {"held-out": HeldOutLosses, DECISIONS: Decision}  # by folder of a working folder
logger = logging.getLogger("prdit.patients")


# ---- the store and what lies beside it ------------------------------------------------------------------------------------


def forget_verdicts(store: VolumeStore, patient: Patient) -> int:
    """Take the patient's scans out of the verdicts of every source, in the store and beside it; how many entries."""
    words = patient.words | patient.volume_ids
    names = Names(words, patient.text)
    beside = beside_store(store.path, INGESTS)
    count = 0
    for path in [*entries(beside, "*.json"), *entries(store.path / "exclusions", "*.json")]:
        try:
            record = SourceVerdicts.read(path)
        except StorageError as error:
            logger.warning("%s is removed, as it cannot be read: %s", path.name, error)
            path.unlink()
            continue
        new, number = _without_entries(record, names)
        if number:
            new.write(path)
            count += number
    for path in entries(beside, "*.jsonl"):
        _redact_text(path, words, patient.text)
    damaged = [one for folder in ("snapshots", "history") for one in entries(store.path / folder, "*.damaged")]
    for path in (one for one in damaged if names.named(one.read_text(encoding="utf-8", errors="replace"))):
        path.unlink()
    remove_leftovers(beside)
    for path in entries(beside, "*.archives"):  # names of files in archives, which the next ingest lists again
        with naming_path(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return count


def _without_entries(record: SourceVerdicts, names: Names) -> tuple[SourceVerdicts, int]:
    """Entries of another scan stay: a PatientID in their path, as of a folder, is only taken out."""
    changes: dict[str, Any] = {}
    count = 0
    for name in ("committed", "unchanged", "skipped", "quarantined"):
        kept = []
        for one in getattr(record, name):
            texts = (one.series_uid, one.volume_id, one.path, one.message)
            says = names.worded if one.series_uid or one.volume_id else names.named
            if any(says(text) for text in texts if text):
                count += 1
                continue
            clean = {key: names.without_text(text) for key in ("path", "message") if (text := getattr(one, key))}
            count += any(getattr(one, key) != text for key, text in clean.items())
            kept.append(one.model_copy(update=clean))
        changes[name] = kept
    notes = [note for note in record.notes if not names.named(note)]
    return record.model_copy(update=changes | {"notes": notes}), count + len(record.notes) - len(notes)


def forget_beside(store: VolumeStore, patient: Patient) -> None:
    """Delete features, encoded volumes, pictures and facts of files that are kept beside the store; renew its quality page."""
    forget_features(store, patient.volume_ids)
    forget_encoded(store, patient.volume_ids)
    pictures = beside_store(store.path, INGESTS) / "pictures"
    for volume_id in patient.volume_ids:
        for path in entries(pictures, f"{volume_id}-*.json"):
            with naming_path(path):
                path.unlink(missing_ok=True)
    forget_files(file_cache(store.path), patient.key, patient.scans)
    if beside_store(store.path, INGESTS).is_dir():
        write_page(store)


def forget_roles(store: VolumeStore, patient: Patient) -> None:
    """Take the patient out of every version of every ledger of roles."""
    for versions in role_ledgers(store.path):
        for number in versions.numbers():
            roles = versions.read(number).roles
            kept = {key: role for key, role in roles.items() if key != patient.key and key not in patient.scan_keys}
            if kept != roles:
                Roles(roles=kept).write(versions.path(number))


# ---- working folders ------------------------------------------------------------------------------------------------------


def redact_directory(directory: Path, patient: Patient, *, forgotten: str = "", shows: bool = False) -> list[str]:
    """Take what says or shows something of a patient out of an artifact, and out of its scratch folder.

    Args:
        directory: of a stage, with a record.
        patient: who is forgotten.
        forgotten: sentence for the record of a model or samples that learned from the patient; else empty.
        shows: whether all of it shows the patient: nothing but its record is left.
    Returns: files that are redacted now, earlier ones among them.
    """
    record = Provenance.load(directory)
    words = patient.words | (patient.volume_ids if record.kind in _OF_PATIENT else frozenset())
    changes: dict[str, bytes | None] = {}
    for name in record.files:
        path = directory / name
        if path.suffix in TEXTS and (left := _left(path, words, patient.text)) is not None:
            changes[name] = left
    if shows:
        changes = dict.fromkeys(record.files)
    if record.kind == "report" and any(name.endswith(".html") for name in changes):
        changes |= {name: None for name in record.files if Path(name).name.startswith(_PICTURES)}
    undone = {name: None for name, left in record.redacted.items() if not left and (directory / name).exists()}
    if changes or undone or forgotten:
        redact_artifact(directory, dict(undone | changes), forgotten=forgotten if forgotten != record.forgotten else "")
    forget_scratch(directory, patient)
    return sorted({*record.redacted, *changes})


def forget_scratch(directory: Path, patient: Patient) -> None:
    """Delete what the scratch folder of a stage keeps of a patient: features, and lines of logs."""
    scratch = directory / SCRATCH
    for volume_id in patient.volume_ids:
        path = scratch / "features" / "real" / volume_id
        if path.is_dir():
            with naming_path(path):
                shutil.rmtree(path)
    for path in _texts(scratch):
        _redact_text(path, patient.words, patient.text)


def clear_unfinished(directory: Path) -> None:
    """Empty the directory of a stage that was not finished: whose its pictures or volumes are is not known. They are made again."""
    for path in directory.iterdir():
        if path.name not in (SCRATCH, PROVENANCE):
            with naming_path(path):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def redact_rest(workdir: Path, patient: Patient) -> None:
    """Redact what else a working folder has: comparisons, held-out losses, decisions, and files that wait to be sent to MLflow."""
    for folder in (workdir / name for name in ("compare", "held-out", DECISIONS, TRACKING)):
        for path in _texts(folder):
            if folder.name == TRACKING and "files" not in path.relative_to(folder).parts:
                continue  # records of the outbox, which are read by offset, name nobody
            words = patient.words | (frozenset() if path.name == Split.NAME else patient.volume_ids)
            _redact_text(path, words, patient.text, _MODELS.get(folder.name))


def _texts(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith("step-") and not name.endswith(".zarr")]
        yield from (Path(root) / name for name in names if Path(name).suffix in TEXTS and not name.startswith("."))


def _left(path: Path, words: Collection[str], text: str, model: type[Document] | None = None) -> bytes | None:
    """What is to be left of a text file; None where it says nothing of the patient, or is not there."""
    if not path.is_file() or path.stat().st_size > _LARGEST:
        return None
    return without(path.name, path.read_bytes(), words, text, model)


def _redact_text(path: Path, words: Collection[str], text: str, model: type[Document] | None = None) -> None:
    if (left := _left(path, words, text, model)) is not None:
        write_bytes_atomic(path, left)
