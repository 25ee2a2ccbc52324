"""`prdit status`: what an installation is doing, and what needs a person. Imports wait until the command needs them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.console import Json, clear_errors, show_result

_PAGE = Path(".prdit") / "status.html"


def status(
    html: Annotated[bool, typer.Option("--html", help="Write a page, too; FILE or .prdit/status.html.")] = False,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="The page, with --html.")] = None,
    as_json: Json = False,
) -> None:
    """Show what needs a person, then services, runs, store, champion, inbox and disk. With everything down, too.

    The page has no scripts and loads nothing: it can be mailed, or served as a file.
    """
    with clear_errors():
        from flows.status import status as read_status
        from flows.status_page import page, text
        from storage.errors import ConfigError
        from storage.files import write_text_atomic

        if file is not None and not html:
            raise ConfigError(f"prdit status takes no argument without --html, got {file}.")
        value: dict[str, Any] = read_status()
        if html:
            place = file or _PAGE
            write_text_atomic(place, page(value))
            value["page"] = str(place)
        show_result(value, as_json, lambda: text(value))
