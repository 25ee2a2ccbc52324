"""One launch of a training may write: between real processes, dead, paused and killed ones."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from storage import files, lease
from storage.documents.lease import Lease
from storage.errors import LeaseHeldError, LeaseLostError, UnwritableError
from storage.files import remove_leftovers
from storage.numbered import Numbered
from tests.logs import said
from tests.processes import PATIENCE_S, alive, wait_for
from tests.unit.disks import fill, small_disk


@contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has printed `ready`."""
    command = [sys.executable, "-c", "import sys, time\nfrom pathlib import Path\nfrom storage import lease\n"]
    command[-1] += textwrap.dedent(code)
    child = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
        yield child
    finally:
        child.kill()
        child.communicate()


def numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "lease").glob("*.json"))


def edit(folder: Path, number: int, **changes: object) -> Path:
    """Change what a record says, as another machine would have written it."""
    path = folder / "lease" / f"{number:08d}.json"
    Lease.read(path).model_copy(update=changes).write(path)
    return path


def test_launches_of_one_process_follow_each_other(tmp_path: Path) -> None:
    assert lease.take(tmp_path) == 1
    with lease.guard(tmp_path, 1):
        pass
    message = (
        rf"^Launch 1 of the training in {tmp_path} runs: process {os.getpid()} on .+, since 20..-..-..T.+\. Wait for it"
    )
    with pytest.raises(LeaseHeldError, match=message):
        lease.take(tmp_path)
    lease.release(tmp_path, 1)
    with pytest.raises(LeaseLostError, match="launch 1 of the training"), lease.guard(tmp_path, 1):
        pytest.fail("a launch that has ended may not write")
    assert lease.take(tmp_path) == 3  # 2 is the record of the end
    lease.release(tmp_path, 1)  # of one that was replaced: nothing happens
    with lease.guard(tmp_path, 3):
        pass
    assert numbers(tmp_path) == [1, 2, 3]
    lease.release(tmp_path, 3)


TAKE = """
    folder = Path(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        print(lease.take(folder), flush=True)
    except lease.LeaseHeldError:
        print("held", flush=True)
    sys.stdin.readline()
"""


def test_of_four_processes_at_once_one_takes_it(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys\nfrom pathlib import Path\nfrom storage import lease\n" + textwrap.dedent(TAKE),
    ]
    children = [
        subprocess.Popen([*command, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    pipes = [(child.stdin, child.stdout) for child in children if child.stdin and child.stdout]
    for _, out in pipes:
        assert out.readline() == "ready\n"
    for into, _ in pipes:
        into.write("\n")
        into.flush()
    answers = sorted(out.readline() for _, out in pipes)
    for child in children:
        child.communicate("\n")
    assert answers == ["1\n", "held\n", "held\n", "held\n"]
    assert numbers(tmp_path) == [1]


HOLD = """
    token = lease.take(Path(sys.argv[1]))
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_holder_on_this_host_counts_while_it_lives(tmp_path: Path) -> None:
    with process(HOLD, tmp_path) as holder:
        with pytest.raises(LeaseHeldError, match=f"process {holder.pid} on "):
            lease.take(tmp_path)
        holder.kill()  # and not waited for: a process that has ended and a parent that does not ask
        wait_for(lambda: not alive(holder.pid))
        assert lease.take(tmp_path) == 2
    lease.release(tmp_path, 2)
    lease.take(tmp_path)
    edit(tmp_path, 4, pid=os.getpid(), started=1)  # the number belongs to another process by now
    assert lease.take(tmp_path) == 5
    lease.release(tmp_path, 5)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_holder_on_another_host_counts_while_it_is_heard_of(tmp_path: Path, damaged: bool) -> None:
    assert lease.take(tmp_path) == 1
    record = edit(tmp_path, 1, machine="00000000", host="gpu-7", pid=11)
    if damaged:
        record.write_bytes(record.read_bytes()[:40])
    who = f"{record} is missing, damaged" if damaged else "process 11 on gpu-7, since"
    with pytest.raises(LeaseHeldError, match=rf"sign of life \d+ s ago: .*{who}"):  # it began a moment ago
        lease.take(tmp_path)
    long_ago = time.time() - 61
    os.utime(record, (long_ago, long_ago))
    beat = tmp_path / "beat-1"
    beat.touch()
    os.utime(beat, (long_ago + 40, long_ago + 40))
    with pytest.raises(LeaseHeldError, match=r"sign of life [23]\d s ago: .*; 60 s after its last sign"):
        lease.take(tmp_path)
    os.utime(beat, (long_ago, long_ago))
    assert lease.take(tmp_path) == 2
    with pytest.raises(LeaseLostError, match=r"launch 1 .*the records there go to 2"), lease.guard(tmp_path, 1):
        pytest.fail("it was replaced")
    lease.release(tmp_path, 2)


PAUSED = """
    import os, signal
    folder = Path(sys.argv[1])
    for name in ("first", "second"):
        try:
            with lease.guard(folder, 1):
                if name == "first":
                    print("ready", flush=True)
                    os.kill(os.getpid(), signal.SIGSTOP)
                (folder / name).touch()
        except lease.LeaseLostError as error:
            print(error, flush=True)
        sys.stdin.readline()
"""


def test_a_paused_process_is_waited_for_and_refused_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease.take(tmp_path)
    with process(PAUSED, tmp_path) as orphan:
        edit(tmp_path, 1, pid=2**22, started=1)  # its launcher was killed
        monkeypatch.setattr(lease, "_WAIT_S", 0.3)
        with pytest.raises(
            LeaseHeldError, match=rf"paused, or its disk hangs\. End it \(`fuser {tmp_path}/lease/lease.lock`"
        ):
            lease.take(tmp_path)
        assert numbers(tmp_path) == [1]
        monkeypatch.undo()
        orphan.send_signal(signal.SIGCONT)
        assert lease.take(tmp_path) == 2
        assert (tmp_path / "first").exists()  # before the new launch began
        out, _ = orphan.communicate("\n\n", timeout=PATIENCE_S)
        assert out.startswith("This process belongs to launch 1 ")
        assert not (tmp_path / "second").exists()
    lease.release(tmp_path, 2)


KILLED = """
    import json
    from storage import documents, files, lease, locks, numbered, processes
    import storage.documents.document
    from tests.traced_kill import killed_at
    root = Path(sys.argv[1])
    here = str(Path(lease.__file__).parent)
    print("ready", flush=True)
    found = []
    for number in range(1, 10_000):
        folder = root / str(number)
        code = killed_at(number, here, lambda: lease.take(folder))
        before = sorted(path.name for path in folder.glob("lease/*.json"))
        found.append((code, len(before), lease.take(folder)))
        if code == 0:
            break
    print(json.dumps(found))
"""


def test_a_kill_between_any_two_steps_of_taking_it_holds_up_nobody(tmp_path: Path) -> None:
    with process(KILLED, tmp_path) as child:
        out, error = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0, error
    found = [tuple(entry) for entry in json.loads(out)]
    *killed, ended = found
    assert ended == (0, 1, 2)
    assert len(killed) > 80
    assert set(killed) == {(-9, 0, 1), (-9, 1, 2)}  # exit code, records left, number of the next launch
    remove_leftovers(tmp_path, below=True)
    for folder in tmp_path.iterdir():
        left = {path.name for path in (folder / "lease").iterdir() if path.suffix != ".json"}
        assert left == {"lease.lock"}


def test_a_launch_whose_end_cannot_be_written_ends_for_its_process(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        lease.take(disk)
        filler = fill(disk)
        with pytest.raises(UnwritableError, match="no space is left"):
            lease.release(disk, 1)
        filler.unlink()
        assert lease.take(disk) == 2


def test_a_removed_folder_is_not_made_again_by_an_orphan(tmp_path: Path) -> None:
    with pytest.raises(LeaseLostError), lease.guard(tmp_path / "work", 1):
        pytest.fail("there is no lease")
    assert not (tmp_path / "work").exists()


def test_without_locks_the_numbers_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(files, "_warned", set())
    assert lease.take(tmp_path) == 1
    edit(tmp_path, 1, pid=2**22, started=1)
    numbered = lease._refuse_living

    def overtaken(folder: Path, leases: Numbered[Lease], number: int) -> None:
        numbered(folder, leases, number)
        monkeypatch.undo()
        assert lease.take(tmp_path) == 2  # another process, in the middle of our take

    monkeypatch.setattr(lease, "_refuse_living", overtaken)
    with pytest.raises(LeaseHeldError, match="Launch 2 of the training"):
        lease.take(tmp_path)
    with pytest.raises(LeaseLostError), lease.guard(tmp_path, 1):
        pytest.fail("it was replaced")
    assert said(caplog) == [
        f"the file system of {tmp_path}/lease has no locks; do not start the same run twice at once"
    ]
    lease.release(tmp_path, 2)


def test_threads_of_one_process_wait_for_each_other_without_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = lease.take(tmp_path)
    monkeypatch.setattr(lease, "_WAIT_S", 0.1)
    order = []

    def write() -> None:
        with lease.guard(tmp_path, token):
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with lease.guard(tmp_path, token):  # best weights are written while a state is published, say
            other = pool.submit(write)
            time.sleep(0.4)
            assert not other.done()
            order.append("first")
        other.result(20)
    assert order == ["first", "second"]
    lease.release(tmp_path, token)


WAITING = """
    folder = Path(sys.argv[1])
    print("ready", flush=True)
    try:
        with lease.guard(folder, 1):
            (folder / "written").touch()
    except lease.LeaseLostError as error:
        print(error, flush=True)
"""


def test_a_process_that_waited_while_it_was_replaced_is_refused(tmp_path: Path) -> None:
    lease.take(tmp_path)
    with ExitStack() as stack:
        with lease._locked(tmp_path):
            orphan = stack.enter_context(process(WAITING, tmp_path))
            time.sleep(0.3)  # it has looked, found itself the newest, and waits for the lock
            assert orphan.poll() is None
            assert lease.own_lease(released=False).put(tmp_path / "lease" / "00000002.json")
        out, _ = orphan.communicate(timeout=PATIENCE_S)
        assert out.startswith("This process belongs to launch 1 ")
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("noted", [b"2", b"", b"x"])
def test_an_old_listing_of_the_folder_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: bytes
) -> None:
    lease.take(tmp_path)
    lease.release(tmp_path, 1)
    lock = tmp_path / "lease" / "lease.lock"
    assert lock.read_bytes() == b"2"
    lock.write_bytes(noted)
    if noted == b"2":
        monkeypatch.setattr(Numbered, "numbers", lambda self: [1])  # as a network file system shows it for a while
    with pytest.raises(LeaseLostError, match="the records there go to 2"), lease.guard(tmp_path, 1):
        pytest.fail("it was released")
    assert lease.take(tmp_path) == 3
    with lease.guard(tmp_path, 3):
        pass
    lease.release(tmp_path, 3)
