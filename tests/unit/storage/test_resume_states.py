"""What a stopped training resumes from: verified, kept, skipped by name when damaged, written beside the training."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from storage import checkpoints, lease
from storage.checkpoints import ResumeStates, StateWriter, Tensors, save_tensors
from storage.documents.training_state import GROUPS, TrainingPosition, TrainingState
from storage.errors import LeaseLostError, StorageError, UnwritableError
from storage.files import replacing, sha256_file
from tests.logs import said
from tests.processes import PATIENCE_S
from tests.unit.disks import small_disk
from tests.unit.storage.documents.examples import POSITION


def at(step: int, **changes: object) -> TrainingPosition:
    return POSITION.model_copy(update={"step": step, **changes})


def groups(value: float, size: int = 5) -> dict[str, Tensors]:
    return {group: {"w": np.full(size, value, np.float32)} for group in sorted(GROUPS)}


def names(states: ResumeStates) -> list[str]:
    return sorted(path.name for path in states.directory.iterdir())


def value_of(states: ResumeStates) -> float | None:
    """What the arrays of the newest good state hold; None without one."""
    found = states.newest_good()
    if found is None:
        return None
    assert {group: arrays["w"].tolist() for group, arrays in found[1].items()} == {
        group: arrays["w"].tolist() for group, arrays in groups(found[1]["model"]["w"][0]).items()
    }
    return float(found[1]["model"]["w"][0])


def spoil(states: ResumeStates, name: str, file: str = "ema.safetensors") -> Path:
    path = states.directory / name / file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    return path


def test_a_state_comes_back_whole(tmp_path: Path) -> None:
    states = ResumeStates(tmp_path)
    assert states.newest_good() is None
    states.save(at(7), groups(7.0))
    found = ResumeStates(tmp_path).newest_good()
    assert found is not None
    assert found[0] == at(7)
    assert value_of(states) == 7.0
    assert states.newest_good(accept=lambda position: position.step < 7) is None


def test_the_newest_two_stay_and_the_one_from_which_a_longer_training_goes_on(tmp_path: Path) -> None:
    states = ResumeStates(tmp_path, keep_at=35)
    for step in range(10, 80, 10):
        states.save(at(step), groups(step))
        assert value_of(states) == step
    assert names(states) == ["step-00000030", "step-00000060", "step-00000070"]
    plain = ResumeStates(tmp_path)  # without: as of a constant learning rate
    plain.save(at(80), groups(80))
    assert names(plain) == ["step-00000070", "step-00000080"]


def test_only_verified_states_count(tmp_path: Path) -> None:
    states = ResumeStates(tmp_path)
    for step in (10, 20):
        states.save(at(step), groups(step))
    spoil(states, "step-00000020")
    again = ResumeStates(tmp_path)  # another process: it has verified nothing
    again.save(at(30), groups(30))
    assert names(again) == ["step-00000010", "step-00000020", "step-00000030"]  # 10 is the second good one
    again.save(at(40), groups(40))
    assert names(again) == ["step-00000030", "step-00000040"]


def test_a_state_is_hashed_once_for_keeping_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ResumeStates(tmp_path).save(at(10), groups(10))
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.parent.name.split(".tmp")[0])
        return sha256_file(path)

    monkeypatch.setattr(checkpoints, "sha256_file", counted)
    states = ResumeStates(tmp_path)
    states.save(at(20), groups(20))
    assert read.count("step-00000010") == len(GROUPS)  # not known to this process before
    read.clear()
    states.save(at(30), groups(30))
    assert len(read) == len(GROUPS)  # what it wrote, read back
    assert all(name.startswith(".step-00000030") for name in read)


def test_a_state_that_could_not_be_used_is_written_again_beside_it(tmp_path: Path) -> None:
    states = ResumeStates(tmp_path)
    states.save(at(10), groups(10))
    states.save(at(20), groups(20))
    spoil(states, "step-00000020")
    states.save(at(20), groups(21))
    assert value_of(states) == 21
    assert names(states) == ["step-00000010", "step-00000020.1"]
    states.save(at(20), groups(22))
    assert names(states) == ["step-00000010", "step-00000020.2"]
    states.save(at(100_000_000), groups(1))  # nine digits
    assert value_of(states) == 1


def test_each_damaged_file_is_named_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    states = ResumeStates(tmp_path)
    for step in (10, 20):
        states.save(at(step), groups(step))
    changed, lost = spoil(states, "step-00000020"), tmp_path / "step-00000020" / "model.safetensors"
    lost.unlink()
    assert value_of(states) == 10
    assert said(caplog) == [
        f"resume state {tmp_path}/step-00000020 cannot be used ({changed} was changed after it was written; {lost} cannot be read: "
        "No such file or directory); trying the one before it"
    ]


def test_no_change_of_a_bit_of_the_document_goes_unnoticed(tmp_path: Path) -> None:
    document = TrainingState.of(
        at(3, recent=(1e-5, 1e22, 0.1), window=({"loss": None},)), dict.fromkeys(sorted(GROUPS), "5")
    )
    data = document.to_bytes()
    assert TrainingState.parse(data, "state.json") == document
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StorageError, match=r"^state\.json "):
            TrainingState.parse(bytes(flipped), "state.json")
    for length in range(len(data)):
        with pytest.raises(StorageError, match=r"^state\.json "):
            TrainingState.parse(data[:length], "state.json")


def test_a_disk_that_gives_back_other_bytes_is_noticed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = ResumeStates(tmp_path)
    states.save(at(10), groups(10))

    @contextmanager
    def faulty(path: Path) -> Iterator[Path]:
        with replacing(path) as temporary:
            yield temporary
            if path.name == "ema.safetensors":
                data = bytearray(temporary.read_bytes())
                data[-1] ^= 1
                temporary.write_bytes(bytes(data))

    monkeypatch.setattr(checkpoints, "replacing", faulty)
    with pytest.raises(
        UnwritableError,
        match=r"reads back different .*ema\.safetensors was changed .*; the states before this one stay",
    ):
        states.save(at(20), groups(20))
    assert names(states) == ["step-00000010"]


def test_an_orphan_writes_nothing_and_removes_nothing(tmp_path: Path) -> None:
    token = lease.take(tmp_path)
    states = ResumeStates(tmp_path / "checkpoints", partial(lease.guard, tmp_path, token))
    for step in (10, 20):
        states.save(at(step), groups(step))
    lease.release(tmp_path, token)
    new = lease.take(tmp_path)
    with pytest.raises(LeaseLostError, match=f"belongs to launch {token} "):
        states.save(at(30), groups(30))
    assert names(states) == ["step-00000010", "step-00000020"]
    lease.release(tmp_path, new)


def test_a_launch_that_is_replaced_while_it_writes_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = lease.take(tmp_path)
    states = ResumeStates(tmp_path / "checkpoints", partial(lease.guard, tmp_path, token))
    states.save(at(10), groups(10))

    def slowly(path: Path, tensors: Tensors) -> str:
        lease.release(tmp_path, token)
        return save_tensors(path, tensors)

    monkeypatch.setattr(checkpoints, "save_tensors", slowly)
    with pytest.raises(LeaseLostError):
        states.save(at(20), groups(20))
    assert names(states) == ["step-00000010"]


KILLED = """
    import shutil, sys
    from pathlib import Path
    from storage import checkpoints
    from storage.files import remove_leftovers
    from tests.unit.storage.test_resume_states import at, groups, names, value_of
    from storage.checkpoints import ResumeStates
    from tests.traced_kill import killed_at
    root, traced = Path(sys.argv[1]), (str(Path(checkpoints.__file__).parent), shutil.__file__)
    for step in (10, 20):
        ResumeStates(root / "before").save(at(step), groups(step))
    number = 0
    while True:
        number += int(sys.argv[2])
        folder = root / str(number)
        shutil.copytree(root / "before", folder)
        code = killed_at(number, traced, lambda: ResumeStates(folder).save(at(30), groups(30)))
        remove_leftovers(folder, below=True)
        states = ResumeStates(folder)
        assert [fault for path in folder.iterdir() for fault in checkpoints._examine(path)[1]] == []
        print(value_of(states), *names(states), sep=" ")
        shutil.rmtree(folder)
        if code == 0:
            break
"""


def test_a_kill_at_any_step_of_a_save_leaves_only_whole_states(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), "11"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, "")  # no state is damaged, or there would be a warning
    lines = done.stdout.splitlines()
    assert len(lines) > 40
    assert list(dict.fromkeys(lines)) == [
        "20.0 step-00000010 step-00000020",
        "30.0 step-00000010 step-00000020 step-00000030",
        "30.0 step-00000020 step-00000030",
    ]


def test_states_are_written_beside_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = ResumeStates(tmp_path)
    may_write, threads = threading.Event(), set()

    def slowly(path: Path, tensors: Tensors) -> str:
        threads.add(threading.current_thread().name)
        assert may_write.wait(PATIENCE_S)
        return save_tensors(path, tensors)

    monkeypatch.setattr(checkpoints, "save_tensors", slowly)
    writer = StateWriter(states)
    writer.submit(at(10), groups(10))  # returns, although nothing is written yet
    assert not [name for name in names(states) if name.startswith("step-")]
    threading.Timer(0.2, may_write.set).start()
    writer.submit(at(20), groups(20))  # waits for the one before
    assert "step-00000010" in names(states)
    writer.wait()
    writer.wait()
    assert names(states) == ["step-00000010", "step-00000020"]
    assert threads == {"states_0"}


def test_a_signal_that_comes_while_a_state_is_written_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()

    def slowly(path: Path, tensors: Tensors) -> str:
        assert may_write.wait(PATIENCE_S)
        time.sleep(0.05)
        return save_tensors(path, tensors)

    monkeypatch.setattr(checkpoints, "save_tensors", slowly)
    states = ResumeStates(tmp_path)
    writer = StateWriter(states)
    writer.submit(at(10), groups(10))

    def interrupted() -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()  # in here, however late anything is
        writer.wait()

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    may_write.set()
    writer.wait()
    assert names(states) == ["step-00000010"]


def test_a_full_disk_is_said_at_the_next_call_and_the_states_before_stay(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 300) as disk:
        states = ResumeStates(disk / "checkpoints")
        writer = StateWriter(states)
        writer.submit(at(10), groups(10))
        writer.submit(at(20), groups(20, size=100_000))
        message = rf"^{disk}/checkpoints/step-00000020/\w+\.safetensors cannot be written: no space is left"
        with pytest.raises(UnwritableError, match=message):
            writer.submit(at(30), groups(30))
        assert names(states) == ["step-00000010"]
        writer.submit(at(30), groups(30))  # once said, it goes on
        writer.wait()
        assert names(states) == ["step-00000010", "step-00000030"]
        writer.submit(at(40), groups(40, size=100_000))
        with pytest.raises(UnwritableError, match=message.replace("20", "40")):
            writer.wait()
        assert value_of(states) == 30
