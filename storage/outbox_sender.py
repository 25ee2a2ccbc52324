"""Sends an outbox to its servers from a background thread: in order, again after a failure, never from two processes at once.

The process that holds the lock sends the runs of all processes, also of those that were killed. A server that does not answer is
asked again later; no caller waits for it.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from storage.errors import DamagedArtifactError, LockedError
from storage.locks import locked
from storage.outbox import FORMAT, Outbox, Record, RefusedError, Sent, ServerAwayError, UploadError

if TYPE_CHECKING:  # mlflow takes two seconds to import, which the thread does
    from storage.mlflow_server import Server

_INTERVAL_S = 5.0  # each request costs the server CPU time that the training on the same machine needs
_BACKOFF_S = (5.0, 10.0, 20.0, 30.0)
_POLL_S = 0.02
_TRIES = 2  # to store a file with a server that answers
_RETRY_S = 1.0
_STUCK_S = 10.0  # another process sends, and nothing arrives
_GROUP = 900  # points that go together: MLflow accepts 1000 metrics per request
_LOCK = "send.lock"
_Answer = TypeVar("_Answer")
_WEB = ("http://", "https://")
logger = logging.getLogger("prdit.tracking")


@dataclass
class _Address:
    """What is known of one address.

    Attributes:
        server: None before the first try.
        failed: what the last try met; empty while it answers.
        failures: tries since it last answered.
        not_before: when the next try is due.
        last_pass: pass of the last try.
        refused: why it can never be used; empty where it can.
    """

    server: "Server | None" = None
    failed: str = ""
    failures: int = 0
    not_before: float = 0.0
    last_pass: int = -1
    refused: str = ""


class Sender:
    """The one sender of an outbox in this process; get it with `sender_of`.

    Args:
        outbox: what to send.
    """

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self._addresses: dict[str, _Address] = {}
        self._calls: list[Callable[[], None]] = []  # what callers wait for that only the thread does
        self._mine: set[str] = set()
        self._ids: dict[str, str] = {}  # of runs that may have been sent and removed since
        self._unsendable: set[str] = set()
        self._current = ""
        self._wake = threading.Event()
        self._hurry = False
        self._passes = 0
        self._locked_out = False
        self._fault = ""
        threading.Thread(target=self._run, name="prdit-tracking", daemon=True).start()

    # ---- for callers --------------------------------------------------------------------------------------------------

    def contact(self, uri: str, experiment: Record, wait_s: float) -> str:
        """Ask an address for an experiment, once per process.

        Args:
            uri: the address.
            experiment: `experiment`, `experiment_tags`, `artifacts`.
            wait_s: how long to wait for the answer.
        Returns: why the address can never be used; empty where it can, also where no answer came.
        """
        self._current = uri
        known = self._addresses.get(uri)
        if known is None:
            done = threading.Event()

            def ask() -> None:
                try:
                    if server := self._server(uri, hurry=True):
                        self._answer(uri, lambda: _experiment(server, experiment))
                except RefusedError as error:
                    self._addresses[uri].refused = str(error)
                finally:
                    done.set()

            self._calls.append(ask)
            self._wake.set()
            if not done.wait(wait_s):
                return ""
        return self._addresses[uri].refused

    def added(self, run: str, *, now: bool, new: bool = False) -> None:
        """Say that a run has new records.

        Args:
            run: which.
            now: whether they go at once; else with the next ones, within seconds.
            new: whether this process has just created it.
        """
        if new:
            self._mine.add(run)
        if now:
            self._wake.set()

    def run_id(self, run: str, wait_s: float) -> str:
        """A run's id on the server; empty where it was not created within `wait_s`, or its server is known not to answer."""
        deadline = time.monotonic() + wait_s
        while True:
            found = self._ids.get(run) or self._sent(run).run_id
            if found:
                self._ids[run] = found
            if found or time.monotonic() >= deadline or self._is_away(run) or not self.outbox.has(run):
                return found
            time.sleep(_POLL_S)

    def experiment_id(self, uri: str, name: str) -> str:
        """The id of an experiment on a server that has answered; else empty."""
        address = self._addresses.get(uri)
        return address.server.experiment_id(name) if address and address.server else ""

    def flush(self, away_s: float, limit_s: float | None = None) -> int:
        """Wait until what this process recorded is sent.

        Args:
            away_s: how long to wait for a server that does not answer.
            limit_s: how long to wait at most; None: as long as records arrive.
        Returns: how many runs are not sent.
        """
        began = moved = time.monotonic()
        passes, before = self._passes, -1
        while True:
            left = [run for run in list(self._mine) if run not in self._unsendable and not self._is_sent(run)]
            if not left:
                return 0
            now, offsets = time.monotonic(), sum(self._sent(run).offset for run in left)
            if offsets != before:
                before, moved = offsets, now
            away = bool(self._fault) or all(self._is_away(run) for run in left)
            tried = self._passes > passes + 1  # one pass that began after this call
            if (away and (tried or now - began >= away_s)) or (limit_s is not None and now - began >= limit_s):
                return len(left)
            if self._locked_out and now - moved >= _STUCK_S:
                return len(left)
            self._hurry = True
            self._wake.set()
            time.sleep(_POLL_S)

    def _is_away(self, run: str) -> bool:
        with suppress(FileNotFoundError):
            address = self._addresses.get(self._sent(run).uri or self.outbox.first(run)["uri"])
            return bool(address and (address.failed or address.refused))
        return False

    def _sent(self, run: str) -> Sent:
        """How far the server has a run, as far as known; the thread says where that is damaged, and passes the run over."""
        try:
            return self.outbox.sent(run)
        except DamagedArtifactError:
            return Sent()

    def _is_sent(self, run: str) -> bool:
        with suppress(DamagedArtifactError):
            return self.outbox.is_sent(run)
        return False

    # ---- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wake.wait(_INTERVAL_S)
            self._wake.clear()
            hurry, self._hurry = self._hurry, False
            try:
                while self._calls:
                    self._calls.pop(0)()
                self._pass(hurry)
                self._fault = ""
            except (
                Exception
            ) as error:  # a full disk, a fault of ours: the thread goes on, or all that follows would stay here
                if str(error) != self._fault:
                    logger.warning(
                        "sending to MLflow failed; it is tried again", exc_info=not isinstance(error, OSError)
                    )
                    logger.warning("%s", error)
                self._fault = str(error) or type(error).__name__
                time.sleep(_RETRY_S)
            self._passes += 1

    def _pass(self, hurry: bool) -> None:
        """Send what every run has, as far as its server answers."""
        runs = self.outbox.runs()
        for run in self._mine.intersection(runs):
            with suppress(OSError):
                self.outbox.touch(run)
        if not runs:
            return
        try:
            with locked(self.outbox.folder / _LOCK, timeout_s=0):
                self._locked_out = False
                for run in runs:
                    if run in self._unsendable:
                        continue
                    try:
                        self._send(run, hurry)
                    except FileNotFoundError:  # removed by the process that sent before us
                        continue
                    except (RefusedError, DamagedArtifactError, ValueError, KeyError, StopIteration) as error:
                        self._unsendable.add(run)
                        logger.warning("%s cannot be sent to MLflow: %s", self.outbox.folder / run, error)
        except LockedError:
            self._locked_out = True

    def _send(self, run: str, hurry: bool) -> None:
        first, sent = self.outbox.first(run), self.outbox.sent(run)
        if first["format"] != FORMAT:
            raise ValueError(f"format {first['format']}, this prdit reads {FORMAT}. Start the prdit that wrote it")
        if self.outbox.is_sent(run):
            if self.outbox.is_closed(run):  # a process ended between the last record and this
                self._forget(run)
            return
        if self._waits_for(first["parent"]):
            return
        server = self._server_for(first, sent, hurry)
        if server is None:
            return
        for record, end in _together(self.outbox.records(run, sent.offset)):
            if record["op"] == "create":
                created = self._create(server, run, record, sent)
                if created is None:
                    return
                sent = created
            elif not self._deliver(server, run, record, sent):
                return
            sent = replace(sent, offset=end)
            self.outbox.save_sent(run, sent)
            for name in record.get("files", ()):
                self.outbox.drop(run, name)
            self._ids[run] = sent.run_id
            if record["op"] == "end":
                self._forget(run)

    def _forget(self, run: str) -> None:
        self._mine.discard(run)
        self.outbox.remove(run)

    def _waits_for(self, parent: str | None) -> bool:
        """Whether a run's parent is still to be created: clocks of two machines may have put it behind its child."""
        if not parent or parent in self._unsendable or not self.outbox.has(parent):
            return False
        return not self._sent(parent).run_id

    def _create(self, server: "Server", run: str, record: Record, sent: Sent) -> Sent | None:
        """Create a run on the server, or find the one of a try that got no answer; None where the server is away.

        Raises: RefusedError.
        """

        def create() -> Sent:
            experiment_id = _experiment(server, record)
            found = server.find_runs(experiment_id, run)
            tries = sent.num_creations
            if not found:
                tries += 1
                self.outbox.save_sent(run, replace(sent, num_creations=tries))
                found = [server.create_run(experiment_id, run, self._parent(server, experiment_id, record), record)]
            created = Sent(0, server.uri, found[0], experiment_id, tries)
            self.outbox.save_sent(run, created)
            server.set_params(found[0], record["params"])
            return created

        return self._answer(server.uri, create)

    def _parent(self, server: "Server", experiment_id: str, record: Record) -> str:
        parent = record["parent"]
        if not parent:
            return ""
        return self._sent(parent).run_id or next(iter(server.find_runs(experiment_id, parent)), "")

    def _deliver(self, server: "Server", run: str, record: Record, sent: Sent) -> bool:
        """Put a record on the server, or set it aside where it is refused; False where the server is away."""
        files = [self.outbox.file(run, name) for name in record.get("files", ())]

        def put() -> bool:
            if record["op"] == "end" and sent.num_creations > 1:  # one that got no answer may have been heard after all
                for other in server.find_runs(sent.experiment_id, run):
                    if other != sent.run_id:
                        server.delete_run(other)
            server.deliver(sent.experiment_id, sent.run_id, record, files)
            return True

        failure = ""
        for number in range(_TRIES):
            try:
                return self._answer(server.uri, put) is not None
            except RefusedError as error:
                if len(pieces := _by_name(record)) > 1:  # one name that MLflow does not take must not cost the others
                    return all(self._deliver(server, run, piece, sent) for piece in pieces)
                self._set_aside(run, record, str(error))
                return True
            except UploadError as error:
                failure = str(error)
                time.sleep(_RETRY_S if number + 1 < _TRIES else 0)
        with suppress(RefusedError):
            self._answer(server.uri, lambda: server.give_up(sent.experiment_id, sent.run_id, record))
        self._set_aside(run, record, failure)
        return True

    def _set_aside(self, run: str, record: Record, reason: str) -> None:
        path = self.outbox.set_aside(run, record, reason)
        what = "a file" if record.get("files") else f"a record ({record['op']})"
        logger.warning(
            "MLflow refuses %s of a run (%s). The run goes on, its results stay in the stage directory; the record is in %s",
            what,
            reason,
            path,
        )

    # ---- addresses ----------------------------------------------------------------------------------------------------

    def _server_for(self, first: Record, sent: Sent, hurry: bool) -> "Server | None":
        """The server that has the run or is to get it; None while it does not answer.

        A server that comes back at another address is recognised by its runs. A run that no server has goes to the one this
        process was given, where its own does not answer.
        """
        home = sent.uri or first["uri"]
        own = self._server(home, hurry)
        if own or self._current in ("", home):
            return own
        both = self._current.startswith(_WEB) and home.startswith(_WEB)
        if not both or (sent.num_creations and not sent.run_id):  # else its own server may have it and not have said so
            return None
        other = self._server(self._current, hurry)
        if other and sent.run_id and not self._answer(self._current, lambda: other.has_run(sent.run_id)):
            return None
        return other

    def _server(self, uri: str, hurry: bool) -> "Server | None":
        """A server that answers, as far as known; None where it does not, or the next try is not due.

        Raises: RefusedError: the address can never be used.
        """
        from storage.mlflow_server import Server

        address = self._addresses.setdefault(uri, _Address())
        if address.refused:
            raise RefusedError(address.refused)
        waits = time.monotonic() < address.not_before and not hurry
        if address.failed and (waits or address.last_pass == self._passes):
            return None
        if address.server is None:
            address.server = self._answer(uri, lambda: Server(uri))
        elif address.failed and not self._answer(uri, address.server.ping):
            return None
        return address.server

    def _answer(self, uri: str, call: Callable[[], _Answer]) -> _Answer | None:
        """Call a server and note whether it answers; None where it does not.

        Raises: RefusedError, UploadError.
        """
        address = self._addresses[uri]
        try:
            answer = call()
        except ServerAwayError as error:
            if not address.failed:
                logger.warning(
                    "MLflow at %s does not answer (%s). The run goes on; what it records is kept in %s and sent when the server "
                    "answers, or by prdit's next start. If the address is wrong, correct MLFLOW_TRACKING_URI",
                    uri,
                    error,
                    self.outbox.folder,
                )
            address.failed = str(error)
            address.not_before = time.monotonic() + _BACKOFF_S[min(address.failures, len(_BACKOFF_S) - 1)]
            address.failures += 1
            address.last_pass = self._passes
            return None
        if address.failed:
            logger.warning("MLflow at %s answers again", uri)
        address.failed, address.failures = "", 0
        return answer


def _experiment(server: "Server", record: Record) -> str:
    return server.experiment(record["experiment"], record["experiment_tags"], record["artifacts"])


def _together(records: Iterator[tuple[Record, int]]) -> Iterator[tuple[Record, int]]:
    """Neighbouring records of points of one kind as one, so that they go in few requests."""
    group: Record | None = None
    behind = 0
    for record, end in records:
        if group and record["op"] == group["op"] == "points" and _kind(record) == _kind(group) and _has_room(group):
            group["points"].extend(record["points"])
        else:
            if group:
                yield group, behind
            group = record
        behind = end
    if group:
        yield group, behind


def _by_name(record: Record) -> list[Record]:
    """A record of points as one per metric; empty for any other."""
    if record["op"] != "points":
        return []
    keys = ("step", "time_ms")
    names = {name: None for point in record["points"] for name in point if name not in keys}
    return [
        {
            **record,
            "points": [{key: point[key] for key in (*keys, name)} for point in record["points"] if name in point],
        }
        for name in names
    ]


def _has_room(group: Record) -> bool:
    return len(group["points"]) < _GROUP


def _kind(record: Record) -> Any:
    return record["prefix"], record.get("model")


@cache
def sender_of(folder: Path) -> Sender:
    """The sender of an outbox's folder in this process."""
    return Sender(Outbox(folder))
