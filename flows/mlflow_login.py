"""MLflow's server behind a login: the application that `mlflow server --app-name prdit-login` serves.

MLflow's own one (`basic-auth`) keeps users and permissions in a database of its own and ships with an extra; one setting for both
servers needs neither. Nothing but the health page is answered without user and password, WebSockets not at all.
"""

import base64
import binascii
import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

APP_NAME = "prdit-login"  # entry point in the group `mlflow.app`
_HEALTH = "/health"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


def create_app() -> Application:
    """MLflow's application behind the login of `PRDIT_AUTH`. Raises: RuntimeError: there is none."""
    login = os.environ.get("PRDIT_AUTH")
    if not login:
        raise RuntimeError(
            "PRDIT_AUTH is not set: MLflow would be open to everybody. Start it with `prdit serve mlflow`."
        )
    from mlflow.server.fastapi_app import app

    return RequireLogin(app, login)


class RequireLogin:
    """Passes on what carries the right `Authorization: Basic` header.

    Args:
        app: what is behind it.
        login: user:password.
    """

    def __init__(self, app: Application, login: str) -> None:
        self._app, self._login = app, login.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._may_pass(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [
                (b"content-type", b"text/plain"),
                (b"www-authenticate", b'Basic realm="MLflow", charset="UTF-8"'),
            ]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b"MLflow asks for user and password (PRDIT_AUTH).\n"})

    def _may_pass(self, scope: Message) -> bool:
        if scope["path"] == _HEALTH and scope["method"] in ("GET", "HEAD"):
            return True
        values = [value for key, value in scope["headers"] if key.lower() == b"authorization"]
        if len(values) != 1:
            return False
        kind, _, text = values[0].partition(b" ")
        try:
            given = base64.b64decode(text.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return kind.lower() == b"basic" and hmac.compare_digest(given, self._login)
