"""The errors prdit raises on purpose. Each also subclasses the builtin a caller would expect.

The command line prints a `UserError` as one message; anything else is a fault of ours and keeps its traceback.
"""


class UserError(Exception):
    """Base of every error whose message tells the user what to do."""


class InputError(UserError, ValueError):
    """What was asked for cannot be done with what was given."""


class StorageError(UserError):
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

    def __reduce__(self) -> tuple[type["UnusableSeriesError"], tuple[str, str, str | None]]:
        return type(self), (self.reason, str(self), self.file)  # it may come from a worker process


class StoreFormatError(StorageError, ValueError):
    """A volume store has another format, grid or recipe than the caller asked for."""


class VersionError(StorageError, ValueError):
    """A file was written in a format version that this prdit does not read."""


class MissingArtifactError(StorageError, FileNotFoundError):
    """A reference points to something that does not exist."""


class DamagedArtifactError(StorageError, OSError):
    """Bytes on disk are not the bytes that were committed."""


class LockedError(StorageError, TimeoutError):
    """Another process works on the same folder or file."""


class UnwritableError(StorageError, OSError):
    """A file cannot be written: the disk is full, the file system read-only, or access denied."""
