"""Kill -9 trainings at random moments, again and again: what they end with is that of undisturbed ones, bit by bit."""

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storage.artifacts import Ref
from storage.checkpoints import ResumeStates, load_tensors
from tasks.run.launchers.config import LauncherConfig
from tasks.run.stage import StageRun
from tasks.train.launch import launch
from tasks.train.spec import RESUME_STATES, TrainSpec
from tests.factories import global_config, local_config, make_data, train_spec, trained
from tests.processes import descendants, kill

MOMENTS = ("any time", "while a state is written", "just after a rename")
_LATEST_S = 8.0
CASES = (("local", 1), ("local", 2), ("global", 1), ("global", 2))


class LauncherKilledError(Exception):
    """Stands for the end of the launching process, whose children were killed."""


def run(
    root: Path, rounds: int, cases: Sequence[tuple[str, int]] = CASES, steps: int = 400, preset: str = "XS/10/0"
) -> dict[str, Any]:
    """Train undisturbed, and with `rounds` kills.

    Args:
        root: where to.
        rounds: kills of each case at most; a training may be over before.
        cases: stages, and on how many ranks.
        steps: of each training.
        preset: of the local network; one without overlap takes no global transformer on top.
    Returns: how many kills at which moments, and what they hit.
    Raises: AssertionError: weights, average, optimiser, points or digest differ.
    """
    data = make_data(root)
    chance = random.Random(7)
    settings = {"steps": steps, "batch_size": 2, "val_every": 100, "checkpoint_every": 7, "log_every": 9}
    local = trained(train_spec(local_config(preset=preset), *data, root / "start"))
    found: dict[str, Any] = {}
    for stage, ranks in cases:
        config = local_config(preset=preset, **settings) if stage == "local" else global_config(**settings)
        whole, killed = (
            train_spec(config, *data, root / f"{stage}-{ranks}-{name}", local if stage == "global" else None)
            for name in ("whole", "killed")
        )
        began = time.monotonic()
        expected = trained(whole) if ranks == 1 else _train(whole, ranks, None)
        seconds = time.monotonic() - began
        hits: Counter[str] = Counter()
        ref: Ref | None = None
        while sum(hits.values()) < rounds and ref is None:
            try:
                ref = _train(killed, ranks, _Killer(killed, chance, hits, rounds))
            except LauncherKilledError:
                continue
        ref = ref or _train(killed, ranks, None)
        assert ref.digest == expected.digest, (stage, ranks)
        _same_states(whole, killed)
        log = (killed.directory / "work" / "node-0.log").read_text()
        found[f"{stage}, {ranks} rank(s)"] = {
            "kills": sum(hits.values()),
            "moments": dict(hits),
            "resumed": log.count("resuming from step") // ranks,
            "undisturbed_s": round(seconds, 1),
        }
    return {"rounds": rounds, "identical": sorted(found), **found}


class _Killer:
    """Kills one rank, or all processes of the launch, at one moment after the other; called as progress."""

    def __init__(self, spec: TrainSpec, chance: random.Random, hits: Counter[str], most: int) -> None:
        self._folder = spec.directory / "work" / RESUME_STATES
        self._chance = chance
        self._hits = hits
        self._most = most
        self._launcher_gone = False
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def __call__(self, done: int, total: int) -> None:
        if self._launcher_gone:
            raise LauncherKilledError

    def end(self) -> None:
        """The launch is over."""
        self._over.set()

    def _watch(self) -> None:
        while sum(self._hits.values()) < self._most and not self._launcher_gone:
            before = self._names()
            while self._names() <= before:  # it has begun to train, and has come further
                if self._over.wait(0.05):
                    return
            if self._over.wait(self._chance.uniform(0.0, 2.0)):
                return
            self._kill_at(self._chance.choice(MOMENTS))

    def _kill_at(self, moment: str) -> None:
        before, deadline = self._names(), time.monotonic() + _LATEST_S
        while not self._over.is_set() and time.monotonic() < deadline:
            now = self._names()
            writing = any(name.startswith(".step-") for name in now)
            renamed = any(name.startswith("step-") for name in now - before)
            if {"any time": True, MOMENTS[1]: writing, MOMENTS[2]: renamed}[moment]:
                self._kill(moment)
                return
            time.sleep(0.0005)

    def _kill(self, moment: str) -> None:
        tree, ranks = descendants(), descendants(None, "tasks.train ")
        if not ranks:
            return
        everything = self._chance.random() < 0.5
        kill(tree if everything else [self._chance.choice(ranks)])
        self._launcher_gone = everything
        self._hits[f"{moment}, {'all processes' if everything else 'one rank'}"] += 1

    def _names(self) -> set[str]:
        return {path.name for path in self._folder.iterdir()} if self._folder.is_dir() else set()


def _train(spec: TrainSpec, ranks: int, killer: _Killer | None) -> Ref:
    launcher = LauncherConfig(ranks_per_node=ranks, timeout_s=20)
    try:
        return launch(spec, StageRun(spec.directory, None, "", {}), killer or (lambda done, total: None), launcher)
    finally:
        if killer:
            killer.end()


def _same_states(whole: TrainSpec, killed: TrainSpec) -> None:
    """The last states are the same but for the time they took: position, weights, averages, moments, buffers."""
    states = []
    for spec in (whole, killed):
        found = ResumeStates(spec.directory / "work" / RESUME_STATES).newest_good()
        assert found is not None
        states.append(found)
    (position, groups), (other_position, other_groups) = states
    took = {"seconds": 0.0}  # differ
    assert position.model_copy(update=took) == other_position.model_copy(update=took)
    assert groups.keys() == other_groups.keys()
    for group, tensors in groups.items():
        assert tensors.keys() == other_groups[group].keys()
        assert all(np.array_equal(value, other_groups[group][name]) for name, value in tensors.items()), group
    for name in ("model", "ema"):
        a, b = (load_tensors(spec.directory / f"{name}.safetensors") for spec in (whole, killed))
        assert all(np.array_equal(a[key], b[key]) for key in a), name
