"""A document with a history: one file per version, numbered; the highest number counts.

A new version is written *if its number is not taken*: of two writers who started from the same version one succeeds, and the other
starts again from the new one. Nothing is locked and nothing replaced, which an object store can do as well.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from storage.documents.document import Document
from storage.files import entries

D = TypeVar("D", bound=Document)


class Numbered(Generic[D]):
    """Versions of one document in one folder.

    Args:
        folder: made with the first version.
        kind: of the document.
    """

    def __init__(self, folder: Path, kind: type[D]) -> None:
        self.folder = folder
        self._kind = kind

    def numbers(self) -> list[int]:
        """The numbers taken, in order. Raises: UnreadableError."""
        return sorted(int(path.stem) for path in entries(self.folder, "*.json") if path.stem.isdigit())

    def path(self, number: int) -> Path:
        """File of one version."""
        return self.folder / f"{number:08d}.json"

    def read(self, number: int) -> D:
        """One version. Raises: StorageError: it is missing or damaged."""
        return self._kind.read(self.path(number))

    def newest(self) -> D | None:
        """The version that counts; None where there is none. Raises: StorageError: it is damaged."""
        numbers = self.numbers()
        return self.read(numbers[-1]) if numbers else None

    def update(self, change: Callable[[D | None], D]) -> D:
        """Write the next version; `change` is called again with a newer one where another writer was first.

        Args:
            change: the version that counts (None where there is none) -> the next one, or the same object to leave it.
        Returns: the version that counts afterwards.
        Raises: StorageError: the version that counts is damaged; UnwritableError.
        """
        while True:
            numbers = self.numbers()
            number = numbers[-1] if numbers else 0
            old = self.read(number) if numbers else None
            new = change(old)
            if new is old or new.put(self.path(number + 1)):
                return new
