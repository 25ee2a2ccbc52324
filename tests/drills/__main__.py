"""Run every drill: `python -m tests.drills [ROUNDS]`; one JSON object on stdout."""

import json
import sys
import tempfile
import time
from pathlib import Path

from tests.drills import kill_ingest, kill_training

DRILLS = {"kill_ingest": kill_ingest.run, "kill_training": kill_training.run}

if __name__ == "__main__":
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    results = {}
    for name, drill in DRILLS.items():
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            results[name] = drill(Path(folder), rounds) | {"seconds": round(time.monotonic() - began, 1)}
    sys.stdout.write(json.dumps(results) + "\n")
