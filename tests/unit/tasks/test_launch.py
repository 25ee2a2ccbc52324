"""A training as processes see it: ranks, kills, orphans, refusals. Real processes, really killed."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from storage.artifacts import Ref, verify_artifact
from storage.checkpoints import load_tensors
from storage.errors import InputError
from tasks.run.launchers.config import LauncherConfig
from tasks.run.stage import RunContext, StageRun
from tasks.train.launch import TrainingFailedError, launch
from tasks.train.spec import Outcome, TrainSpec
from tasks.train.stage import train
from tests.factories import global_config, in_the_ranks, local_config, make_data, small_config, train_spec, trained
from tests.processes import PATIENCE_S, descendants, kill, wait_for


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    return make_data(tmp_path_factory.mktemp("data"))


def start(spec: TrainSpec, progress: Any = lambda done, total: None, ranks: int = 1) -> Ref:
    return launch(spec, StageRun(spec.directory, None, "", {}), progress, LauncherConfig(ranks_per_node=ranks))


def resume_steps(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "work" / "checkpoints").glob("step-*"))


def ranks_of(parent: int | None = None) -> list[psutil.Process]:
    return descendants(parent, "tasks.train ")


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_tensors(folder / "model.safetensors")


def log(spec: TrainSpec) -> str:
    return (spec.directory / "work" / "node-0.log").read_text()


def test_two_ranks_take_the_same_steps_as_one_and_survive_the_loss_of_one(
    data: tuple[Ref, Ref], tmp_path: Path
) -> None:
    config = small_config(steps=40, batch_size=4, val_every=20, checkpoint_every=5)
    alone = trained(train_spec(config, *data, tmp_path / "alone"))
    spec = train_spec(config, *data, tmp_path / "two")
    seen: list[tuple[int, int]] = []
    killed: list[int] = []

    def kill_the_second(done: int, total: int) -> None:
        seen.append((done, total))
        if done >= 10 and not killed:
            victim = ranks_of()[-1]
            victim.kill()
            killed.append(victim.pid)

    ref = start(spec, kill_the_second, ranks=2)
    verify_artifact(ref)
    assert (ref.kind, seen[-1], len(killed)) == ("checkpoint", (40, 40), 1)
    assert log(spec).count("resuming from step") == 2  # both ranks, once
    together, expected = weights(ref.path), weights(alone.path)
    # Only the order of sums differs; Adam turns the least of it into a step of up to its rate where a gradient is almost zero.
    for key in expected:
        np.testing.assert_allclose(together[key], expected[key], atol=2e-4, err_msg=key)


def test_kill_minus_nine_of_everything_then_again_gives_the_same_artifact(
    data: tuple[Ref, Ref], tmp_path: Path
) -> None:
    config = small_config(steps=200, val_every=200, checkpoint_every=5, log_every=7)
    whole = start(train_spec(config, *data, tmp_path / "whole"))
    spec = train_spec(config, *data, tmp_path / "killed")

    def kill_after_ten(done: int, total: int) -> None:
        if done >= 10:
            kill(descendants())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(spec, kill_after_ten)
    assert resume_steps(spec.directory)
    assert start(spec).digest == whole.digest
    assert "resuming from step" in log(spec)


def test_lease_removed_and_a_state_copied_by_hand_do_not_matter(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    """Numbers of launches begin anew then: what the earlier first one left must not be taken for this one's."""
    spec = train_spec(small_config(), *data, tmp_path / "training")
    whole = start(spec)
    work = spec.directory / "work"
    shutil.rmtree(work / "lease")
    state = next((work / "checkpoints").glob("step-*"))
    shutil.copytree(state, state.with_name(f"{state.name}-copy"))
    (spec.directory / "provenance.json").unlink()
    (spec.directory / "model.safetensors").unlink()
    assert start(spec) == whole
    verify_artifact(whole)


def test_bad_input_comes_back_as_its_own_message(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    local = trained(train_spec(local_config(steps=1), *data, tmp_path / "local"))
    spec = train_spec(global_config(process={"noise_std": 1.0}), *data, tmp_path / "global", start=local)
    with pytest.raises(InputError, match=r"^process .*'noise_std': 1\.0.* differs"):
        start(spec)


def test_a_batch_that_the_ranks_cannot_share_is_refused_before_anything_is_written(
    data: tuple[Ref, Ref], tmp_path: Path
) -> None:
    inputs = dict(zip(("snapshot", "split"), data, strict=True))
    launcher = LauncherConfig(ranks_per_node=3)
    with pytest.raises(InputError, match=r"batch_size 2 cannot be shared by 3 ranks.*multiple of 3"):
        train("local", inputs, local_config(), RunContext(workdir=tmp_path), lambda done, total: None, launcher)
    assert not list(tmp_path.iterdir())


def test_a_batch_that_what_is_left_of_the_nodes_cannot_share_is_refused_too(
    data: tuple[Ref, Ref], tmp_path: Path
) -> None:
    inputs = dict(zip(("snapshot", "split"), data, strict=True))
    launcher = LauncherConfig(name="slurm", nodes=4, min_nodes=2)
    with pytest.raises(InputError, match=r"batch_size 8 cannot be shared by 3 ranks.*min_nodes"):
        train(
            "local",
            inputs,
            local_config(batch_size=8),
            RunContext(workdir=tmp_path),
            lambda done, total: None,
            launcher,
        )
    assert not list(tmp_path.iterdir())


def test_a_stop_is_forgotten_by_a_launch_that_goes_on_but_nothing_else_is(tmp_path: Path) -> None:
    Outcome.forget_stop(tmp_path, 1)
    for outcome, left in ((Outcome(stopped_at=7), None), (Outcome(fault="ValueError"), Outcome(fault="ValueError"))):
        outcome.save(tmp_path, 1)
        Outcome.forget_stop(tmp_path, 1)
        assert Outcome.find(tmp_path, 1) == left


REFUSES = """
from tasks.train import setup
from storage.errors import InputError
import tasks.train.check
def refuse(*_, **__):
    print("a library's own words", flush=True)
    raise InputError({message!r})
tasks.train.check.check_training = refuse
"""


def test_a_message_of_several_lines_comes_back_whole(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "two: things\nare: wrong:\n  with a \x1b sequence\n{}"
    in_the_ranks(REFUSES.format(message=message), tmp_path, monkeypatch)
    spec = train_spec(small_config(), *data, tmp_path / "local")
    with pytest.raises(InputError) as caught:
        start(spec)
    assert str(caught.value) == message
    assert "a library's own words" in log(spec)


BROKEN = """
from tasks.train import data
def broken(*_):
    raise ValueError("operands could not be broadcast\\x1b[2J")
data.ViewDataset.get = broken
"""


def test_a_fault_leaves_its_traceback_in_the_log(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_ranks(BROKEN, tmp_path, monkeypatch)
    spec = train_spec(small_config(), *data, tmp_path / "local")
    with pytest.raises(TrainingFailedError, match=r"^train-local ended with ValueError\.") as caught:
        start(spec)
    written = log(spec)
    assert "Traceback (most recent call last):" in written
    assert "in broken" in written
    assert "ValueError: operands could not be broadcast\\x1b[2J\n" in written
    assert "\x1b" not in written
    assert str(spec.directory / "work") in str(caught.value)
    assert "ValueError: operands could not be broadcast\\x1b[2J" in str(caught.value)


PARENT = """
    import sys
    from pathlib import Path
    from tasks.run.launchers.config import LauncherConfig
    from tasks.run.stage import StageRun
    from tasks.train.launch import launch
    from tasks.train.spec import TrainSpec
    spec = TrainSpec.model_validate_json(Path(sys.argv[1]).read_text())
    launch(spec, StageRun(spec.directory, None, "", {}), lambda done, total: None, LauncherConfig(ranks_per_node=2))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_ranks_end_with_their_launcher_and_save_first(
    data: tuple[Ref, Ref], tmp_path: Path, number: signal.Signals
) -> None:
    spec = train_spec(
        small_config(steps=1_000_000, val_every=1_000_000, checkpoint_every=1_000_000),
        *data,
        tmp_path / "orphan",
    )
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(PARENT), str(path)], stderr=subprocess.PIPE)
    try:
        wait_for(lambda: (spec.directory / "work" / "metrics.jsonl").is_file())
        ranks = ranks_of(parent.pid)
        assert len(ranks) == 2
        os.kill(parent.pid, number)
        parent.wait(PATIENCE_S)
        gone, alive = psutil.wait_procs(ranks, timeout=PATIENCE_S)
        assert (len(gone), alive) == (2, [])
    finally:
        if parent.poll() is None:
            parent.kill()
        if parent.stderr:
            parent.stderr.close()
    assert len(resume_steps(spec.directory)) == 1  # saved where it was stopped, long before checkpoint_every
