"""Deployments started at once while a training uses every core: each runs to its end, one after the other, and none is lost.

`python -m tests.drills.queue [DEPLOYMENTS]` prints the figures as JSON.
"""

import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.drills.deployed import Deployed, deployed, until


def run(root: Path, number: int) -> dict[str, Any]:
    """Start a training on all cores, then `number` deployments at the same moment.

    Raises: AssertionError: one is lost, fails, is run twice, or two run at the same time.
    """
    with deployed(root) as site:
        return at_once(site, number)


def at_once(site: Deployed, number: int) -> dict[str, Any]:
    """As `run`, on an installation that is up."""
    ranks = os.cpu_count() or 1
    endless = {
        "seed": 11,
        "steps": 1_000_000,
        "val_every": 1_000_000,
        "checkpoint_every": 1_000_000,
        "batch_size": 2 * ranks,
    }
    training = site.start("train-local", recipe={"local": endless}, launcher={"ranks_per_node": ranks})
    site.training(training)
    with ThreadPoolExecutor(number) as pool:
        runs = list(pool.map(lambda _: site.start("split"), range(number)))
    assert [site.state(each) for each in runs] == ["SCHEDULED"] * number, "two runs at once"
    assert site.state(training) == "RUNNING"
    assert site.cancel(training) in ("CANCELLED", "CRASHED")
    ended = [site.ended(each) for each in runs]
    assert [each["state"]["type"] for each in ended] == ["COMPLETED"] * number
    assert [each["run_count"] for each in ended] == [1] * number
    spans = sorted((_time(each["start_time"]), _time(each["end_time"])) for each in ended)
    assert all(one[1] <= two[0] for one, two in pairwise(spans)), spans
    until(site.free)
    return {
        "deployments": number,
        "ranks": ranks,
        "complete": len(ended),
        "seconds": round(spans[-1][1] - spans[0][0], 1),
    }


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(run(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 5)) + "\n")
