"""Messages through a real SMTP server with STARTTLS and login, and a real HTTP server; what fails is a warning and nothing more."""

import base64
import contextlib
import json
import logging
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.notify import EmailConfig, NotifyConfig, WebhookConfig, notify

PASSWORD = "correct-horse-battery"  # what must not be in any log


class SmtpServer(socketserver.ThreadingTCPServer):
    """Enough of RFC 5321, 3207 and 4954 for a client of the standard library: EHLO, STARTTLS, AUTH PLAIN, MAIL, RCPT, DATA."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, certificate: Path, key: Path, password: str = PASSWORD) -> None:
        super().__init__(("127.0.0.1", 0), SmtpSession)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(certificate, key)
        self.password = password
        self.messages: list[tuple[bool, str, list[str], Message]] = []  # encrypted, user, to, message
        self.refused = ""

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class SmtpSession(socketserver.StreamRequestHandler):
    server: SmtpServer

    def handle(self) -> None:
        user, encrypted, to = "", False, list[str]()
        self._say("220 test ESMTP")
        while line := self.rfile.readline().decode().strip():
            verb, _, rest = line.partition(" ")
            match verb.upper():
                case "EHLO":
                    self._say("250-test", "250-AUTH PLAIN" if encrypted else "250-STARTTLS", "250 OK")
                case "STARTTLS":
                    self._say("220 go")
                    self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
                    self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)  # type: ignore[assignment]
                    encrypted = True
                case "AUTH":
                    _, name, given = base64.b64decode(rest.split()[1]).decode().split("\0")
                    good = given == self.server.password
                    user = name if good else ""
                    self._say("235 welcome" if good else f"535 not {given}")  # a server that echoes the password
                case "RCPT":
                    refused = self.server.refused and self.server.refused in rest
                    to += [] if refused else [rest]
                    self._say("550 nobody" if refused else "250 OK")
                case "DATA":
                    self._say("354 go")
                    content = b""
                    while (part := self.rfile.readline()) != b".\r\n":
                        content += part
                    self.server.messages.append((encrypted, user, to, message_from_bytes(content)))
                    self._say("250 taken")
                case "QUIT":
                    self._say("221 bye")
                    return
                case _:
                    self._say("250 OK")

    def _say(self, *lines: str) -> None:
        self.wfile.write("".join(f"{line}\r\n" for line in lines).encode())


@contextlib.contextmanager
def served(server: Any) -> Iterator[Any]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext"
    subprocess.run(
        ["openssl", *words.split(), "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture
def smtp(certificate: tuple[Path, Path]) -> Iterator[SmtpServer]:
    with served(SmtpServer(*certificate)) as server:
        yield server


def email(server: SmtpServer, certificate: tuple[Path, Path], **changes: Any) -> NotifyConfig:
    settings: dict[str, Any] = {
        "host": "localhost",
        "port": server.port,
        "ca_file": str(certificate[0]),
        "sender": "prdit@lab.example",
        "to": ["one@lab.example", "two@lab.example"],
        "user": "prdit",
    }
    return NotifyConfig(email=EmailConfig(**settings | changes))


@pytest.fixture
def hook() -> Iterator[Any]:
    """A server that keeps what is posted; paths name the status it answers with, `/hang` none at all."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            server.received.append((self.path, self.headers["Content-Type"], json.loads(content)))  # type: ignore[attr-defined]
            if self.path == "/hang":
                released.wait(20)
                return
            self.send_response(int(self.path.strip("/").partition("/")[0] or 200))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    released = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.received = []  # type: ignore[attr-defined]
    with served(server):
        yield server
        released.set()


def test_an_email_is_sent_encrypted_after_login(
    smtp: SmtpServer,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PRDIT_SMTP_PASSWORD", f"{PASSWORD}\n")
    caplog.set_level(logging.DEBUG)
    notify(
        email(smtp, certificate),
        "failure",
        "maintenance failed\nBcc: x@y",
        "Größe: 3 volumes are damaged.\nprdit status",
    )
    [(encrypted, user, to, message)] = smtp.messages
    assert (encrypted, user) == (True, "prdit")
    assert to == ["TO:<one@lab.example>", "TO:<two@lab.example>"]
    assert message["Subject"] == "[prdit] maintenance failed Bcc: x@y"
    assert message["From"] == "prdit@lab.example"
    assert message["X-Prdit-Severity"] == "failure"
    content = message.get_payload(decode=True)
    assert isinstance(content, bytes)
    assert content.decode().splitlines() == ["Größe: 3 volumes are damaged.", "prdit status"]
    [record] = [record for record in caplog.records if record.name == "prdit.notify"]
    assert record.levelname == "ERROR"
    assert PASSWORD not in caplog.text


def test_the_password_may_be_in_a_file(
    smtp: SmtpServer, certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRDIT_SMTP_PASSWORD", "wrong")
    (tmp_path / "password").write_text(PASSWORD + "\n")
    notify(email(smtp, certificate, password_file=str(tmp_path / "password")), "attention", "held", "Batch 3 is held.")
    assert [user for _, user, _, _ in smtp.messages] == ["prdit"]


def test_a_wrong_password_is_a_warning_without_the_password(
    smtp: SmtpServer,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PRDIT_SMTP_PASSWORD", "guessed-secret")
    notify(email(smtp, certificate), "failure", "subject", "text")
    assert smtp.messages == []
    assert "the message 'subject' was not sent by e-mail: SMTPAuthenticationError 535" in caplog.text
    assert "guessed-secret" not in caplog.text


def test_a_missing_password_says_where_it_was_looked_for(
    smtp: SmtpServer, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("PRDIT_SMTP_PASSWORD", raising=False)
    notify(email(smtp, certificate), "failure", "subject", "text")
    assert "the environment variable PRDIT_SMTP_PASSWORD is empty or not set" in caplog.text
    assert smtp.messages == []


def test_a_certificate_of_nobody_known_ends_the_connection_before_anything_is_sent(
    smtp: SmtpServer, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PRDIT_SMTP_PASSWORD", PASSWORD)
    notify(email(smtp, certificate, ca_file=None), "failure", "subject", "text")
    assert smtp.messages == []
    assert "was not sent by e-mail: SSLCertVerificationError" in caplog.text


def test_an_address_that_is_refused_is_said_and_the_other_gets_the_message(
    smtp: SmtpServer, certificate: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    smtp.refused = "two@"
    notify(email(smtp, certificate, security="starttls", user=None), "failure", "subject", "text")
    [(_, user, to, _)] = smtp.messages
    assert (user, to) == ("", ["TO:<one@lab.example>"])
    assert "was not sent by e-mail: 1 of 2 addresses were refused" in caplog.text


def test_a_webhook_gets_a_json_object_with_text(hook: Any) -> None:
    config = NotifyConfig(webhook=WebhookConfig(url=f"http://127.0.0.1:{hook.server_port}/200"))
    notify(config, "attention", "batch 3 is held", "prdit inbox ls")
    body = {
        "text": "prdit, attention: batch 3 is held\nprdit inbox ls",
        "severity": "attention",
        "subject": "batch 3 is held",
    }
    assert hook.received == [("/200", "application/json", body)]


@pytest.mark.parametrize("how", ["url", "url_variable", "url_file"])
def test_a_webhook_that_fails_is_a_warning_without_its_address(
    how: str, hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://127.0.0.1:{hook.server_port}/500/T00-secret"
    monkeypatch.setenv("HOOK_URL", url)
    (tmp_path / "url").write_text(url)
    given = {"url": url, "url_variable": "HOOK_URL", "url_file": str(tmp_path / "url")}[how]
    notify(NotifyConfig(webhook=WebhookConfig(**{how: given})), "failure", "subject", "text")
    assert len(hook.received) == 1
    assert "the message 'subject' was not sent by webhook: HTTPError 500" in caplog.text
    assert "T00-secret" not in caplog.text


def test_servers_that_hang_or_are_not_there_end_in_a_warning(
    hook: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flows.notify._TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never greets
        away = EmailConfig(host="127.0.0.1", port=silent.getsockname()[1], sender="a@b", to=("c@d",))
        hanging = WebhookConfig(url=f"http://127.0.0.1:{hook.server_port}/hang")
        notify(NotifyConfig(email=away, webhook=hanging), "failure", "subject", "text")
        port = silent.getsockname()[1]
    gone = WebhookConfig(url=f"http://127.0.0.1:{port}/secret")
    notify(NotifyConfig(email=away, webhook=gone), "failure", "second", "text")
    assert "'subject' was not sent by e-mail: SMTPServerDisconnected" in caplog.text
    assert "'subject' was not sent by webhook: TimeoutError" in caplog.text
    assert "'second' was not sent by e-mail: ConnectionRefusedError" in caplog.text
    assert "'second' was not sent by webhook: URLError (ConnectionRefusedError)" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("least", "sent"),
    [("info", ["info", "attention", "failure"]), ("attention", ["attention", "failure"]), ("failure", ["failure"])],
)
def test_what_is_less_severe_is_only_logged(
    least: Any, sent: list[str], hook: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = NotifyConfig(least=least, webhook=WebhookConfig(url=f"http://127.0.0.1:{hook.server_port}/200"))
    for severity in ("info", "attention", "failure"):
        notify(config, severity, f"the {severity}", "text")  # type: ignore[arg-type]
    assert [body["severity"] for _, _, body in hook.received] == sent
    assert [record.levelname for record in caplog.records if record.name == "prdit.notify"] == [
        "INFO",
        "WARNING",
        "ERROR",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"email": {"host": "h", "sender": "a@b", "to": []}}, "at least 1 item"),
        ({"email": {"host": "h", "sender": "a@b", "to": ["c@d"], "user": "u", "security": "none"}}, "in the clear"),
        ({"email": {"host": "h", "sender": "a@b", "to": ["c@d"], "password": "p"}}, "Extra inputs"),
        ({"webhook": {}}, "give one of url, url_variable and url_file"),
        ({"webhook": {"url": "ftp://x"}}, "pattern"),
        ({"least": "nothing"}, "'info', 'attention' or 'failure'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NotifyConfig.model_validate(settings)
