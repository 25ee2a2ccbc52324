"""What kill -9 leaves behind is gone after the next run; what a live process is writing stays."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.artifacts import SCRATCH, Ref, committed_ref
from storage.checkpoints import ResumeStates
from storage.files import temporary_path
from storage.privacy import BESIDE
from storage.volume_store import VolumeStore
from tasks.run.stage import RunContext, StageOutcome
from tasks.train.stage import train
from tests.factories import in_the_ranks, make_data, make_store, small_config
from tests.processes import descendants, kill

# A rank that announces one moment and waits there to be killed.
RANK = """
    import sys, time
    from pathlib import Path
    moment, mark = {moment!r}, Path({mark!r})
    def stop_here():
        if not mark.exists():
            mark.touch()
            time.sleep(600)
    if moment == "saving":
        import storage.checkpoints as checkpoints
        write = checkpoints.save_tensors
        def save_tensors(path, tensors):
            digest = write(path, tensors)
            if path.name == "ema.safetensors" and ".step-" in str(path):
                stop_here()
            return digest
        checkpoints.save_tensors = save_tensors
    else:
        import tasks.train.spec as spec
        save = spec.Outcome.save
        def saved(*arguments):
            stop_here()  # the artifact is committed, and nobody knows
            save(*arguments)
        spec.Outcome.save = saved
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    return make_data(tmp_path_factory.mktemp("data"))


def run(workdir: Path, data: tuple[Ref, Ref], progress: Any = lambda done, total: None) -> StageOutcome:
    config = small_config(steps=6, val_every=3, checkpoint_every=2, select="best")
    inputs = dict(zip(("snapshot", "split"), data, strict=True))
    return train("local", inputs, config, RunContext(workdir=workdir), progress)


def kill_at(moment: str, tmp_path: Path, data: tuple[Ref, Ref], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the training, kill -9 its processes at a moment; returns the stage's directory."""
    mark = tmp_path / "reached"

    def killed(self: Any, *, final: bool = False) -> list[Any]:
        if mark.exists() and not final:
            kill(descendants())
            raise KeyboardInterrupt
        return []

    with monkeypatch.context() as patch:
        in_the_ranks(RANK.format(moment=moment, mark=str(mark)), tmp_path, patch)
        patch.setattr("storage.metric_stream.MetricStream.poll", killed)
        with pytest.raises(KeyboardInterrupt):
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
    assert run(tmp_path / "work", data).ref.path == directory
    assert (left.exists(), alive.exists()) == (False, True)
    assert not [path for path in (directory / SCRATCH).rglob(".*.tmp") if path != alive]
    assert {"metrics.jsonl", "pending.json", "spec.json", "stage.lock", "node-0.log"} <= scratch_names(directory)


def test_a_training_killed_after_its_commit_is_a_hit(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = kill_at("committed", tmp_path, data, monkeypatch)
    ref = committed_ref(directory)
    outcome = run(tmp_path / "work", data)
    assert (outcome.cached, outcome.ref) == (True, ref)


def test_a_finished_training_keeps_its_last_states_and_what_they_name(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    directory = Path(run(tmp_path / "work", data).directory)
    states = ResumeStates(directory / SCRATCH / "checkpoints")
    assert [position.step for position in states.positions()] == [6, 4]
    named = {position.best.step for position in states.positions() if position.best}
    kept = {int(path.name.split("-")[1]) for path in (directory / SCRATCH / "best").iterdir()}
    assert kept == named


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


def test_an_ingest_removes_what_killed_processes_left_in_a_store_and_beside_it(tmp_path: Path) -> None:
    store, work = make_store(tmp_path / "store").path, tmp_path / "work"
    work.mkdir()
    ending = leave(work)[-1].name.removeprefix(".file")
    places = [tmp_path, store, store / "commits", store / "roles" / "default", work]
    places += [tmp_path / f"store{ending}" / "folder" for ending in BESIDE]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / f".v0{ending}").write_bytes(b"half")
    whole = tmp_path / "store.encoded" / "folder" / "v0.safetensors"
    alive = temporary_path(whole)
    for path in (whole, alive):
        path.write_bytes(b"whole")
    places.remove(work)  # a working folder is cleaned by its stages
    assert sorted(VolumeStore.open(store).clean()) == sorted(place / f".v0{ending}" for place in places)
    assert sorted(tmp_path.rglob(f".v0{ending}")) == [work / f".v0{ending}"]
    assert whole.exists()
    assert alive.exists()
