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
