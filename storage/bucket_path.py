"""Paths in an object store (S3): `s3://bucket/prefix` with the part of pathlib's interface that a store and a source need.

An object store has no folders, links, locks or renames, and every object appears whole. What pathlib offers beyond that is refused,
never done on the local disk: such a path has no file system path (`__fspath__`).

Credentials, region and endpoint come from the usual chain of AWS tools (environment, `~/.aws`, roles of the machine); none of them
stands in a message.
"""

import errno
import io
import logging
import os
import re
import secrets
import stat
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any, BinaryIO, Self, cast

from storage.bucket_after_fork import ReadingClient, unsigned
from storage.errors import ConfigError, UnreachableError, UnreadableError, UnwritableError

SCHEME = "s3:"
_TOKEN = "prdit-writer"  # metadata of an object: which call of `put_if_absent` made it
AT_ONCE = 16  # requests of one process for small objects: each waits for its answer
_PIECE = 1 << 20  # bytes of one request of a file that is read in parts
_RETRIES = 8  # of a request, with growing pauses, for at most two minutes
_TRIES = 4  # of a conditional put whose answer was lost; the client repeats the others itself
_REFUSED = re.compile(r"status code: 40[13]\b")  # of a listing, which has no error of its own for that
_forked = False  # whether this process was forked from one that may have used obstore
_AWAY = re.compile(r"error sending request|timed out|error decoding response|status code: 5\d\d\b")
logger = logging.getLogger("prdit.bucket")


class BucketPath(PosixPath):
    """One place in a bucket; `str` gives its URL. Made by `storage.places.as_place`."""

    def __str__(self) -> str:
        return "s3://" + "/".join(self.parts[1:])

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __fspath__(self) -> str:
        raise UnwritableError(
            f"{self} is in an object store, and this needs a folder of this machine. Give a local folder."
        )

    @property
    def bucket(self) -> str:
        """Its name."""
        return self.parts[1]

    @property
    def key(self) -> str:
        """Name of the object, without the bucket."""
        return "/".join(self.parts[2:])

    def resolve(self, strict: bool = False) -> Self:
        """Itself: there are no links."""
        return self

    def absolute(self) -> Self:
        """Itself: it is the same on every machine."""
        return self

    def is_absolute(self) -> bool:
        """True."""
        return True

    def expanduser(self) -> Self:
        """Itself."""
        return self

    def relative_to(self, *other: Any, **kwargs: Any) -> PurePosixPath:  # type: ignore[override]
        """What follows another path of the bucket; a plain relative path."""
        return PurePosixPath(*super().relative_to(*other, **kwargs).parts)

    # ---- what is there ---------------------------------------------------------------------------------------------

    def is_file(self) -> bool:
        """Whether there is an object of this name. Raises: UnreadableError."""
        try:
            self._head()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether there are objects below. Raises: UnreadableError."""
        return any(True for _ in self._listed(2))

    def exists(self) -> bool:
        """Whether there is an object of this name, or some below. Raises: UnreadableError."""
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        """False."""
        return False

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size and time of the last change of an object. Raises: FileNotFoundError; UnreadableError."""
        meta = self._head()
        return _stat(meta["size"], meta["last_modified"])

    def iterdir(self) -> Generator[Self, None, None]:
        """Objects directly below, and the names that others have in common. Raises: UnreadableError."""
        with self._asking():
            found = _client(self.bucket).list_with_delimiter(self.key or None)
        names = [each["path"] for each in found["objects"]] + list(found["common_prefixes"])
        yield from (self / name.rpartition("/")[2] for name in dict.fromkeys(names) if name != self.key)

    def walk_objects(self) -> Iterator[tuple[str, int, datetime]]:
        """Every object below: name relative to this path, bytes, last change. Raises: UnreadableError."""
        return self._listed()

    # ---- reading ---------------------------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        """Content of an object. Raises: FileNotFoundError; UnreadableError."""
        with self._asking():
            return bytes(_client(self.bucket).get(self.key).bytes())

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Content as text. Raises: as `read_bytes`."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def open(self, mode: str = "r", *args: Any, **kwargs: Any) -> BinaryIO:  # type: ignore[override]
        """An object for reading (`rb`): seekable, fetched in pieces of 1 MiB as far as it is read.

        Raises: FileNotFoundError; UnreadableError.
        """
        if mode != "rb":
            self.__fspath__()
        return cast("BinaryIO", io.BufferedReader(_Object(self), _PIECE))

    # ---- writing ---------------------------------------------------------------------------------------------------

    def put(self, content: bytes | Path) -> None:
        """Write an object, in place of one that is there. Raises: UnwritableError."""
        with self._asking(write=True):
            _client(self.bucket).put(self.key, content)

    def put_files(self, folder: Path, names: Sequence[str]) -> None:
        """Write files of a local folder below this path, in place of those there. Raises: UnwritableError."""
        for name in names:
            (self / name).put(folder / name)

    def put_if_absent(self, data: bytes) -> bool:
        """Write an object unless there is one; of several writers exactly one succeeds.

        A put whose answer was lost may have succeeded: the object then says whether it is this call's.

        Returns: whether this call wrote it.
        Raises: UnwritableError; ConfigError: the bucket ignores the condition.
        """
        from obstore.exceptions import AlreadyExistsError, GenericError, NotSupportedError, PreconditionError

        token = secrets.token_hex(16)
        client = _client(self.bucket)
        for left in reversed(range(_TRIES)):
            try:
                passing = (AlreadyExistsError, PreconditionError, NotSupportedError, GenericError)
                with self._asking(write=True, passing=passing):
                    client.put(self.key, data, attributes={_TOKEN: token}, mode="create", use_multipart=False)
                break
            except (AlreadyExistsError, PreconditionError):
                return self._written_by(token)
            except NotSupportedError:
                raise _no_conditions(self) from None
            except GenericError as error:
                logger.debug("%s: the conditional put is repeated: %s", self, type(error).__name__)
                if not left:
                    with self._asking(write=True):
                        raise
        _check_conditional(self, data, token)
        return True

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete an object. Raises: FileNotFoundError unless `missing_ok`; UnwritableError."""
        if not missing_ok:
            self._head()
        with self._asking(write=True, missing_ok=True):
            _client(self.bucket).delete(self.key)

    def delete_below(self) -> None:
        """Delete every object below. Raises: UnwritableError."""
        names = [f"{self.key}/{name}" for name, _, _ in self.walk_objects()]
        if names:
            with self._asking(write=True, missing_ok=True):
                _client(self.bucket).delete(names)

    def rename(self, target: Any) -> Self:
        """Give an object another name in its bucket: a copy, then a deletion. Raises: FileNotFoundError; UnwritableError."""
        new = type(self)(target)
        with self._asking():
            _client(self.bucket).copy(self.key, new.key)
        self.unlink(missing_ok=True)
        return new

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: there are no folders."""

    # ---- requests --------------------------------------------------------------------------------------------------

    def _head(self) -> Any:
        if not self.key:
            raise FileNotFoundError(f"{self} is a bucket, not an object")
        with self._asking():
            return _client(self.bucket).head(self.key)

    def _listed(self, at_once: int = 1000) -> Iterator[tuple[str, int, datetime]]:
        """(name relative to this path, bytes, last change) of every object below, given out `at_once` together.

        An object `prefix/`, which consoles and file browsers make as a folder, is not below it: the client calls it `prefix`.
        """
        prefix = f"{self.key}/" if self.key else ""
        pages = iter(_client(self.bucket).list(prefix or None, chunk_size=at_once))
        while True:
            with self._asking():
                page: Any = next(pages, [])
            if not page:
                return
            for each in page:
                if each["path"].startswith(prefix):
                    yield each["path"].removeprefix(prefix), each["size"], each["last_modified"]

    def _written_by(self, token: str) -> bool:
        """Whether the object is the one that this call of `put_if_absent` sent."""
        with self._asking():
            found = _client(self.bucket).get(self.key)
        return bool(found.attributes.get(_TOKEN) == token)

    @contextmanager
    def _asking(
        self, *, write: bool = False, missing_ok: bool = False, passing: tuple[type[Exception], ...] = ()
    ) -> Iterator[None]:
        """Turn refusals of a request into our errors; `passing` are raised as they are."""
        from obstore.exceptions import (
            BaseError,
            InvalidPathError,
            NotFoundError,
            PermissionDeniedError,
            UnauthenticatedError,
        )

        kind = UnwritableError if write else UnreadableError
        verb = "written" if write else "read"
        try:
            yield
        except passing:
            raise
        except (NotFoundError, FileNotFoundError):
            if write and not missing_ok:
                raise kind(f"{self}: there is no bucket {self.bucket}. Check its name, or make it.") from None
            if not missing_ok:
                raise FileNotFoundError(f"{self} does not exist") from None
        except InvalidPathError:
            raise kind(
                f"{self}: an object there, or this name, has a part that is empty ('//'), '.' or '..', or a control character, "
                "which cannot be asked for. Rename that object, or give a prefix without it."
            ) from None
        except BaseError as error:
            if "NoSuchBucket" in str(error):
                raise kind(f"{self}: there is no bucket {self.bucket}. Check its name, or make it.") from None
            if isinstance(error, PermissionDeniedError | UnauthenticatedError) or _REFUSED.search(str(error)):
                said = kind(
                    f"{self} cannot be {verb}: the object store refuses these credentials ({_code(error)}). Check AWS_PROFILE or "
                    "the AWS_* variables, and what the bucket's policy allows."
                )
            else:
                away = not write and _AWAY.search(str(error))
                said = (UnreachableError if away else kind)(
                    f"{self} cannot be {verb}: {_code(error)}, after several tries. Check the network and the object store "
                    "(AWS_ENDPOINT_URL, AWS_REGION), then run again: finished work is kept."
                )
            said.strerror = _code(error)  # for the verdict of a single file
            raise said from None


class _Object(io.RawIOBase):
    """An object as a stream: its start is asked for at once, other parts when they are read."""

    def __init__(self, path: BucketPath) -> None:
        from obstore.exceptions import GenericError

        super().__init__()
        self.path = path
        self._at = 0
        self._start = b""
        with path._asking():
            try:
                found = _client(path.bucket).get(path.key, options={"range": (0, _PIECE)})
                meta, self._start = found.meta, bytes(found.bytes())
            except GenericError as error:
                if "416 Range Not Satisfiable" not in str(error):  # said of an empty object
                    raise
                meta = _client(path.bucket).head(path.key)
        self._size, self._version = int(meta["size"]), meta["e_tag"]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"negative seek position {start + offset}")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        if self._at < len(self._start):
            piece: Any = self._start[self._at : self._at + length]
        else:
            piece = self._later_piece(length)
        buffer[: len(piece)] = memoryview(piece)
        self._at += len(piece)
        return len(piece)

    def _later_piece(self, length: int) -> Any:
        """A part that was not asked for at once. Raises: OSError: the object is another one now."""
        from obstore.exceptions import PreconditionError

        wanted = {"range": (self._at, self._at + length), "if_match": self._version}
        try:
            with self.path._asking(passing=(PreconditionError,)):
                return _client(self.path.bucket).get(self.path.key, options=wanted).bytes()
        except PreconditionError:
            raise OSError(errno.ESTALE, "it was replaced while it was read") from None


def remote_of(stream: Any) -> BucketPath | None:
    """The path that a stream was opened with, if that was of an object store."""
    raw = getattr(stream, "raw", None)
    return raw.path if isinstance(raw, _Object) else None


@cache
def _client(bucket: str) -> Any:
    """The client of a bucket, one per process. Raises: ConfigError: the extra or credentials are missing."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
        from obstore.store import S3Store
    except ImportError as error:
        raise ConfigError(
            f"s3://{bucket} needs packages that are not installed ({error.name}): pip install 'prdit[s3]'."
        ) from None
    if _forked:
        return ReadingClient(bucket)
    public = unsigned()
    try:
        session = boto3.Session()
        known = session.client("s3").meta
    except (BotoCoreError, ValueError) as error:  # such as an endpoint that is no URL
        raise ConfigError(f"s3://{bucket}: the settings for S3 cannot be used: {error}") from None
    try:
        provider = None if public else Boto3CredentialProvider(session)
    except BotoCoreError as error:
        raise ConfigError(f"s3://{bucket}: the credentials for S3 cannot be used: {error}") from None
    except ValueError:
        raise ConfigError(
            f"No credentials for s3://{bucket}. Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public "
            "bucket AWS_SKIP_SIGNATURE=true."
        ) from None
    endpoint = known.endpoint_url
    settings: Any = {"region": session.region_name or os.environ.get("AWS_REGION") or "us-east-1"}
    if not re.search(r"\.amazonaws\.com(\.cn)?$", endpoint):
        settings["endpoint"] = endpoint
    if public:
        settings["skip_signature"] = True
    return S3Store(
        bucket,
        config=settings,
        credential_provider=provider,
        client_options={"allow_http": endpoint.startswith("http://"), "timeout": timedelta(minutes=2)},
        retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(minutes=2)},
    )


def _note_fork() -> None:
    global _forked
    _forked = "obstore" in sys.modules
    _client.cache_clear()


os.register_at_fork(after_in_child=_note_fork)


@cache
def _conditional_buckets() -> set[str]:
    """Buckets that were seen to refuse a second put."""
    return set()


def _check_conditional(path: BucketPath, data: bytes, token: str) -> None:
    """Put what was just put once more, which must be refused; once per bucket and process.

    Raises: ConfigError: it was not. A store in such a bucket would lose what one of two writers commits.
    """
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    if path.bucket in _conditional_buckets():
        return
    with path._asking(write=True):
        try:
            _client(path.bucket).put(path.key, data, attributes={_TOKEN: token}, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            _conditional_buckets().add(path.bucket)
            return
    path.unlink(missing_ok=True)
    raise _no_conditions(path)


def _no_conditions(path: BucketPath) -> ConfigError:
    return ConfigError(
        f"The object store behind s3://{path.bucket} ignores the condition of a put (If-None-Match), which keeps concurrent "
        "writers apart. Use one that supports it (AWS S3, MinIO since 2024-11, Ceph since Squid), or a local folder."
    )


def _stat(size: int, changed: datetime) -> os.stat_result:
    """A file's status with what an object store knows."""
    moment = changed.timestamp()
    fields = (stat.S_IFREG | 0o444, 0, 0, 1, 0, 0, size, int(moment), int(moment), int(moment))
    return os.stat_result(fields, {"st_mtime": moment, "st_mtime_ns": int(moment * 1e9)})


def _code(error: Exception) -> str:
    """What an object store answered, in its words; without its headers and addresses."""
    text = str(error)
    for pattern in (r"<Code>(\w+)</Code>", r"status code: (\d{3} [A-Z][A-Za-z ]+)"):
        if found := re.search(pattern, text):
            return found[1].strip()
    return "no answer" if "error sending request" in text or "timed out" in text else type(error).__name__
