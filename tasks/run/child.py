"""One process beside this that works under limits: an item that costs too much ends that process, not the one that asked.

A limit of memory shows as MemoryError in the item, where the code that asked for too much can be native. Limits of time are kept by
the process that waits, so that no loop in native code escapes them: one of processor time, which does not depend on what else the
machine does, and a wide one of time by the clock, for what waits and never ends.
"""

import logging
import multiprocessing
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from traceback import format_exc
from typing import Any

import cloudpickle
import psutil

from storage.errors import UserError
from tasks.run.machine import SHARING, limit_threads

_CODE = "import sys; from tasks.run.child import serve; serve(int(sys.argv[1]))"
_ONE_THREAD = ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
_THREADS_OF_DASK = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # it sets them to 1 for its workers
_LOOK_S = 0.5  # how often the processor time is looked at
_START_S = 120.0  # a shared machine may need long to start Python and to import
_IDLE_S = 300.0  # so long it waits for work, and holds its memory, where the one who gave it some was killed
logger = logging.getLogger("prdit.fanout")


@dataclass(frozen=True)
class Allowance:
    """What an item may cost.

    Attributes:
        memory_mb: above what its process has already.
        seconds: of processor time, until its next result.
        waiting_s: by the clock, until its next result.
        more_s: processor time that `need_more` may add, in all.
        together: whether both limits of time are for all its results together.
    """

    memory_mb: int
    seconds: float
    waiting_s: float = 600.0
    more_s: float = 0.0
    together: bool = False


@dataclass(frozen=True)
class Lost:
    """An item without result, or where a function yields several without the rest of them.

    Attributes:
        reason: "worker_died" (its process was killed), "too_costly" (it needed more memory than its allowance), "too_slow" (more
            time) or "failed" (it raised).
        detail: kind of error or cost, for a verdict's sentence.
        error: what the function raised where it is an error of ours, which concerns the run and not this item (a full disk, say).
        done: what it had yielded.
        traceback: of an error that is not ours.
    """

    reason: str
    detail: str
    error: UserError | None = None
    done: list[Any] = field(default_factory=list)
    traceback: str = field(default="", compare=False, repr=False)


def attempt(
    function: Callable[[Any], Any], item: Any, allowance: Allowance | None, send: Callable[[Any], None] | None = None
) -> Any:
    """Apply a function to an item in this process; its result, or `Lost`.

    Args:
        function: it returns a result, or yields several, which become a list.
        item: its argument.
        allowance: its limit of memory is kept here, that of time is not.
        send: what yielded results are given to, one by one, instead of being collected.
    """
    done: list[Any] = []
    try:
        with _memory_limited(allowance):
            result = function(item)
            if not isinstance(result, Iterator):
                return result
            for one in result:
                (send or done.append)(one)
    except UserError as error:
        return Lost("failed", type(error).__name__, error, done)
    except MemoryError:
        return Lost("too_costly", _too_much(allowance), done=done)
    except Exception as error:
        logger.exception("An item failed")
        return Lost("failed", type(error).__name__, done=done, traceback=format_exc())
    return done


_ask: Callable[[float], None] | None = None  # set in a process that works for another


def need_more(seconds: float) -> None:
    """Ask for more processor time for the item that this process works on, when what it takes is known; a tenfold by the clock.

    It is given as far as the item's allowance goes.
    """
    if _ask is not None:
        _ask(seconds)


class Child:
    """A process that starts when it is first needed, and again when it has died.

    Args:
        one_thread: whether its native libraries start no threads; else as many as this job has cores.
        sharing: how many such processes share this job's cores and memory.
    """

    def __init__(self, *, one_thread: bool = True, sharing: int = 1) -> None:
        self._one_thread = one_thread
        self._sharing = sharing
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None
        self._killed = False

    def run(self, call: bytes, allowance: Allowance | None) -> Any:
        """Apply a function to an item there; as `attempt`.

        Args:
            call: pickle (of cloudpickle) of the function and the item.
            allowance: both its limits are kept.
        """
        connection = self._connected()
        done: list[Any] = []
        if self._killed:  # while the process was being started
            return self._stopped("worker_died", "it was ended", done)
        try:
            connection.send_bytes(cloudpickle.dumps(allowance))
            connection.send_bytes(call)
            if not connection.poll(_START_S):
                return self._stopped("worker_died", f"it did not start within {_START_S:.0f} s", done)
            connection.recv_bytes()  # the item is there, and what it needs is imported
            limits = self._limits(allowance)
            while True:
                while not connection.poll(_LOOK_S if limits else None):
                    if limits and (passed := limits.passed()):
                        return self._stopped("too_slow", passed, done)
                kind, value = cloudpickle.loads(connection.recv_bytes())
                if kind == "more":
                    if limits:
                        limits.extend(value)
                elif kind == "one":
                    done.append(value)
                    if allowance and not allowance.together:
                        limits = self._limits(allowance)
                    elif limits and (passed := limits.passed()):  # results come more often than it is looked
                        return self._stopped("too_slow", passed, done)
                elif kind == "all":
                    return done
                elif isinstance(value, Lost):
                    if value.reason == "too_costly":
                        self.close()  # what it holds may be spread over its memory
                    return replace(value, done=done)
                else:
                    return value
        except (EOFError, OSError):
            assert self._process is not None
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            return self._stopped("worker_died", _ending(self._process.returncode), done)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if process is not None:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """End the process for good, from another thread than the one that may wait for it, which gets `Lost`."""
        self._killed = True
        if (process := self._process) is not None:
            process.kill()
            process.wait()

    def _connected(self) -> "Connection[Any, Any]":
        if self._connection is None or self._process is None or self._process.poll() is not None:
            self.close()
            ours, theirs = multiprocessing.Pipe()
            environment = self._environment()
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for the process that waits
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _CODE, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=environment,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
            self._connection = ours
        return self._connection

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        if self._one_thread:
            environment |= dict.fromkeys(_ONE_THREAD, "1")
        else:
            for name in _THREADS_OF_DASK:
                environment.pop(name, None)
            limit_threads(environment)
        environment[SHARING] = str(self._sharing)
        # Dask sets it for its workers: each large array is fetched from the system anew then, and a scan takes twice as long.
        environment.pop("MALLOC_TRIM_THRESHOLD_", None)
        quiet = "ignore:resource_tracker:UserWarning"  # it removes the semaphores of killed processes, and would say so
        environment["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), quiet)))
        return environment

    def _limits(self, allowance: Allowance | None) -> "_TimeLimits | None":
        assert self._process is not None
        return _TimeLimits(self._process.pid, allowance) if allowance else None

    def _stopped(self, reason: str, detail: str, done: list[Any]) -> Lost:
        self.close()
        return Lost(reason, detail, done=done)


class _TimeLimits:
    """Limits of time for what a process does from now on."""

    def __init__(self, pid: int, allowance: Allowance) -> None:
        self._process = psutil.Process(pid)
        self._seconds, self._waiting_s, self._more_s = allowance.seconds, allowance.waiting_s, allowance.more_s
        self._used, self._began = self._processor_s(), time.monotonic()

    def extend(self, seconds: float) -> None:
        """Allow so much more processor time, as far as the allowance goes."""
        seconds = min(seconds, self._more_s)
        self._more_s -= seconds
        self._seconds += seconds
        self._waiting_s += 10 * seconds

    def passed(self) -> str:
        """Which limit is passed, in words; "" for none."""
        if self._processor_s() - self._used > self._seconds:
            return f"it took more than {self._seconds:.0f} s of processor time"
        if time.monotonic() - self._began > self._waiting_s:
            return f"it did not end within {self._waiting_s:.0f} s"
        return ""

    def _processor_s(self) -> float:
        try:
            times = self._process.cpu_times()
        except psutil.Error:  # it has ended, which the connection shows too
            return 0.0
        return float(times.user + times.system)


def serve(descriptor: int) -> None:
    """Work for the process at the other end of a connection until it closes it, as it does when it dies, or gives no more work."""
    global _ask
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # blocked until here; libraries unblock it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what it has in memory may be a patient's
    connection: Connection[Any, Any] = Connection(descriptor)
    threading.Thread(target=_end_with, args=(descriptor,), daemon=True).start()

    def tell(message: bytes) -> None:
        try:
            connection.send_bytes(message)
        except OSError:
            os._exit(0)  # as `_end_with`, which may be later: nobody waits for this

    def send(one: Any) -> None:
        tell(cloudpickle.dumps(("one", one)))

    def ask(seconds: float) -> None:
        tell(cloudpickle.dumps(("more", seconds)))

    _ask = ask
    while True:
        try:
            if not connection.poll(_IDLE_S):
                return
            allowance = cloudpickle.loads(connection.recv_bytes())
            call = connection.recv_bytes()
        except (EOFError, OSError):
            return
        function, item = cloudpickle.loads(call)
        tell(b"started")
        found = attempt(function, item, allowance, send)
        tell(cloudpickle.dumps(("all", None) if isinstance(found, list) and not found else ("result", found)))


def _end_with(descriptor: int) -> None:
    """End this process when the other end is closed, as it is when that process dies, whatever is being done."""
    waiting = select.poll()
    waiting.register(descriptor, 0)  # only that it is closed
    waiting.poll()
    os._exit(0)


@contextmanager
def _memory_limited(allowance: Allowance | None) -> Iterator[None]:
    """Let this process have so much memory more than it has now (Linux: what it may write to, not what it reserves)."""
    if allowance is None or sys.platform != "linux":
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [
        _writable_bytes() + (allowance.memory_mb << 20),
        *(n for n in (before, hard) if n != resource.RLIM_INFINITY),
    ]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def _writable_bytes() -> int:
    with open("/proc/self/status") as lines:  # noqa: PTH123 - no path to build
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))


def _too_much(allowance: Allowance | None) -> str:
    return "it needs more memory than there is" if allowance is None else f"it needs more than {allowance.memory_mb} MB"


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
