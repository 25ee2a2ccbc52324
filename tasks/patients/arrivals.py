"""What the inbox and the batches of new scans have of a patient: files that a person deletes, and links that we do."""

import os
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from storage.files import entries, naming_path
from storage.inbox_database import NAME as LEDGER
from storage.inbox_files import split
from storage.inbox_ledger import BATCHES, PICTURES, Ledger
from storage.patient_key import patient_key
from storage.sources.files import FoundFile, walk_source
from storage.sources.formats import read_source_file
from storage.sources.index import known_patients
from tasks.ingest.scan import file_cache
from tasks.patients.patient import Patient


@dataclass(frozen=True)
class Arrivals:
    """Files of one patient among the new scans.

    Attributes:
        num_inbox: files in the inbox, which is only read: a person deletes them.
        links: of batches.
        pictures: of batches that the drift gate held, which show slices of the patient's volumes among others.
    """

    num_inbox: int = 0
    links: tuple[Path, ...] = ()
    pictures: tuple[Path, ...] = ()


def look_at_arrivals(patient: Patient, inbox: Path, arrivals: Path, store: Path, secret: bytes | None) -> Arrivals:
    """Find the files of a patient in the batches, by what is known of them or by their headers, and those in the inbox.

    Files in the inbox are those that the ledger has of the patient's scans, and those that are linked. A scan that arrives later is
    left out by its ingest, which names it.

    Args:
        patient: who.
        inbox, arrivals: folders; they may be missing.
        store: whose cache knows files that were ingested.
        secret: of the patient keys; None: files are known by their scans alone.
    """
    links = [path for folder in entries(arrivals / BATCHES, "*") for path in _files_of(patient, folder, store, secret)]
    same = {_identity(path) for path in links}
    recorded, numbers = _recorded(patient, arrivals)
    numbers |= {path.relative_to(arrivals / BATCHES).parts[0] for path in links}
    pictures = [path for path in entries(arrivals / PICTURES, "*.png") if path.stem in numbers]
    linked = {
        os.fsencode(path.relative_to(inbox))
        for path in inbox.rglob("*")
        if links and path.is_file() and _identity(path) in same
    }
    return Arrivals(len(recorded | linked), tuple(links), tuple(pictures))


def _recorded(patient: Patient, arrivals: Path) -> tuple[set[bytes], set[str]]:
    """By the ledger: paths in the inbox of the patient's scans, and names of batches whose ingest made the patient's volumes."""
    if not (arrivals / LEDGER).is_file():
        return set(), set()
    with closing(Ledger(arrivals)) as ledger:
        batches = {one.folder.name for one in ledger.batches() if patient.volume_ids.intersection(one.volumes)}
        return {os.fsencode(path) for path in ledger.files.paths_of(patient.scans)}, batches


def remove_links(found: Arrivals) -> int:
    """Remove the links of a patient's files from the batches, and pictures; how many links. The files in the inbox stay."""
    for path in (*found.links, *found.pictures):
        with naming_path(path):
            path.unlink(missing_ok=True)
    return len(found.links)


def forget_arrivals(patient: Patient, inbox: Path, arrivals: Path) -> int:
    """Take the patient's scans out of the ledger; how many stay, because their files are still in the inbox.

    Those go when a look at the inbox finds their files gone, or when the patient is forgotten again.
    """
    if not (arrivals / LEDGER).is_file():
        return 0
    with closing(Ledger(arrivals)) as ledger:
        scans = patient.scans | ledger.files.forgotten_items()
        if inbox.is_dir():  # else nothing is known of its files
            for path in ledger.files.paths_of(scans):
                if not (inbox / path).exists():
                    folder, name = split(path)
                    ledger.files.forget(folder, [name])
        return ledger.files.forget_items(patient.scans)


def _files_of(patient: Patient, folder: Path, store: Path, secret: bytes | None) -> Iterator[Path]:
    """Files of a patient below the folder of a batch."""
    files = [one for one in walk_source(folder) if isinstance(one, FoundFile)]
    known = known_patients(file_cache(store), folder, files)
    for file in files:
        key, scan = known.get(file.path) or _read(folder, file, secret)
        if key == patient.key or scan in patient.scans:
            yield folder / file.path


def _read(folder: Path, file: FoundFile, secret: bytes | None) -> tuple[str, str]:
    """(patient key, scan) by the header of a file."""
    _, facts = read_source_file(folder, file.path)
    key = patient_key(secret, facts.patient_id, "")[0] if secret and facts.patient_id else ""
    return key, facts.scan


def _identity(path: Path) -> tuple[int, int]:
    with suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return 0, 0
