"""What is logged and raised while a source is read names neither its folder nor what lies in it.

Prefect keeps logs and the messages of errors in its database, where others read them.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from storage.privacy import without_folder
from tasks.run.printable import traceback_text


class _WithoutFolder(logging.Filter):
    """Takes the paths of a folder out of every record."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; it is kept."""
        record.msg, record.args = without_folder(record.getMessage(), self._folder), None
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            record.exc_text = without_folder(record.exc_text or traceback_text(error).rstrip("\n"), self._folder)
        return True


@contextmanager
def without_paths(folder: str | None) -> Iterator[None]:
    """In this block no log record and no error that leaves it has the path of a folder; None: there is none to hide."""
    if folder is None:
        yield
        return
    hide, handlers = _WithoutFolder(folder), _handlers()
    for handler in handlers:
        handler.addFilter(hide)
    try:
        yield
    except BaseException as error:
        _hide(error, folder)
        raise
    finally:
        for handler in handlers:
            handler.removeFilter(hide)


def _handlers() -> set[logging.Handler]:
    """Of every logger, those to Prefect's server among them."""
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    return {handler for logger in (logging.root, *loggers) for handler in logger.handlers}


def _hide(error: BaseException | None, folder: str) -> None:
    """Take the folder's paths out of the messages of an error and of its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError):
            for name in ("filename", "filename2"):
                if isinstance(value := getattr(error, name, None), str):
                    setattr(error, name, without_folder(value, folder))
        error.args = tuple(without_folder(one, folder) if isinstance(one, str) else one for one in error.args)
        error = error.__cause__ or error.__context__
