"""What passes the login before MLflow's application."""

import asyncio
import base64
from typing import Any

import pytest

from flows.mlflow_login import RequireLogin, create_app


async def inner(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


def answer(path: str = "/api", method: str = "POST", kind: str = "http", *headers: tuple[bytes, bytes]) -> Any:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {}

    scope = {"type": kind, "path": path, "method": method, "headers": list(headers)}
    asyncio.run(RequireLogin(inner, "me:pass-word")(scope, receive, send))
    return sent[0]


def basic(text: str, kind: str = "Basic") -> tuple[bytes, bytes]:
    return (b"authorization", f"{kind} {base64.b64encode(text.encode()).decode()}".encode())


def test_only_the_right_login_passes() -> None:
    assert answer("/api", "POST", "http", basic("me:pass-word"))["status"] == 200
    assert answer("/api", "POST", "http", basic("me:pass-word", "basic"))["status"] == 200
    for headers in (
        (),
        (basic("me:pass-wore"),),
        (basic("me:pass-word "),),
        (basic(""),),
        (basic("me:pass-word", "Bearer"),),
        ((b"authorization", b"Basic"),),
        ((b"authorization", b"Basic \xff\xfe"),),
        (basic("me:pass-word"), basic("me:wrong-word")),
    ):
        first = answer("/api", "POST", "http", *headers)
        assert first["status"] == 401
        assert dict(first["headers"])[b"www-authenticate"].startswith(b"Basic ")


def test_only_the_health_page_is_open() -> None:
    assert answer("/health", "GET")["status"] == 200
    for path, method in (
        ("/health", "POST"),
        ("/health/", "GET"),
        ("/healthy", "GET"),
        ("/x/health", "GET"),
        ("//health", "GET"),
    ):
        assert answer(path, method)["status"] == 401


def test_websockets_are_closed_and_the_servers_own_messages_pass() -> None:
    assert answer("/ws", "GET", "websocket", basic("me:pass-word"))["type"] == "websocket.close"
    assert answer("", "", "lifespan")["status"] == 200  # whatever the application answers


def test_there_is_no_application_without_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRDIT_AUTH", raising=False)
    with pytest.raises(RuntimeError, match="PRDIT_AUTH is not set"):
        create_app()
