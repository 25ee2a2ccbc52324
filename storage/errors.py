"""The errors storage raises. Each also subclasses the builtin a caller would expect."""


class StorageError(Exception):
    """Base of every error storage raises on purpose."""


class SourceError(StorageError, ValueError):
    """A source of scans cannot be used at all (missing, empty, no CT in it)."""


class UnusableSeriesError(StorageError, ValueError):
    """One series cannot become a volume.

    Attributes:
        reason: reason code from `storage.verdicts.REASONS`.
        file: relative path that the message names, which must not leave the machine; None where it names none.
    """

    def __init__(self, reason: str, message: str, file: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.file = file


class StoreFormatError(StorageError, ValueError):
    """A volume store has another format, grid or recipe than the caller asked for."""


class MissingArtifactError(StorageError, FileNotFoundError):
    """A reference points to something that does not exist."""


class DamagedArtifactError(StorageError, OSError):
    """Bytes on disk are not the bytes that were committed."""
