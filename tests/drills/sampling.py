"""Samples by one, two and three workers, and by runs that are killed again and again, are the same bytes.

"workers": one or two processes of a run die (those that draw, Dask's workers, their nannies) while it goes on and ends. "run": the
run dies, its workers are left to notice. "everything": all die at once.
"""

import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from storage.artifacts import Ref, artifact_files
from storage.documents.samples import Samples
from tasks.run.runners import Local
from tasks.sample.config import SampleConfig
from tasks.sample.run import STORE_NAME, sample
from tests.drills.killing import kill_in_turn, verified, wait_for_commits
from tests.factories import make_data
from tests.unit.tasks.checkpoints import commit_pair


def run(root: Path, rounds: int, workers: tuple[int, ...] = (1, 2, 3), num_volumes: int = 12) -> dict[str, Any]:
    """Draw by some numbers of workers, then disturb `rounds` samplings at random moments and let one finish.

    Raises: AssertionError: a committed volume is damaged, a run did not survive its workers, workers survived their run, or
        what was made is not what one process makes.
    """
    checkpoint, config = commit_pair(root, *make_data(root))[1], _config(num_volumes)
    began = time.monotonic()
    sample(checkpoint, config, root / "whole", _silent)
    seconds = {"one process": round(time.monotonic() - began, 1)}
    whole = artifact_files(root / "whole")
    for count in workers:
        began = time.monotonic()
        sample(checkpoint, config, root / f"by-{count}", _silent, runner=Local(count))
        seconds[f"{count} worker(s)"] = round(time.monotonic() - began, 1)
        assert artifact_files(root / f"by-{count}") == whole, f"{count} workers made other bytes than one process"
    chance = random.Random(11)
    committed: list[int] = []
    killed = Counter[str]()
    for number in range(rounds):
        if not committed or committed[-1] >= num_volumes - 2:  # nothing would be left to disturb
            shutil.rmtree(root / "killed", ignore_errors=True)
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.drills.sampling",
                "sample",
                str(root),
                checkpoint.model_dump_json(),
                str(num_volumes),
            ]
        )
        wait_for_commits(child, root / "killed" / STORE_NAME, chance.randint(1, 3))
        killed.update(kill_in_turn(child, number, chance))
        committed.append(verified(root / "killed" / STORE_NAME))
    sample(checkpoint, config, root / "killed", _silent, runner=Local(2))
    assert artifact_files(root / "killed") == whole, "killed runs made other bytes than one that was left alone"
    samples = Samples.load(root / "killed")
    return {
        "rounds": rounds,
        "volumes": num_volumes,
        "files_compared": len(whole),
        "drawn_again_by_the_policy": samples.redraw.num_redrawn,
        "equal": ["one process", *(f"{count} worker(s)" for count in workers), "after all kills"],
        "committed_after_each_kill": committed,
        "killed": dict(sorted(killed.items())),
        "seconds": seconds,
    }


def _config(num_volumes: int) -> SampleConfig:
    """Of a tiny network, with so many evaluations that there is time to kill; some are drawn again, as they are no chests."""
    redraw = {"most": 1, "anatomy": True}
    values = {"num_volumes": num_volumes, "num_steps": 100, "device": "cpu", "preview_every": 4, "redraw": redraw}
    return SampleConfig.model_validate(values)


def _silent(done: int, total: int) -> None:
    """No progress."""


if __name__ == "__main__":
    if sys.argv[1] == "sample":
        sample(
            Ref.model_validate_json(sys.argv[3]),
            _config(int(sys.argv[4])),
            Path(sys.argv[2]) / "killed",
            _silent,
            runner=Local(2),
        )
    else:
        sys.stdout.write(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
