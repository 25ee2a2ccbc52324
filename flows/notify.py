"""Messages to people: log, e-mail, webhook. A message that cannot be sent is logged; it never ends what it reports on."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Severity = Literal["info", "attention", "failure"]  # attention: something waits for a person


class NotifyConfig(BaseModel):
    """Where messages go besides the log."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def notify(config: NotifyConfig, severity: Severity, subject: str, text: str) -> None:
    """Send a message; no names of patients or files in it.

    Args:
        config: of the site.
        severity: of it.
        subject: one line.
        text: a few sentences: what happened, and the command or page to go to.
    """
    raise NotImplementedError
