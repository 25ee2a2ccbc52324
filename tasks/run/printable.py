"""Text from elsewhere made fit for a terminal and a log: names of files, UIDs and messages may hold control characters.

An escape sequence in a file's name could retitle the terminal, move its cursor or hide lines; a bidirectional override reorders
what is read. Each such character is shown as Python writes it: `\\x1b`, `\\u202e`.
"""

import logging
import re
import sys
import traceback
from typing import Any

from storage.errors import UserError

# C0, DEL and C1; marks, overrides and isolates of direction; separators of lines and paragraphs; halves of surrogate pairs, which
# stand for bytes of a file name that are not UTF-8 and cannot be encoded.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_INDENT = "    "


def printable(text: object) -> str:
    """Text with every control character escaped, but for line ends and tabs: what is ours may have several lines."""
    return _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], str(text))


def one_line(text: object) -> str:
    """`printable`, and line ends and tabs escaped, too: a name that comes from elsewhere must not look like a line of ours."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def markup(text: object) -> str:
    """`printable` for rich, which would take square brackets for its markup."""
    from rich.markup import escape

    return escape(printable(text))


def traceback_text(error: BaseException) -> str:
    """An error's whole traceback with its causes, printable."""
    return printable("".join(traceback.format_exception(error)))


class PrintableRecord(logging.LogRecord):
    """A log record whose message and traceback are printable; a message's further lines are indented.

    A `UserError` is logged without its traceback where `short`: Prefect logs one for every flow that fails.
    """

    short = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        error = self.exc_info[1] if self.exc_info else None
        if self.short and isinstance(error, UserError):
            self.exc_info = None
        elif error is not None:
            self.exc_text = traceback_text(error).rstrip("\n")  # formatters take it as it is

    def getMessage(self) -> str:  # noqa: N802  # the name logging calls
        """The message with its arguments."""
        return printable(super().getMessage()).replace("\n", "\n" + _INDENT)


class ShortRecord(PrintableRecord):
    """One without tracebacks of users' errors."""

    short = True


def log_printable(form: str, *, short: bool) -> None:
    """Log to standard error, every logger's records made printable first.

    Args:
        form: of a line, see `logging.Formatter`.
        short: leave out tracebacks of users' errors.
    """
    logging.setLogRecordFactory(ShortRecord if short else PrintableRecord)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=form)
