"""A lock in an object store, which has no flock: numbered leases, each written if its number is not taken.

A holder on this machine that was killed is seen to have ended. One on another machine cannot be asked: the message names it, and
the object that a person deletes once it has ended.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from storage.bucket_path import BucketPath
from storage.documents.lease import Lease
from storage.errors import LockedError, MissingArtifactError
from storage.lease import own_lease
from storage.numbered import Numbered
from storage.processes import lives, machine

_POLL_S = 0.5


@contextmanager
def locked_in_bucket(place: BucketPath, *, timeout_s: float) -> Iterator[None]:
    """Hold a lock for one process; others wait.

    Args:
        place: of the leases.
        timeout_s: how long to wait for another holder.
    Raises:
        LockedError: another process still holds it, or may.
        UnreadableError, UnwritableError, ConfigError: see `storage.bucket_path`.
    """
    leases, began = Numbered(place, Lease), time.monotonic()
    while True:
        number, lease = _newest(leases)
        if lease is None or lease.released or _ended(lease):
            if own_lease(released=False).put(leases.path(number + 1)):
                break
        elif time.monotonic() - began >= timeout_s:
            raise LockedError(
                f"Process {lease.pid} on {lease.host} works on {place.parent} since {lease.since}. Wait for it; if it has ended, "
                f"delete the object {leases.path(number)}, then run again."
            )
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        own_lease(released=True).put(leases.path(number + 2))
        for old in leases.numbers():
            if old < number + 2:
                leases.path(old).unlink(missing_ok=True)


def _newest(leases: Numbered[Lease]) -> tuple[int, Lease | None]:
    while True:
        numbers = leases.numbers()
        if not numbers:
            return 0, None
        with suppress(MissingArtifactError):  # a newer one is there since
            return numbers[-1], leases.read(numbers[-1])


def _ended(lease: Lease) -> bool:
    return lease.machine == machine() and not lives(lease.pid, lease.started)
