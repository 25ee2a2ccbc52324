"""Kill -9 the process that launches a training, again and again, and launch at once: never are there two writers."""

import os
import random
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from storage.artifacts import Ref
from tasks.run.launchers.config import LauncherConfig
from tasks.run.stage import StageRun
from tasks.train.launch import launch
from tasks.train.spec import TrainSpec
from tests.factories import local_config, make_data, train_spec, trained

_LAUNCHER = """
import sys
from pathlib import Path
from tasks.run.launchers.config import LauncherConfig
from tasks.run.stage import StageRun
from tasks.train.launch import launch
from tasks.train.spec import TrainSpec
spec = TrainSpec.model_validate_json(Path(sys.argv[1]).read_text())
ranks = LauncherConfig(ranks_per_node=int(sys.argv[2]))
launch(spec, StageRun(spec.directory, None, "", {}), lambda done, total: None, ranks)
"""
# Every rank notes when it was allowed to write: launch, begin, end.
_RANK = """
import os
if "RANK" in os.environ:
    import time
    from contextlib import contextmanager
    import storage.lease as lease
    real = lease.guard
    @contextmanager
    def guard(folder, token):
        with real(folder, token):
            begin = time.monotonic_ns()
            yield
            line = f"{token} {begin} {time.monotonic_ns()}\\n".encode()
            with open(folder / "writes", "ab", buffering=0) as stream:
                stream.write(line)
    lease.guard = guard
"""


def run(
    root: Path, rounds: int, steps: int = 500, ranks: int = 2, latest_s: float = 6.0, preset: str = "XS/10/0"
) -> dict[str, Any]:
    """Kill so many launchers; the next one is started at once, while ranks of the one before live.

    Args:
        root: an empty folder.
        rounds: launchers to kill; a training may be over before.
        steps: of the training.
        ranks: of each launch.
        preset: of the network; a state of "XS/10/0" has 200 MB, one of "XS/4/0" 2.
        latest_s: a launcher is killed up to so long after its ranks have written.
    Returns: how many ranks lived when the next launch began, and how often each launch wrote.
    Raises: AssertionError: a launch wrote after a newer one had, or at the same time; or the artifact is another.
    """
    data = make_data(root)
    config = local_config(preset=preset, steps=steps, val_every=steps, checkpoint_every=3, log_every=2)
    (root / "sitecustomize.py").write_text(_RANK)
    path = os.pathsep.join([str(root), *filter(None, sys.path)])
    launcher = LauncherConfig(ranks_per_node=ranks)
    whole = train_spec(config, *data, root / "whole")
    expected = _undisturbed(whole, launcher)
    spec = train_spec(config, *data, root / "killed")
    (root / "spec.json").write_text(spec.model_dump_json())
    chance, alive = random.Random(11), []
    for _ in range(rounds):
        with (root / "launchers.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCHER, str(root / "spec.json"), str(ranks)],
                env=os.environ | {"PYTHONPATH": path},
                stdout=log,
                stderr=log,
            )
        _wait_for_more(spec, process)
        time.sleep(chance.uniform(0.0, latest_s))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        alive.append(len(_ranks(spec)))
    sys.path.insert(0, str(root))  # which the launcher passes on to the ranks
    try:
        ref = launch(spec, StageRun(spec.directory, None, "", {}), lambda done, total: None, launcher)
    finally:
        sys.path.remove(str(root))
    assert ref.digest == expected.digest, "the killed launches made another artifact"
    writes = sorted(
        tuple(map(int, line.split())) for line in (spec.directory / "work" / "writes").read_text().splitlines()
    )
    in_order = sorted(writes, key=lambda write: write[1])
    assert in_order == writes, "an older launch wrote after a newer one"
    assert all(first[2] <= second[1] for first, second in pairwise(in_order)), "two wrote at once"
    counts = {token: sum(write[0] == token for write in writes) for token in sorted({write[0] for write in writes})}
    return {"launchers_killed": len(alive), "ranks_alive_after_each_kill": alive, "writes_of_each_launch": counts}


def _undisturbed(spec: TrainSpec, launcher: LauncherConfig) -> Ref:
    """The artifact of a training that nobody disturbs; one rank does in a process of its own what it does in this one."""
    if launcher.ranks_per_node == 1:
        return trained(spec)
    return launch(spec, StageRun(spec.directory, None, "", {}), lambda done, total: None, launcher)


def _wait_for_more(spec: TrainSpec, process: "subprocess.Popen[bytes]") -> None:
    """Wait until the ranks have written something (or the launch is over)."""
    path = spec.directory / "work" / "writes"
    before, deadline = path.stat().st_size if path.exists() else 0, time.monotonic() + 120
    while process.poll() is None and (path.stat().st_size if path.exists() else 0) == before:
        assert time.monotonic() < deadline, "a launch has written nothing for two minutes"
        time.sleep(0.05)


def _ranks(spec: TrainSpec) -> list[psutil.Process]:
    folder = str(spec.directory)
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if "tasks.train" in (p.info["cmdline"] or ()) and folder in " ".join(p.info["cmdline"])]
