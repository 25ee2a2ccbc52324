"""One writer per training: whoever launches takes the next number, and only processes that were given the highest may write.

The number is a fencing token. Processes of a launch can outlive it (its launcher was killed, a host was cut off, a process was
paused); when they come to write, a later launch has a higher number and they are refused. Check and write happen under one lock,
which `take` holds too, so a process that was paused between them is waited for. On a file system without locks a paused process can
still finish the one step that it had begun; `storage.locks` warns of it.

Records are in `lease/` of the folder. The highest number also stands in the lock's file: a network file system may show an old
listing of a folder for a minute, but asks its server when a file is opened. The heartbeat of launch 7 is the file `beat-7` of the
folder, touched by its launcher.
"""

import os
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from storage.documents.lease import Lease
from storage.errors import (
    DamagedArtifactError,
    LeaseHeldError,
    LeaseLostError,
    LockedError,
    MissingArtifactError,
    VersionError,
)
from storage.files import naming_path
from storage.locks import locked
from storage.numbered import Numbered
from storage.processes import HEARTBEAT, lives, machine, this_process

Guard = Callable[[], AbstractContextManager[None]]  # entered around what is written, such as a `guard` of one launch
_STALE_S = 60.0  # a launcher on another machine that was not heard of for so long has ended
_WAIT_S = 60.0  # for a process that is publishing or removing a state
_RECORDS, _LOCK = "lease", "lease.lock"
_threads: defaultdict[Path, threading.RLock] = defaultdict(
    threading.RLock
)  # of this process: they wait without a limit
_held: set[Path] = set()  # records of the launches of this process that go on


def take(folder: Path) -> int:
    """Become the one launch whose processes may write in a folder.

    Args:
        folder: scratch folder of the training, shared by its machines; made if missing.
    Returns: the number of this launch, above those of all earlier ones.
    Raises:
        LeaseHeldError: an earlier launch is alive; the message says which process, on which host, since when.
        UnwritableError: the record cannot be written.
    """
    leases = _leases(folder)
    with _locked(folder):
        while True:
            newest = _newest(folder)
            if newest:
                _refuse_living(folder, leases, newest)
            if own_lease(released=False).put(leases.path(newest + 1)):  # not, only where there are no locks
                _note(folder, newest + 1)
                _held.add(leases.path(newest + 1))
                return newest + 1


def release(folder: Path, token: int) -> None:
    """End a launch: from now on none of its processes may write. Nothing happens where it has been replaced already.

    Args:
        folder: as for `take`.
        token: what `take` returned.
    Raises: UnwritableError: the record cannot be written; the launch has ended for this process and once this process has.
    """
    leases = _leases(folder)
    _held.discard(leases.path(token))
    with _locked(folder):
        if _newest(folder) == token:
            own_lease(released=True).put(leases.path(token + 1))
            _note(folder, token + 1)


@contextmanager
def guard(folder: Path, token: int) -> Iterator[None]:
    """Make one change on disk, or be refused; nobody can take over within the block. Keep it short.

    Args:
        folder: as for `take`.
        token: of the launch that this process belongs to.
    Raises:
        LeaseLostError: the launch has ended, or another one has taken over.
        LockedError: another process is in such a block and does not leave it.
    """
    _refuse_replaced(folder, token)  # before the lock's file is made: a folder that was removed stays so
    with _locked(folder):
        _refuse_replaced(folder, token)
        yield


def _leases(folder: Path) -> Numbered[Lease]:
    return Numbered(folder / _RECORDS, Lease)


def _newest(folder: Path) -> int:
    """The number that counts; 0 where there is none."""
    noted = 0
    with suppress(FileNotFoundError, ValueError):  # not a number: a power failure came in between
        noted = int((folder / _RECORDS / _LOCK).read_bytes() or b"0")
    return max(noted, *_leases(folder).numbers(), 0)


def _note(folder: Path, number: int) -> None:
    path = folder / _RECORDS / _LOCK
    with naming_path(path), path.open("wb") as stream:
        stream.write(b"%d" % number)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with _threads[folder], ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / _RECORDS / _LOCK, timeout_s=_WAIT_S))
        except LockedError as error:
            raise LeaseHeldError(
                f"Another process of this training changes files in {folder} and did not finish within {_WAIT_S:.0f} s: it is "
                f"paused, or its disk hangs. End it (`fuser {folder / _RECORDS / _LOCK}` shows its number), then run again."
            ) from error
        yield


def _refuse_replaced(folder: Path, token: int) -> None:
    if (newest := _newest(folder)) != token:
        raise LeaseLostError(
            f"This process belongs to launch {token} of the training in {folder}, which has ended or was replaced "
            f"(the records there go to {newest}). It stops and writes nothing; the newest launch goes on."
        )


def _refuse_living(folder: Path, leases: Numbered[Lease], number: int) -> None:
    """Raise LeaseHeldError if the launch with a number is alive, or may be."""
    path = leases.path(number)
    try:
        lease = leases.read(number)
    except (MissingArtifactError, DamagedArtifactError, VersionError):
        who = f"a process that cannot be named, because {path} is missing, damaged or of another version of prdit"
    else:
        if lease.released:
            return
        who = f"process {lease.pid} on {lease.host}, since {lease.since}"
        if lease.machine == machine():
            ended = (lease.pid, lease.started) == this_process() and path not in _held
            if lives(lease.pid, lease.started) and not ended:
                raise LeaseHeldError(
                    f"Launch {number} of the training in {folder} runs: {who}. Wait for it, or end that process."
                )
            return
    silent = _silent_s(folder, path, number)
    if silent < _STALE_S:
        raise LeaseHeldError(
            f"Launch {number} of the training in {folder} gave a sign of life {silent:.0f} s ago: {who}. Wait for it, or end that "
            f"process; {_STALE_S:.0f} s after its last sign a new launch may begin."
        )


def _silent_s(folder: Path, record: Path, number: int) -> float:
    """Seconds since a launch was heard of, all by the clock of the file system: those of machines may differ."""
    times = []
    for path in (folder / _RECORDS / _LOCK, record, folder / f"{HEARTBEAT}-{number}"):
        with (
            suppress(FileNotFoundError),
            path.open("rb") as stream,
        ):  # a network file system asks its server when one opens
            times.append(os.fstat(stream.fileno()).st_mtime)
    now, *heard = times  # that of the lock is when we took it
    return max(0.0, now - max(heard, default=0.0))


def own_lease(*, released: bool) -> Lease:
    """A record of this process, as it is now."""
    pid, started = this_process()
    return Lease(
        host=socket.gethostname(),
        machine=machine(),
        pid=pid,
        started=started,
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        released=released,
    )
