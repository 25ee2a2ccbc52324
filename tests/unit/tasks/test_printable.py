"""Control characters of names and messages never reach a terminal or a log."""

import io
import logging
from collections.abc import Iterator

import pytest
from rich.console import Console

from storage.errors import InputError
from tasks.run.printable import log_printable, markup, one_line, printable

NASTY = "a\x1b]0;title\x07\x9b2J\x7f\u202eb\u2066\u2028\udcff"
SHOWN = "a\\x1b]0;title\\x07\\x9b2J\\x7f\\u202eb\\u2066\\u2028\\udcff"


@pytest.mark.parametrize(
    "number", [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xD800]
)
def test_every_control_character_is_escaped(number: int) -> None:
    shown = one_line(chr(number))
    assert shown.isascii()
    assert shown.isprintable()
    assert shown == repr(chr(number))[1:-1]


def test_text_stays_and_lines_are_kept_where_they_are_ours() -> None:
    assert printable(f"Müller [x] 肺\n\t{NASTY}") == f"Müller [x] 肺\n\t{SHOWN}"
    assert one_line("a\nb\tc\rd") == "a\\nb\\tc\\rd"
    printable(NASTY).encode()  # halves of surrogate pairs could not be


def test_rich_shows_text_as_it_is() -> None:
    out = io.StringIO()
    Console(file=out, force_terminal=False, width=200).print(markup(f"[red]{NASTY}[/]"))
    assert out.getvalue() == f"[red]{SHOWN}[/]\n"


@pytest.fixture
def plain_logging() -> Iterator[None]:
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)


@pytest.mark.usefixtures("plain_logging")
@pytest.mark.parametrize("short", [True, False])
def test_users_errors_are_logged_short_on_the_command_line(short: bool) -> None:
    log_printable("%(message)s", short=short)
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    logger = logging.getLogger("of.a.library")
    logger.addHandler(handler)
    try:
        for error in (InputError("too few"), TypeError("1 + None")):
            try:
                raise error
            except (InputError, TypeError):
                logger.exception("the flow failed")
    finally:
        logger.removeHandler(handler)
    text = out.getvalue()
    assert text.count("the flow failed") == 2
    assert "TypeError: 1 + None" in text
    assert text.count("Traceback (most recent call last):") == (1 if short else 2)


@pytest.mark.usefixtures("plain_logging")
def test_every_loggers_records_are_printable() -> None:
    log_printable("%(message)s", short=False)
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))  # as a library's own
    logger = logging.getLogger("of.a.library")
    logger.addHandler(handler)
    try:
        logger.warning("%s skipped\nERROR forged", NASTY)
        try:
            raise ValueError(NASTY)
        except ValueError:
            logger.exception("failed")
    finally:
        logger.removeHandler(handler)
    lines = out.getvalue().splitlines()
    assert lines[:2] == [f"WARNING {SHOWN} skipped", "    ERROR forged"]
    assert lines[-1] == f"ValueError: {SHOWN}"
    assert "Traceback (most recent call last):" in lines
