"""Where something is: a folder of this machine, or a place in an object store."""

from pathlib import Path

from storage.bucket_path import SCHEME, BucketPath
from storage.errors import ConfigError


def as_place(text: str | Path) -> Path:
    """The path of a folder or file, `s3://bucket/prefix` included.

    Raises: ConfigError: another scheme, or a URL without a bucket.
    """
    if isinstance(text, BucketPath):
        return text
    words = str(text)
    if words.startswith(f"{SCHEME}/"):
        found = BucketPath(words)
        if len(found.parts) < 2:
            raise ConfigError(f"{words!r} names no bucket: expected s3://BUCKET/PREFIX.")
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
