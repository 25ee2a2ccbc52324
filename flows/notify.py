"""Messages to people: log, e-mail, webhook. A message that cannot be sent is logged; it never ends what it reports on."""

import json
import logging
import os
import smtplib
import ssl
import urllib.error
import urllib.request
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from http.client import HTTPException
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

Severity = Literal["info", "attention", "failure"]  # attention: something waits for a person

_LEVELS = {"info": logging.INFO, "attention": logging.WARNING, "failure": logging.ERROR}
_TIMEOUT_S = 10.0  # of each answer
logger = logging.getLogger("prdit.notify")


class MessageError(RuntimeError):
    """A message cannot be sent; the text names neither addresses nor secrets."""


class EmailConfig(BaseModel):
    """E-mail through an SMTP server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(..., min_length=1, description="SMTP server")
    port: int = Field(587, ge=1, le=65535, description="its port: 587 for starttls, 465 for tls, 25 for none")
    security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="encryption; with none, no password is sent"
    )
    ca_file: str | None = Field(None, min_length=1, description="certificate of the authority that signed the server's")
    sender: str = Field(
        ..., min_length=1, pattern=r"^[^\r\n]+@[^\r\n]+$", description="address that messages come from"
    )
    to: tuple[str, ...] = Field(..., min_length=1, description="addresses that messages go to")
    user: str | None = Field(None, min_length=1, description="name to log in with; null: no login")
    password_variable: str = Field(
        "PRDIT_SMTP_PASSWORD", min_length=1, description="environment variable of the services with the password"
    )
    password_file: str | None = Field(
        None, min_length=1, description="file with the password, instead of the environment variable"
    )

    @model_validator(mode="after")
    def _no_password_in_the_clear(self) -> "EmailConfig":
        if self.user is not None and self.security == "none":
            raise ValueError("a password would be sent in the clear: use security starttls or tls, or leave user out")
        return self


class WebhookConfig(BaseModel):
    """A JSON object by HTTP POST: `text` (what Slack, Mattermost and Teams-like services show), `severity`, `subject`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str | None = Field(
        None, pattern=r"^https?://", description="address; where it is a secret, use one of the others"
    )
    url_variable: str | None = Field(
        None, min_length=1, description="environment variable of the services with the address"
    )
    url_file: str | None = Field(None, min_length=1, description="file with the address")

    @model_validator(mode="after")
    def _one_address(self) -> "WebhookConfig":
        if sum(value is not None for value in (self.url, self.url_variable, self.url_file)) != 1:
            raise ValueError("give one of url, url_variable and url_file")
        return self


class NotifyConfig(BaseModel):
    """Where messages go besides the log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    least: Severity = Field("attention", description="what is sent: info (everything), attention, failure (the least)")
    email: EmailConfig | None = Field(None, description="e-mail; null: none")
    webhook: WebhookConfig | None = Field(None, description="JSON by HTTP POST; null: none")


def notify(config: NotifyConfig, severity: Severity, subject: str, text: str) -> None:
    """Send a message; no names of patients or files in it.

    The log always has it; e-mail and webhook where they are configured and the message is severe enough. Nothing is raised: what
    could not be sent is a warning in the log.

    Args:
        config: of the site.
        severity: of it.
        subject: one line.
        text: a few sentences: what happened, and the command or page to go to.
    """
    subject = " ".join(subject.split())
    logger.log(_LEVELS[severity], "%s: %s", subject, text)
    order = get_args(Severity)
    if order.index(severity) < order.index(config.least):
        return
    for way, send in (("e-mail", _email), ("webhook", _webhook)):
        try:
            send(config, severity, subject, text)
        except Exception as error:  # noqa: BLE001  # whatever it is, what is reported on goes on
            logger.warning("the message %r was not sent by %s: %s", subject, way, _what(error))


def _email(config: NotifyConfig, severity: Severity, subject: str, text: str) -> None:
    if (email := config.email) is None:
        return
    message = EmailMessage()
    message["From"], message["To"] = email.sender, ", ".join(email.to)
    message["Subject"] = f"[prdit] {subject}"
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain=email.sender.rpartition("@")[2])
    message["X-Prdit-Severity"] = severity
    message.set_content(text)
    context = ssl.create_default_context(cafile=email.ca_file)
    password = None
    if email.user is not None:
        password = _secret(email.password_file, None if email.password_file else email.password_variable)
    connection = (
        smtplib.SMTP_SSL(email.host, email.port, timeout=_TIMEOUT_S, context=context)
        if email.security == "tls"
        else smtplib.SMTP(email.host, email.port, timeout=_TIMEOUT_S)
    )
    with connection:
        if email.security == "starttls":
            connection.starttls(context=context)
        if email.user is not None and password is not None:
            connection.login(email.user, password)
        refused = connection.send_message(message)
    if refused:
        raise MessageError(f"{len(refused)} of {len(email.to)} addresses were refused")


def _webhook(config: NotifyConfig, severity: Severity, subject: str, text: str) -> None:
    if (webhook := config.webhook) is None:
        return
    url = webhook.url or _secret(webhook.url_file, webhook.url_variable)
    if urlsplit(url).scheme not in ("http", "https"):
        raise MessageError("its address begins with neither https:// nor http://")
    body = {"text": f"prdit, {severity}: {subject}\n{text}", "severity": severity, "subject": subject}
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        answer.read(1)


def _secret(file: str | None, variable: str | None) -> str:
    """What a file or an environment variable holds. Raises: MessageError: nothing."""
    if file is not None:
        try:
            text = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise MessageError(f"{file} cannot be read ({type(error).__name__})") from error
        where = file
    else:
        text, where = os.environ.get(variable or "", "").strip(), f"the environment variable {variable}"
    if not text:
        raise MessageError(
            f"{where} is empty or not set; the services have the environment that `prdit up` was called in"
        )
    return text


def _what(error: Exception) -> str:
    """The kind of an error and its number; its text may hold the address of a webhook or what an SMTP server echoes."""
    if isinstance(error, MessageError):
        return str(error)
    kind = type(error).__name__
    if isinstance(error, urllib.error.HTTPError):
        return f"{kind} {error.code}"
    if isinstance(error, smtplib.SMTPResponseException):
        return f"{kind} {error.smtp_code}"
    if isinstance(error, urllib.error.URLError):
        return f"{kind} ({type(error.reason).__name__})"
    if isinstance(error, OSError) and not isinstance(error, smtplib.SMTPException | HTTPException):
        return f"{kind} ({error.strerror or 'no answer in time'})"
    return kind
