"""Locks between real processes, and on file systems that have none."""

import errno
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from storage import files
from storage.errors import LockedError
from storage.locks import is_locked, locked
from tests.logs import said
from tests.processes import PATIENCE_S, has_open, wait_for

HOLD = """
    import sys, time
    from pathlib import Path
    from storage.locks import locked
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
"""


def holder(path: Path, seconds: float) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(path), str(seconds)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    return child


def test_another_process_is_waited_for_named_and_gone_with_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "work" / "stage.lock"
    with holder(path, 3600) as child:
        assert is_locked(path)
        message = rf"Another process works on {tmp_path}/work \(it holds stage.lock\)"
        with pytest.raises(LockedError, match=message), locked(path, timeout_s=0.3):
            pass
        child.kill()
        child.wait()
        with locked(path, timeout_s=0):
            assert is_locked(path)  # by this process
    assert not is_locked(path)
    assert not is_locked(tmp_path / "none")


def test_a_lock_whose_folder_was_removed_is_taken_anew(tmp_path: Path) -> None:
    path = tmp_path / "key" / "work" / "stage.lock"
    waiting = [sys.executable, "-c", textwrap.dedent(HOLD), str(path), "0.1"]
    with locked(path):
        child = subprocess.Popen(waiting, stdout=subprocess.PIPE)
        wait_for(lambda: has_open(child.pid, "stage.lock"))  # it closes it only once it has the lock
        shutil.rmtree(tmp_path / "key")
    out, _ = child.communicate(timeout=PATIENCE_S)
    assert (out, child.returncode) == (b"held\n", 0)
    assert path.is_file()  # what it holds is the file others will ask for


def test_the_time_of_the_lock_file_is_that_of_its_last_holder(tmp_path: Path) -> None:
    path = tmp_path / "stage.lock"
    path.touch()
    os.utime(path, (0, 0))
    with locked(path):
        assert time.time() - path.stat().st_mtime < 60


# A file system whose flock, link and fsync of folders fail as Lustre's, CIFS's or FUSE's do, for a real process.
SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
static int refuse(void) { errno = atoi(getenv("SHIM_ERRNO")); return -1; }
int flock(int fd, int operation) { return refuse(); }
int link(const char *a, const char *b) { return refuse(); }
int linkat(int a, const char *b, int c, const char *d, int e) { return refuse(); }
int chmod(const char *path, mode_t mode) { abort(); }
int fchmod(int fd, mode_t mode) { abort(); }
int fsync(int fd) {
    struct stat found;
    if (fstat(fd, &found) == 0 && S_ISDIR(found.st_mode)) return refuse();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
"""
WORK = """
    import logging, sys
    from pathlib import Path
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    from storage.files import put_if_absent, write_text_atomic
    from storage.locks import locked
    root = Path(sys.argv[1])
    for name in ("a", "b"):
        with locked(root / name / "stage.lock"):
            write_text_atomic(root / name / "text", name)
            print(put_if_absent(root / name / "record", b"one"), put_if_absent(root / name / "record", b"two"))
    from tasks.run.stage import RunContext, Stage, run_stage
    for _ in range(2):
        body = lambda run: (run.directory / "out").write_text("made") and None
        print(run_stage(Stage("split", "split", 1), inputs={}, config={}, context=RunContext(workdir=root), body=body).cached)
"""


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_links_and_folder_fsync(tmp_path: Path, number: int) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in of such a file system")
    (tmp_path / "shim.c").write_text(SHIM)
    shim = tmp_path / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(shim), str(tmp_path / "shim.c"), "-ldl"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WORK), str(tmp_path / "store")],
        env=os.environ | {"LD_PRELOAD": str(shim), "SHIM_ERRNO": str(number)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "True False\nTrue False\nFalse\nTrue\n"), done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("the file system of ")]
    assert [line.partition(" has ")[2] or line.partition(" cannot ")[2] for line in said] == [
        "no locks; do not start the same run twice at once",
        "make folders durable; after a power failure the last files may be missing",
        "no hard links; a process killed in the middle of a write may leave half a file",
    ]  # each once, not once per folder
    assert str(tmp_path / "store") in said[0]
    for name in ("a", "b"):
        assert (tmp_path / "store" / name / "text").read_text() == name
        assert (tmp_path / "store" / name / "record").read_bytes() == b"one"


def test_nfs_without_lockd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(files, "_warned", set())
    with caplog.at_level(logging.WARNING), locked(tmp_path / "a.lock", timeout_s=0), locked(tmp_path / "b.lock"):
        pass
    assert said(caplog) == [f"the file system of {tmp_path} has no locks; do not start the same run twice at once"]
