"""The training subprocess as processes see it: kills, orphans, refusals. Real processes, really killed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from storage.artifacts import Ref, verify_artifact
from storage.checkpoints import load_tensors
from storage.errors import InputError
from tasks.run.stage import StageRun
from tasks.train.launch import TrainingFailedError, launch
from tasks.train.spec import TrainSpec
from tests.factories import global_config, local_config, make_data, train_spec


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    return make_data(tmp_path_factory.mktemp("data"))


def start(spec: TrainSpec, progress: Any = lambda done, total: None) -> Ref:
    return launch(spec, StageRun(spec.directory, None, "", {}), progress)


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true in time"
        time.sleep(0.1)


def resume_steps(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "work" / "checkpoints").glob("step-*"))


def test_configuration_in_reference_out(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    spec = train_spec(local_config(), *data, tmp_path / "local")
    seen: list[tuple[int, int]] = []
    ref = start(spec, lambda done, total: seen.append((done, total)))
    verify_artifact(ref)
    assert ref.kind == "checkpoint"
    assert seen[-1] == (6, 6)


def test_kill_minus_nine_then_again_gives_the_same_weights(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    config = local_config(preset="XS/4/0", steps=500, val_every=500, checkpoint_every=5)
    whole = start(train_spec(config, *data, tmp_path / "whole"))
    spec = train_spec(config, *data, tmp_path / "killed")

    def kill_after_ten(done: int, total: int) -> None:
        if done >= 10 and not killed:
            child = next(p for p in psutil.Process().children() if "tasks.train" in p.cmdline())
            child.kill()
            killed.append(child.pid)

    killed: list[int] = []
    with pytest.raises(TrainingFailedError, match=r"exit code -9.*resumes from"):
        start(spec, kill_after_ten)
    assert resume_steps(spec.directory)
    again = start(spec)
    for name in ("model", "ema"):
        a, b = load_tensors(whole.path / f"{name}.safetensors"), load_tensors(again.path / f"{name}.safetensors")
        assert all(np.array_equal(a[key], b[key]) for key in a)


def test_bad_input_comes_back_as_its_own_message(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    first = train_spec(local_config(), *data, tmp_path / "local")
    local = start(first)
    spec = train_spec(global_config(process={"noise_std": 1.0}), *data, tmp_path / "global", start=local)
    with pytest.raises(InputError, match=r"^process .*'noise_std': 1\.0.* differs"):
        start(spec)


def stand_in(path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A program in place of Python, which the subprocess would run."""
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(body)}")
    path.chmod(0o755)
    monkeypatch.setattr("tasks.train.launch.sys.executable", str(path))


def test_a_message_of_several_lines_comes_back_whole(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "two: things\nare: wrong:\n  with a \x1b sequence\n{}"
    body = f"""
        import sys
        from storage.errors import InputError
        from tasks.train.spec import EXIT_REFUSED, Refusal
        print("a library's own words", flush=True)
        print("an ERROR: of the log", file=sys.stderr)
        print(Refusal.of(InputError({message!r})).model_dump_json())
        print("a library's last words")
        sys.exit(EXIT_REFUSED)
    """
    stand_in(tmp_path / "python", monkeypatch, body)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    with pytest.raises(InputError) as caught:
        start(train_spec(local_config(), *data, tmp_path / "local"))
    assert str(caught.value) == message


BROKEN = """
from tasks.train import data
def broken(*_):
    raise ValueError("operands could not be broadcast\\x1b[2J")
data.ViewDataset.batch = broken
"""


def test_a_fault_leaves_its_traceback_in_the_log(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    spec = train_spec(local_config(), *data, tmp_path / "local")
    with pytest.raises(TrainingFailedError, match=r"ended with exit code 1\.") as caught:
        start(spec)
    path = spec.directory / "work" / "train.log"
    log = path.read_text()
    assert "Traceback (most recent call last):" in log
    assert "in broken" in log
    assert log.endswith("ValueError: operands could not be broadcast\\x1b[2J\n")
    assert "\x1b" not in log
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("ValueError: operands could not be broadcast\\x1b[2J")


PARENT = """
    import logging, sys
    from pathlib import Path
    from tasks.run.stage import StageRun
    from tasks.train.launch import launch
    from tasks.train.spec import TrainSpec
    spec = TrainSpec.model_validate_json(Path(sys.argv[1]).read_text())
    launch(spec, StageRun(spec.directory, None, "", {}), lambda done, total: None)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_training_dies_with_its_parent_and_saves_first(
    data: tuple[Ref, Ref], tmp_path: Path, number: signal.Signals
) -> None:
    spec = train_spec(
        local_config(preset="XS/4/0", steps=1_000_000, val_every=1_000_000, checkpoint_every=1_000_000),
        *data,
        tmp_path / "orphan",
    )
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(PARENT), str(path)], stderr=subprocess.PIPE)
    try:
        wait_for(lambda: (spec.directory / "work" / "metrics.jsonl").is_file())
        child = psutil.Process(parent.pid).children()[0]
        os.kill(parent.pid, number)
        parent.wait(30)
        wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 30)
    finally:
        if parent.poll() is None:
            parent.kill()
        if parent.stderr:
            parent.stderr.close()
    assert len(resume_steps(spec.directory)) == 1  # saved where it was stopped, long before checkpoint_every
