"""The errors prdit raises on purpose. Each also subclasses the builtin a caller would expect.

The command line prints a `UserError` as one message; anything else is a fault of ours and keeps its traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class UserError(Exception):
    """Base of every error whose message tells the user what to do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            type(self),
            self.args,
            self.__dict__ or None,
        )  # Dask's own way, from a worker, fails for some builtins beside this


class InputError(UserError, ValueError):
    """What was asked for cannot be done with what was given."""


class ConfigError(InputError):
    """A configuration that cannot be used; the message names the key or the line, what it got and what is allowed."""


class ComputationError(UserError, RuntimeError):
    """Arithmetic that came to nothing usable: losses or voxels that are not finite, steps skipped again and again."""


class OutOfMemoryError(UserError, MemoryError):
    """The work does not fit into the memory of its device; the message says what would."""


@contextmanager
def as_input_error(where: str = "") -> Iterator[None]:
    """Turn a ValueError into an `InputError` of the same message.

    For single calls that check what the user gave and raise ValueError on purpose, as `prdit_models` does. Around more than such
    a call it would hide the traceback of a fault.

    Args:
        where: put before the message, such as `recipe.local: `.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise InputError(f"{where}{error}") from error


class StorageError(UserError):
    """Base of every error storage raises on purpose."""


class SourceError(StorageError, ValueError):
    """A source of scans cannot be used at all (missing, empty, no CT in it)."""


class NoScansError(SourceError):
    """A source can be read, and has no CT in it."""


class NothingUsableError(SourceError):
    """A source has scans, but none became a volume, and the store has none either."""


class UnusableSeriesError(StorageError, ValueError):
    """One series cannot become a volume.

    Attributes:
        reason: reason code from `storage.verdicts.REASONS`.
        file: relative path that the message names, which must not leave the machine; None where it names none.
        single: a `storage.sources.single_slices.SingleSlice` where the series has one image that could be a slice.
    """

    def __init__(self, reason: str, message: str, file: str | None = None, single: object = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.file = file
        self.single = single

    def __reduce__(self) -> tuple[type["UnusableSeriesError"], tuple[str, str, str | None, object]]:
        return type(self), (self.reason, str(self), self.file, self.single)  # it may come from a worker process


class StoreFormatError(StorageError, ValueError):
    """A volume store has another format, grid or recipe than the caller asked for."""


class VersionError(StorageError, ValueError):
    """A file was written in a format version that this prdit does not read."""


class MissingArtifactError(StorageError, FileNotFoundError):
    """A reference points to something that does not exist."""


class ForgottenError(MissingArtifactError):
    """A snapshot listed volumes of a patient who was forgotten since: what it meant can no longer be worked on."""


class DamagedArtifactError(StorageError, OSError):
    """Bytes on disk are not the bytes that were committed."""


class NodeError(UserError, ConnectionError):
    """A DICOM node cannot be reached, refuses to talk, or does not store what it is sent."""


class LockedError(StorageError, TimeoutError):
    """Another process works on the same folder or file."""


class LeaseHeldError(LockedError):
    """Another launch of the same training still runs, or was not seen to end."""


class LeaseLostError(StorageError, RuntimeError):
    """This process belongs to a launch that another one has replaced: it may not write any more."""


class AlreadyExistsError(StorageError, FileExistsError):
    """Something else is where the result would go, and is not replaced."""


class UnreadableError(StorageError, OSError):
    """A file cannot be read now (access denied, disk error); it is not known to be damaged."""


class UnreachableError(UnreadableError):
    """An object store gave no answer, or only errors of its own, for as long as it was asked."""


class UnwritableError(StorageError, OSError):
    """A file cannot be written: the disk is full, the file system read-only, or access denied."""
