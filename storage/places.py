"""Where something is: a folder of this machine, or a place in an object store."""

import re
from pathlib import Path

from storage.bucket_path import SCHEME, BucketPath
from storage.errors import ConfigError

_BUCKET = re.compile(r"[A-Za-z0-9._-]{3,255}")  # new ones have small letters and at most 63; old servers allowed more


def as_place(text: str | Path) -> Path:
    """The path of a folder or file, `s3://bucket/prefix` included.

    Raises: ConfigError: another scheme, or a URL that is no place in a bucket.
    """
    if isinstance(text, BucketPath):
        return text
    words = str(text)
    if words.strip().lower().startswith(SCHEME):  # one slash, too: `Path` drops the other
        found = BucketPath(words)
        name = found.parts[1] if words.startswith(f"{SCHEME}/") and len(found.parts) > 1 else ""
        if not _BUCKET.fullmatch(name) or words.startswith(f"{SCHEME}///") or ".." in found.parts:
            shown = "An s3:// URL with '@'" if "@" in words else repr(words)  # what is before it may be a secret
            raise ConfigError(
                f"{shown} is no place in a bucket: expected s3://BUCKET/PREFIX, with a bucket's name of 3 or more letters, digits, "
                "'.', '-' and '_', and no '..'. The server is AWS_ENDPOINT_URL_S3."
            )
        return found
    scheme, separator, _ = words.partition("://")
    if separator and scheme.isalnum():
        raise ConfigError(f"{words}: places are local folders or s3://BUCKET/PREFIX; {scheme}:// is not read.")
    return Path(text)


def as_folder(text: str | Path, what: str) -> Path:
    """The path of what must be on this machine; `Path` would make a folder called `s3:` of a URL.

    Args:
        text: as given.
        what: names it in the message, such as the key of a setting.
    Raises: ConfigError: it is in an object store, or another scheme.
    """
    found = as_place(text)
    if isinstance(found, BucketPath):
        raise ConfigError(f"{what} is {found}, in an object store: expected a folder of this machine.")
    return found
