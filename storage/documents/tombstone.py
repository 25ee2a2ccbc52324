"""`tombstones/<patient key>.json` of a volume store: a patient who was forgotten, so that no ingest brings the scans back."""

from typing import ClassVar

from storage.documents.document import Document


class Tombstone(Document):
    """One forgotten patient. Nothing in it can be turned back into an image or a name; the patient key is an HMAC.

    Attributes:
        patient_key: of the patient.
        scan_keys: patient keys that the patient's scans have where they come without a PatientID.
        volume_ids: of the volumes that were forgotten.
        pixels: hashes of their HU (`ScanFacts.pixels`), which copies in other formats share.
        created: UTC time at which the forgetting began.
        finished: UTC time at which everything was deleted; empty while it goes on.
        scans: ids of the patient's scans, by which what is to be deleted is found; empty once it is finished.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "tombstone of a forgotten patient"
    REMEDY: ClassVar[str] = "Restore it from a backup: without it an ingest could bring the patient's scans back."

    patient_key: str
    scan_keys: tuple[str, ...] = ()
    volume_ids: tuple[str, ...] = ()
    pixels: tuple[str, ...] = ()
    created: str
    finished: str = ""
    scans: tuple[str, ...] = ()
