"""What kill -9 leaves behind is gone after the next run; what a live process is writing stays."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from storage.artifacts import SCRATCH, Ref, committed_ref
from storage.files import temporary_path
from tasks.run.stage import RunContext, StageOutcome
from tasks.train.launch import TrainingFailedError
from tasks.train.stage import train
from tests.factories import local_config, make_data

# A trainer that announces one moment and waits there to be killed.
TRAINER = """
    import sys, time
    from pathlib import Path
    import storage.checkpoints as checkpoints
    import tasks.train.__main__ as trainer
    moment, mark = {moment!r}, Path({mark!r})
    def stop_here():
        if not mark.exists():
            mark.touch()
            time.sleep(600)
    if moment == "saving":
        write = checkpoints.save_tensors
        def save_tensors(path, tensors):
            write(path, tensors)
            if path.name == "ema.safetensors" and ".step-" in str(path):
                stop_here()
        checkpoints.save_tensors = save_tensors
    else:
        commit = trainer._commit
        def committed(spec):
            ref = commit(spec)
            stop_here()
            return ref
        trainer._commit = committed
    sys.exit(trainer.main(Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    return make_data(tmp_path_factory.mktemp("data"))


def run(workdir: Path, data: tuple[Ref, Ref], progress: Any = lambda done, total: None) -> StageOutcome:
    config = local_config(preset="XS/4/0", steps=6, val_every=3, checkpoint_every=2, select="best")
    inputs = dict(zip(("snapshot", "split"), data, strict=True))
    return train("local", inputs, config, RunContext(workdir=workdir), progress)


def kill_at(moment: str, tmp_path: Path, data: tuple[Ref, Ref], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the training, kill -9 its subprocess at a moment; returns the stage's directory."""
    mark = tmp_path / "reached"
    script = tmp_path / "trainer.py"
    script.write_text(textwrap.dedent(TRAINER.format(moment=moment, mark=str(mark))))
    popen = subprocess.Popen

    def start(command: list[str], **rest: Any) -> Any:
        if "tasks.train" not in command:
            return popen(command, **rest)
        environment = rest.pop("env") | {"PYTHONPATH": str(Path.cwd())}
        return popen([sys.executable, str(script), command[-1]], env=environment, **rest)

    def kill(*_: Any) -> None:
        for child in psutil.Process().children():
            if str(script) in child.cmdline():
                child.kill()

    with monkeypatch.context() as patch:
        patch.setattr("tasks.train.launch.subprocess.Popen", start)
        patch.setattr("tasks.train.launch._advance", lambda *_, **__: kill() if mark.exists() else None)
        with pytest.raises(TrainingFailedError, match="exit code -9"):
            run(tmp_path / "work", data)
    (directory,) = (tmp_path / "work" / "train-local").iterdir()
    return directory


def scratch_names(directory: Path) -> set[str]:
    return {path.name for path in (directory / SCRATCH).iterdir()}


def test_a_state_that_was_being_saved(data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = kill_at("saving", tmp_path, data, monkeypatch)
    (left,) = (directory / SCRATCH / "checkpoints").iterdir()
    assert left.name.startswith(".step-00000002.")
    assert (left / "model.safetensors").stat().st_size > 100_000
    alive = temporary_path(directory / SCRATCH / "checkpoints" / "step-00000009")
    alive.mkdir()  # of this process, which lives: another one's cleaning must leave it
    seen: list[bool] = []

    def look(done: int, total: int) -> None:
        seen.append(left.exists() or not alive.exists())

    ref = run(tmp_path / "work", data, look).ref
    assert seen
    assert not any(seen)
    assert ref.path == directory
    assert scratch_names(directory) == {
        "metrics.jsonl",
        "pending.json",
        "spec.json",
        "stage.lock",
        "train.log",
        "trainer.lock",
    }


def test_a_training_killed_after_its_commit_is_a_hit_that_cleans(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = kill_at("committed", tmp_path, data, monkeypatch)
    assert {"checkpoints", "best"} <= scratch_names(directory)
    ref = committed_ref(directory)
    outcome = run(tmp_path / "work", data)
    assert (outcome.cached, outcome.ref) == (True, ref)
    assert not {"checkpoints", "best"} & scratch_names(directory)


def test_a_finished_training_keeps_no_states(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    outcome = run(tmp_path / "work", data)
    assert not {"checkpoints", "best"} & scratch_names(Path(outcome.directory))
    assert outcome.ref.path == Path(outcome.directory)


LEAVE = """
    import os, signal, sys
    from pathlib import Path
    from storage.files import replacing, temporary_path
    folder = Path(sys.argv[1])
    temporary_path(folder / "tree").mkdir()
    with replacing(folder / "sub" / "file") as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def leave(folder: Path) -> list[Path]:
    """Have a killed process leave a temporary folder, and a file below."""
    subprocess.run([sys.executable, "-c", textwrap.dedent(LEAVE), str(folder)], check=False)
    found = sorted(folder.rglob("*.tmp"))
    assert len(found) == 2
    return found


def test_a_stage_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    from tasks.run.stage import Stage, run_stage

    def once(body: Callable[..., None]) -> StageOutcome:
        return run_stage(
            Stage("split", "split", 1), inputs={}, config={}, context=RunContext(workdir=tmp_path), body=body
        )

    def dies(run: Any) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        once(dies)
    (directory,) = (tmp_path / "split").iterdir()
    left = leave(directory)
    mine = temporary_path(directory / "mine")
    mine.write_text("being written")
    foreign = directory / ".theirs.tmp"
    foreign.write_text("not ours to remove")
    elsewhere = directory / (left[0].name[:-40] + ".0123abcd-1-1700000000-89abcdef.tmp")
    elsewhere.write_text("of another machine, which may be writing it")
    once(lambda run: (run.directory / "out").write_text("made") and None)
    assert [path.exists() for path in (*left, mine, foreign, elsewhere)] == [False, False, True, True, True]
    day_old = time.time() - 25 * 3600
    os.utime(elsewhere, (day_old, day_old))
    assert once(dies).cached
    assert not elsewhere.exists()
