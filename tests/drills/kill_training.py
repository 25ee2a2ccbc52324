"""Kill -9 a training at random moments, again and again: the weights end as those of an uninterrupted one, bit by bit."""

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from storage.artifacts import Ref
from storage.checkpoints import load_tensors
from tasks.run.stage import StageRun
from tasks.train.launch import TrainingFailedError, launch
from tests.factories import local_config, make_split, make_store, train_spec


def run(root: Path, rounds: int) -> dict[str, Any]:
    """Train once undisturbed, then with `rounds` kills; figures of what was found.

    Raises: AssertionError: the weights differ.
    """
    store = make_store(root / "store")
    split = make_split(root / "split", store, ["v0", "v1"], ["v2"])
    config = local_config(preset="XS/4/0", steps=300, val_every=300, checkpoint_every=20)
    began = time.monotonic()
    whole = _train(train_spec(config, store, split, root / "whole"), None)
    seconds = time.monotonic() - began
    chance = random.Random(7)
    killed_at: list[int] = []
    spec = train_spec(config, store, split, root / "killed")
    ref: Ref | None = None
    for _ in range(rounds):
        try:
            ref = _train(spec, _Killer(chance.uniform(0.1, 0.9) * seconds, killed_at))
            break  # it finished before its time came
        except TrainingFailedError:
            continue
    ref = ref or _train(spec, None)
    for name in ("model", "ema"):
        a, b = load_tensors(whole.path / f"{name}.safetensors"), load_tensors(ref.path / f"{name}.safetensors")
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[key], b[key]) for key in a), name
    return {"rounds": rounds, "killed_at_step": killed_at, "uninterrupted_s": round(seconds, 2)}


class _Killer:
    """A progress callback that kills the trainer once its time has come."""

    def __init__(self, after_s: float, killed_at: list[int]) -> None:
        self.deadline = time.monotonic() + after_s
        self.killed_at = killed_at
        self.done = False

    def __call__(self, done: int, total: int) -> None:
        if self.done or time.monotonic() < self.deadline:
            return
        for child in psutil.Process().children():
            if "tasks.train" in child.cmdline():
                child.kill()
                self.killed_at.append(done)
                self.done = True


def _train(spec: Any, killer: _Killer | None) -> Ref:
    return launch(spec, StageRun(spec.directory, None, "", {}), killer or (lambda done, total: None))
