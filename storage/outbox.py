"""What is to be recorded of runs on a tracking server: durable on disk first, one folder per run.

`records.jsonl` of a run holds what was recorded, in order; its first line creates the run and its last one ends it. A record is
durable when `append` returns. `sent.json` says how far the server has it (`storage/outbox_sender.py` sends). A run that has ended
and was sent is removed. Nothing here knows a server.
"""

import json
import logging
import math
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from storage.errors import DamagedArtifactError, StorageError
from storage.files import (
    fsync_directory,
    fsync_tree,
    naming_path,
    remove_leftovers,
    temporary_path,
    write_json_atomic,
)
from storage.locks import locked
from storage.processes import process_ended, process_token

FORMAT = 1
_RECORDS, _SENT, _FILES, _REFUSED = "records.jsonl", "sent.json", "files", "refused.jsonl"
_CLOSE_LOCK = "close.lock"
_END_BYTES = 512  # a record that ends a run is shorter
_SILENT_S = 1800.0  # a process of another machine cannot be asked: it touches its runs' records while it lives
Record = dict[str, Any]
logger = logging.getLogger("prdit.tracking")


class ServerAwayError(Exception):
    """The server does not answer, or not now: the same request can be accepted later."""


class RefusedError(Exception):
    """The server answers and will never accept this request."""


class UploadError(Exception):
    """The server answers, but a file could not be stored; artifact stores raise whatever their clients raise."""


@dataclass(frozen=True)
class Sent:
    """How far the server has a run.

    Attributes:
        offset: bytes of the records that it has.
        uri: address of the server that has the run; empty before it was created.
        run_id: the run's id there.
        experiment_id: its experiment's id there.
        num_creations: requests to create it; after more than one the server may have made several.
    """

    offset: int = 0
    uri: str = ""
    run_id: str = ""
    experiment_id: str = ""
    num_creations: int = 0


_READER = TypeAdapter(Sent)


class Outbox:
    """The records of all runs of one working directory.

    Args:
        folder: may be missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._appending = threading.Lock()

    # ---- what a run's process writes ----------------------------------------------------------------------------------

    def create(self, record: Mapping[str, Any]) -> str:
        """A new run whose first record is given; returns its id, which sorts by time.

        Raises: UnwritableError: the disk is full, read-only, or access is denied.
        """
        run = f"{time.time_ns():020d}-{secrets.token_hex(8)}"
        first = {"op": "create", "format": FORMAT, "owner": process_token(), **record}
        with naming_path(self.folder / run):
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = temporary_path(self.folder / run)
            try:
                temporary.mkdir()
                (temporary / _RECORDS).write_bytes(_line(first))
                fsync_tree(temporary)
                temporary.rename(self.folder / run)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            fsync_directory(self.folder)
        return run

    def append(self, run: str, record: Mapping[str, Any]) -> None:
        """Add a record to a run, durably.

        Raises:
            UnwritableError: the disk is full, read-only, or access is denied; nothing was added.
            FileNotFoundError: the run has ended and was sent.
        """
        path = self.folder / run / _RECORDS
        with naming_path(path), self._appending:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
            try:
                before = os.fstat(descriptor).st_size
                try:
                    _write(descriptor, _line(record))
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, before)  # the next record must not continue half a line
                    raise
            finally:
                os.close(descriptor)

    def keep(self, run: str, path: Path) -> str:
        """Keep a file as it is now until it is sent; returns its name for a record.

        It is a second name of the same bytes where the file system has hard links, else a copy: artifacts are replaced or removed,
        never changed.

        Raises: UnwritableError, FileNotFoundError.
        """
        name = f"{secrets.token_hex(6)}/{path.name}"
        kept = self.folder / run / _FILES / name
        with naming_path(kept):
            kept.parent.mkdir(parents=True)
            try:
                os.link(path.resolve(), kept)
            except FileNotFoundError:
                raise
            except OSError:
                shutil.copyfile(path, kept)
            with kept.open("rb") as stream:
                os.fsync(stream.fileno())
            for folder in (kept.parent, kept.parent.parent, self.folder / run):
                fsync_directory(folder)
        return name

    def touch(self, run: str) -> None:
        """Show other machines that the run's process is alive."""
        os.utime(self.folder / run / _RECORDS)

    # ---- what the sender reads and writes -----------------------------------------------------------------------------

    def runs(self) -> list[str]:
        """All runs that are open or not sent, oldest first."""
        return sorted(path.parent.name for path in self.folder.glob(f"*/{_RECORDS}") if path.parent.name[0] != ".")

    def has(self, run: str) -> bool:
        """Whether a run is open or not sent."""
        return (self.folder / run / _RECORDS).is_file()

    def first(self, run: str) -> Record:
        """The record that creates a run."""
        return next(self.records(run, 0))[0]

    def records(self, run: str, offset: int) -> Iterator[tuple[Record, int]]:
        """The whole records of a run from an offset on, each with the offset behind it."""
        with (self.folder / run / _RECORDS).open("rb") as stream:
            stream.seek(offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    return  # still being written, or its process was killed
                offset += len(line)
                yield json.loads(line), offset

    def file(self, run: str, name: str) -> Path:
        """Where a kept file lies."""
        return self.folder / run / _FILES / name

    def drop(self, run: str, name: str) -> None:
        """Let a kept file go once it was sent."""
        shutil.rmtree(self.file(run, name).parent, ignore_errors=True)

    def sent(self, run: str) -> Sent:
        """How far the server has a run; nothing where the file is missing. Raises: DamagedArtifactError."""
        path = self.folder / run / _SENT
        try:
            return _READER.validate_json(path.read_bytes())
        except FileNotFoundError:
            return Sent()
        except ValueError as error:
            raise DamagedArtifactError(
                f"{path} is damaged: how far MLflow has this run is not known, and nothing more of it is sent. Its results are in "
                "the working folder; remove its folder."
            ) from error

    def save_sent(self, run: str, sent: Sent) -> None:
        """Note how far the server has a run."""
        write_json_atomic(self.folder / run / _SENT, asdict(sent))

    def is_sent(self, run: str) -> bool:
        """Whether the server has all that was recorded of a run."""
        try:
            return self.sent(run).offset >= (self.folder / run / _RECORDS).stat().st_size
        except FileNotFoundError:
            return True  # it had ended, and was sent and removed

    def is_closed(self, run: str) -> bool:
        """Whether the last record of a run ends it."""
        path = self.folder / run / _RECORDS
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _END_BYTES))
            lines = stream.read().splitlines(keepends=True)
        return bool(lines) and lines[-1].startswith(b'{"op": "end"') and lines[-1].endswith(b"\n")

    def remove(self, run: str) -> None:
        """Remove a run that has ended and was sent."""
        hidden = temporary_path(self.folder / run)
        (self.folder / run).rename(hidden)  # at once: a folder that is half removed would be sent again
        shutil.rmtree(hidden, ignore_errors=True)

    def set_aside(self, run: str, record: Record, reason: str) -> Path:
        """Keep a record that the server will never take where a person can find it; returns the file."""
        path = self.folder / _REFUSED
        with path.open("ab") as stream:
            stream.write(_line({"run": run, "reason": reason, "record": record}))
        return path

    # ---- runs whose process ended without a word ----------------------------------------------------------------------

    def close_abandoned(self) -> None:
        """End the runs whose process was killed as KILLED, with every point of the metrics files they followed.

        Raises: UnwritableError: the disk is full, read-only, or access is denied.
        """
        if not self.folder.is_dir():
            return
        with locked(self.folder / _CLOSE_LOCK):  # two processes that start at once
            remove_leftovers(self.folder)
            now = (self.folder / _CLOSE_LOCK).stat().st_mtime  # by the clock of the file system, as the records' times
            for run in self.runs():
                try:
                    self._close_abandoned(run, now)
                except FileNotFoundError:  # it was sent and removed meanwhile
                    continue
                except (ValueError, StopIteration, KeyError, StorageError) as error:
                    logger.warning("what was recorded in %s cannot be read or closed: %s", self.folder / run, error)

    def _close_abandoned(self, run: str, now: float) -> None:
        path = self.folder / run / _RECORDS
        touched, ended = path.stat().st_mtime, process_ended(self.first(run)["owner"])
        if self.is_closed(run) or not (ended or (ended is None and now - touched > _SILENT_S)):
            return
        followed: dict[tuple[str, str], int] = {}
        end = 0
        for record, end in self.records(run, 0):  # noqa: B007
            if "stream" in record:
                followed[record["stream"], record["prefix"]] = record["read"]
        os.truncate(path, end)
        time_ms = int(touched * 1000)
        for (stream, prefix), read in followed.items():
            points, end = whole_lines(Path(stream), read)
            self.append(run, points_record(points, prefix, time_ms) | {"stream": stream, "read": end})
        self.append(run, {"op": "end", "status": "KILLED", "time_ms": time_ms})
        logger.warning("a run whose process was killed (%s) is closed as KILLED", self.first(run)["owner"])


def points_record(points: list[dict[str, Any]], prefix: str, time_ms: int) -> Record:
    """The record of metric points `{"step": n, "time_ms": t, name: value, …}`, without the values that are not finite numbers.

    Args:
        points: the points.
        prefix: put before every name.
        time_ms: of the points that have no time.
    """
    kept = [
        {"time_ms": time_ms}
        | {name: value for name, value in point.items() if isinstance(value, int | float) and math.isfinite(value)}
        for point in points
    ]
    return {"op": "points", "prefix": prefix, "points": kept}


def whole_lines(path: Path, read: int) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of the whole lines of a growing file from an offset on, and the offset behind them.

    A line that is none is named in a warning and left out, and a file that cannot be read now is read later: whoever follows a
    training must not end it.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(read)
            data = stream.read()
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            logger.warning("%s cannot be read now: %s", path, error)
        return [], read
    whole = data[: data.rfind(b"\n") + 1]
    return points_of(whole, path), read + len(whole)


def points_of(lines: bytes, path: Path) -> list[dict[str, Any]]:
    """The points that whole lines of a file hold; a line that is none is named in a warning and left out."""
    found = []
    for line in lines.splitlines():
        try:
            point = json.loads(line)
        except ValueError:
            point = None
        if isinstance(point, dict) and "step" in point:
            found.append(point)
        else:
            logger.warning("%s has a line that is no point: %r", path, line[:80])
    return found


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, allow_nan=False) + "\n").encode()


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
