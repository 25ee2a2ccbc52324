"""What the command line does with errors: one message for what a user can correct, a file with the traceback for faults."""

import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import typer

from storage.errors import ConfigError, UserError
from storage.privacy import without_folder
from tasks.run.printable import printable, traceback_text

EXIT_USER_ERROR = 1
EXIT_BAD_USAGE = 2
EXIT_FAULT = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130  # 128 + SIGINT
ERRORS_DIRECTORY = Path(".prdit/errors")
_PACKAGES = ("prdit", "torch", "numpy", "pydantic", "prefect", "dask", "zarr", "pydicom", "mlflow", "typer")


@dataclass(frozen=True)
class CalledAs:
    """How the command line was called.

    Attributes:
        command: name of the command.
        arguments: all words after `prdit`.
        debug: whether whole tracebacks are shown.
    """

    command: str = "prdit"
    arguments: tuple[str, ...] = ()
    debug: bool = False


_called_as: ContextVar[CalledAs] = ContextVar("called_as")


@contextmanager
def clear_errors() -> Iterator[None]:
    """End a command with what its error deserves.

    A `UserError` becomes one message on stderr and exit 1, 2 for a `ConfigError`; Ctrl-C one line and exit 130. Anything else is a
    fault of prdit: its traceback is kept in a file, and the command ends with exit 70. With `--json`, message and exit code are one
    JSON object on stdout, too.
    """
    try:
        yield
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
        raise  # exit codes and usage errors are typer's, and so is a reader that has closed our output
    except KeyboardInterrupt as error:
        message = "interrupted; what is finished is kept"
        say_error(message, "yellow", prefix="")
        raise _ended(message, EXIT_INTERRUPTED) from error
    except UserError as error:
        _show_traceback(error)
        say_error(str(error))
        raise _ended(str(error), EXIT_BAD_USAGE if isinstance(error, ConfigError) else EXIT_USER_ERROR) from error
    except Exception as error:
        _show_traceback(error)
        message = _fault_message(error)
        say_error(message)
        raise _ended(message, EXIT_FAULT) from error


def _ended(message: str, code: int) -> typer.Exit:
    """The end of a command that has no result; with `--json` its JSON object is on stdout."""
    arguments = _called_as.get(CalledAs()).arguments
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--json" in own:
        sys.stdout.write(json_line({"error": printable(message), "exit_code": code}) + "\n")
    return typer.Exit(code)


def json_line(value: Any) -> str:
    """JSON on one line, in printable ASCII."""
    return json.dumps(value).replace("\x7f", "\\u007f")


def say_error(message: str, colour: str = "red", prefix: str = "error: ") -> None:
    """One message on stderr, printable."""
    typer.secho(printable(prefix + message), fg=colour, err=True)


def _show_traceback(error: BaseException) -> None:
    if _called_as.get(CalledAs()).debug:
        typer.echo(traceback_text(error), err=True, nl=False)


def _fault_message(error: Exception) -> str:
    """What went wrong, where the traceback is, and what to do with it."""
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, MemoryError):
        what = (
            f"the machine's memory is used up ({what}). Use smaller batches (batch_size) or fewer workers "
            "(runner.num_workers), or a machine with more; `prdit plan` shows what trainings need."
        )
    place = _write_report(error)
    if place is None:
        return f"{what}\nThis looks like a fault of prdit, and its traceback could not be written; --debug shows it."
    return (
        f"{what}\nThis looks like a fault of prdit. The traceback is in {place}; --debug shows it here. It may name files: read "
        "it, then send it with your report."
    )


def _write_report(error: Exception) -> Path | None:
    """Keep an error's traceback in a file that only its owner can read; None where no folder takes it."""
    called = _called_as.get(CalledAs())
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{called.command}.txt"
    attempts: tuple[Callable[[], tuple[int, Path]], ...] = (
        lambda: _new_file(ERRORS_DIRECTORY, name),
        lambda: _new_temporary_file(name),
    )
    for attempt in attempts:
        try:
            descriptor, path = attempt()
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(_report(error, called))
            return path
        except OSError:
            continue
    return None


def _new_file(directory: Path, name: str) -> tuple[int, Path]:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), path


def _new_temporary_file(name: str) -> tuple[int, Path]:
    descriptor, path = tempfile.mkstemp(prefix="prdit-", suffix=f"-{name}")  # mode 0600
    return descriptor, Path(path)


def _report(error: Exception, called: CalledAs) -> str:
    versions = ", ".join(f"{package} {_version(package)}" for package in _PACKAGES)
    text = printable(
        f"prdit {shlex.join(called.arguments)}\n"
        f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, Python {platform.python_version()}, {platform.platform()}\n"
        f"{versions}\n\n"
    ) + traceback_text(error)
    for argument in called.arguments:  # folders that were named may be those of patients
        folder = argument.rpartition("=")[2]
        with suppress(OSError, ValueError):
            if Path(folder).is_dir() and Path(folder).resolve() != Path.cwd():
                text = without_folder(text, folder)
    return text


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def without_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Arguments without `--debug`, and whether it was among them; what follows `--` is never an option."""
    own, end, rest = list(arguments), [], []
    if "--" in own:
        at = own.index("--")
        own, end, rest = own[:at], ["--"], own[at + 1 :]
    kept = [word for word in own if word != "--debug"]
    return [*kept, *end, *rest], len(kept) < len(own)


def called(arguments: Sequence[str], commands: Sequence[str]) -> list[str]:
    """Remember how the command line was called, for its errors; returns the arguments without `--debug`."""
    kept, debug = without_debug(arguments)
    command = next((word for word in kept if word in commands), "prdit")
    _called_as.set(CalledAs(command, tuple(arguments), debug))
    return kept
