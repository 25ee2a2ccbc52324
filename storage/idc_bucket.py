"""Public buckets of DICOM images on S3, read without an account: what is in them, and downloads that are checked."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from storage.errors import DamagedArtifactError, InputError, MissingArtifactError, UnreadableError
from storage.files import reading, replacing

AMAZON = "https://s3.us-east-1.amazonaws.com"  # where IDC's buckets are
RETRIES = 8  # with growing pauses: about half a minute without a network
_REGION = "us-east-1"
_CHUNK = 1 << 20
_MD5 = re.compile(r'^"?([0-9a-f]{32})"?$')


@dataclass(frozen=True)
class BucketObject:
    """One object.

    Attributes:
        key: its path in the bucket.
        size: bytes.
        md5: of its content, hex; None where the archive does not say it (objects that were uploaded in parts).
    """

    key: str
    size: int
    md5: str | None

    def differs(self, path: Path) -> str:
        """What a file has that this object has not, in words; empty where size and MD5 agree.

        Raises: FileNotFoundError; UnreadableError.
        """
        with reading(path):
            size = path.stat().st_size
            if size != self.size:
                return f"{size} bytes, expected {self.size}"
            if self.md5 is None:
                return ""
            digest = hashlib.md5(usedforsecurity=False)
            with path.open("rb") as stream:
                while piece := stream.read(_CHUNK):
                    digest.update(piece)
        return "" if digest.hexdigest() == self.md5 else f"MD5 {digest.hexdigest()}, expected {self.md5}"


class PublicBucket:
    """One bucket, opened for reading.

    Args:
        name: of the bucket.
        endpoint: address of the server; what the environment says of S3 (AWS_…) is not used, it is about buckets of one's own.

    Raises: InputError: obstore is not installed, or the address is none.
    """

    def __init__(self, name: str, endpoint: str = AMAZON) -> None:
        try:
            self._obstore = import_module("obstore")
            self._errors = import_module("obstore.exceptions")
            make = import_module("obstore.store").S3Store
        except ImportError as error:
            raise InputError(
                f"Reading a bucket needs the package obstore, which cannot be imported ({error}): pip install 'prdit[idc]'."
            ) from error
        if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+/?", endpoint):  # the client ends with a panic of Rust
            raise InputError(
                f"{endpoint!r} is no address of an S3 server; expected one such as http://127.0.0.1:9000 (--endpoint)."
            )
        self.name, self.endpoint = name, endpoint
        self._store: Any = make(
            name,
            region=_REGION,
            endpoint=endpoint,
            aws_endpoint_url_s3=endpoint,  # else that of the environment comes first
            virtual_hosted_style_request=False,
            skip_signature=True,
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "connect_timeout": "10s",
                "read_timeout": "60s",
                "timeout": "1h",
            },
            retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(minutes=3)},
        )

    def objects(self, prefix: str) -> list[BucketObject]:
        """The objects below a prefix, sorted by key; none where there is no such prefix.

        Raises: MissingArtifactError: no such bucket; UnreadableError: access is denied, or the server cannot be reached.
        """
        with self._explaining(f"s3://{self.name}/{prefix}/"):
            listed = self._obstore.list(self._store, f"{prefix}/").collect()
        found = [BucketObject(each["path"], each["size"], _md5(each["e_tag"])) for each in listed]
        return sorted(found, key=lambda each: each.key)

    def download(self, item: BucketObject, path: Path) -> None:
        """Write an object's content to a file, once its size and MD5 are those of the archive.

        Raises:
            DamagedArtifactError: they are not, twice.
            MissingArtifactError, UnreadableError: as `objects`.
            UnwritableError: the disk is full, read-only, or access is denied.
        """
        try:
            self._download(item, path)
        except DamagedArtifactError:
            self._download(item, path)  # it may have been changed on the way

    def _download(self, item: BucketObject, path: Path) -> None:
        with replacing(path) as temporary:
            with temporary.open("wb") as stream:
                for piece in self._pieces(item.key):
                    stream.write(piece)
            if difference := item.differs(temporary):
                raise DamagedArtifactError(
                    f"s3://{self.name}/{item.key} came with {difference}: it was changed on the way or in the archive. Run the "
                    "same command again; if it stays so, report it to IDC (https://discourse.canceridc.dev)."
                )

    def _pieces(self, key: str) -> Iterator[bytes]:
        with self._explaining(f"s3://{self.name}/{key}"):
            yield from self._obstore.get(self._store, key).stream(min_chunk_size=_CHUNK)

    @contextmanager
    def _explaining(self, what: str) -> Iterator[None]:
        """Turn the library's errors into ours, which say what to do."""
        errors = self._errors
        try:
            yield
        except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
            raise UnreadableError(
                f"{self.endpoint} refused access to {what}, expected a public bucket: a proxy or firewall may be in the way, or "
                "the series is not public any more."
            ) from error
        except (FileNotFoundError, errors.BaseError) as error:
            cause = _cause(error)
            if isinstance(error, FileNotFoundError) or "404 Not Found" in cause:
                raise MissingArtifactError(
                    f"{what} is not at {self.endpoint}. Install the newest index (pip install -U idc-index-data) and fetch into "
                    "another folder."
                ) from error
            raise UnreadableError(
                f"{what} cannot be read from {self.endpoint} ({cause}): check the network and its proxy (HTTPS_PROXY), then run "
                "the same command again; it goes on where it was stopped."
            ) from error


def _md5(e_tag: str | None) -> str | None:
    match = _MD5.match(e_tag or "")
    return match[1] if match else None


def _cause(error: Exception) -> str:
    """The first line of an error of obstore; what follows is for debugging."""
    return " ".join(str(error).partition("\n")[0].split())[:300]
