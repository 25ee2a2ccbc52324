"""Run every drill: `python -m tests.drills [ROUNDS] [SHOTS]`; one JSON object on stdout.

SHOTS is the folder for the browser's screenshots.
"""

import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tests import namespaces, slurm
from tests.drills import (
    arrivals,
    at_once,
    browser,
    bucket_ingest,
    corpus,
    damaged_states,
    forgetting,
    keeper,
    kill_ingest,
    kill_launcher,
    kill_training,
    lost_hosts,
    memorisation,
    queue,
    retraining,
    sampling,
    services,
    slurm_losses,
    slurm_pipeline,
    store_damage,
    torch_versions,
    tracking_away,
    year,
    zombies,
)

if __name__ == "__main__":
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    shots = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    drills = {
        "corpus": corpus.run,
        "kill_ingest": kill_ingest.run,
        "bucket_ingest": bucket_ingest.run,
        "kill_launcher": kill_launcher.run,
        "kill_training": kill_training.run,
        "sampling": sampling.run,
        "damaged_states": damaged_states.run,
        "forgetting": forgetting.run,
        "store_damage": store_damage.run,
        "at_once": at_once.run,
        "arrivals": arrivals.run,
        "browser": partial(browser.run, shots=shots),
        "lost_hosts": lambda folder, _: {"missing": why} if (why := namespaces.missing()) else lost_hosts.run(folder),
        "slurm_losses": lambda folder, _: {"missing": why} if (why := slurm.missing()) else slurm_losses.run(folder),
        "slurm_pipeline": lambda folder, _: (
            {"missing": why} if (why := slurm.missing()) else slurm_pipeline.run(folder)
        ),
        "tracking_away": tracking_away.run,
        "memorisation": memorisation.run,
        "retraining": lambda folder, _: retraining.run(folder),
        "queue": lambda folder, _: queue.run(folder, 5),
        "zombies": lambda folder, rounds: zombies.run(folder, min(rounds, 5)),
        "services": lambda folder, _: services.run(folder),
        "keeper": lambda folder, rounds: keeper.run(folder, min(rounds, 5)),
        "year": year.run,
        "torch_versions": lambda folder, _: torch_versions.run(folder),
    }
    results = {}
    for name, drill in drills.items():
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            results[name] = drill(Path(folder), rounds) | {"seconds": round(time.monotonic() - began, 1)}
    sys.stdout.write(json.dumps(results) + "\n")
