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
    REMEDY: ClassVar[str] = "Remove it if you are sure of the key file; the next ingest writes it again."

    key_id: str
