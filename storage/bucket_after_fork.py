"""Reading objects in a forked process: the threads of obstore do not survive a fork, and its requests there would wait for ever.

Loaders of training volumes fork. They read whole objects; nothing else is offered.
"""

import os
from datetime import datetime
from typing import Any, TypedDict

_TRIES = 8
_TIMEOUT_S = 120


def unsigned() -> bool:
    """Whether requests are not signed, as for a public bucket."""
    return os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true")


class Meta(TypedDict):
    """What is known of an object."""

    size: int
    last_modified: datetime


class Found:
    """An object that was fetched."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def bytes(self) -> "bytes":
        """Its content."""
        return self._content


class ReadingClient:
    """Requests of a forked process, with the names and the errors of obstore's client.

    Args:
        bucket: its name.
    """

    def __init__(self, bucket: str) -> None:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        config = Config(
            connect_timeout=_TIMEOUT_S,
            read_timeout=_TIMEOUT_S,
            retries={"max_attempts": _TRIES, "mode": "standard"},
            signature_version=UNSIGNED if unsigned() else None,
        )
        self._bucket = bucket
        self._client: Any = boto3.Session().client("s3", config=config)

    def get(self, key: str) -> Found:
        """Fetch an object. Raises: obstore's errors."""
        return Found(self._asked("get_object", key, lambda answer: answer["Body"].read()))

    def head(self, key: str) -> Meta:
        """Size and last change of an object. Raises: obstore's errors."""
        found: Meta = self._asked(
            "head_object", key, lambda answer: Meta(size=answer["ContentLength"], last_modified=answer["LastModified"])
        )
        return found

    def _asked(self, request: str, key: str, taken: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError
        from obstore.exceptions import GenericError, NotFoundError, PermissionDeniedError

        try:
            return taken(getattr(self._client, request)(Bucket=self._bucket, Key=key))
        except ClientError as error:
            status, code = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
            kind = {404: NotFoundError, 401: PermissionDeniedError, 403: PermissionDeniedError}.get(
                status, GenericError
            )
            raise kind(f"<Code>{code}</Code>") from None
        except BotoCoreError as error:
            raise GenericError(f"error sending request ({type(error).__name__})") from None
