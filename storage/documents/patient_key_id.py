"""patient-key-id.json of a volume store: which secret its patient keys were made with."""

from typing import ClassVar

from storage.documents.document import Document


class PatientKeyId(Document):
    """Identity of the secret, without revealing it.

    Attributes:
        key_id: 16 hex digits.
    """

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "patient-key-id.json"
    WHAT: ClassVar[str] = "record of a store's patient key"
    REMEDY: ClassVar[str] = (
        "If the key file beside the store (or patient_key_file) is the one that STORE was filled with, remove this record: the "
        "next ingest writes it again. --repair does not, because it cannot tell."
    )

    key_id: str
