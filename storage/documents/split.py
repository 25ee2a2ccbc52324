"""split.json: which volumes have which role."""

from typing import ClassVar

from storage.documents.document import Document


class Split(Document):
    """Roles of the volumes of a store, by patient.

    Attributes:
        roles: volume ids by role (`train`, `val`).
        patients: patient keys by role.
        notes: sentences about the split that a reader of results must know.
    """

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "split.json"
    WHAT: ClassVar[str] = "split"
    REMEDY: ClassVar[str] = "Split the store again."

    roles: dict[str, list[str]]
    patients: dict[str, list[str]]
    notes: list[str]

    def role(self, name: str) -> list[str]:
        """Sorted volume ids of a role; empty where the split has no such role."""
        return sorted(self.roles.get(name, []))

    @property
    def volume_ids(self) -> list[str]:
        """Sorted ids of the volumes in training and validation."""
        return sorted({*self.role("train"), *self.role("val")})
