"""Kill -9 ingests into a bucket while connections are cut and the server says "slow down"; source and store lie in it.

The store ends as if nothing had happened: the same snapshot as of an undisturbed ingest with the same key, no volume twice.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import pytest

from storage.phantom.series import write_demo_data
from storage.places import as_place
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tasks.maintain.verify import verify_store
from tasks.run.runners import Local
from tests.drills.kill_ingest import check_once
from tests.drills.killing import kill_in_turn, verified, wait_for_commits
from tests.parity.location import REPOSITORY
from tests.s3 import BUCKET, Faults, s3_server, use

_FAULTS = ("cut", "cut-before", "503")
_SHARE = 0.06  # of the requests that are broken


def run(root: Path, rounds: int) -> dict[str, Any]:
    """Disturb `rounds` ingests, then let one finish; figures of what was found.

    Raises: AssertionError: a committed volume is damaged or there twice, or the final store differs from an undisturbed one.
    """
    write_demo_data(root / "demo", num_patients=8, small=True)
    with s3_server() as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRDIT_CACHE", str(root / "cache"))
        patch.chdir(root)
        source, whole, killed = (as_place(f"s3://{BUCKET}/{name}") for name in ("incoming", "whole", "killed"))
        upload(root / "demo", "incoming")
        began = time.monotonic()
        undisturbed = ingest(source, whole, config(root), runner=Local(2))
        seconds = time.monotonic() - began
        chance, broken = random.Random(11), Counter[str]()
        committed, kills = [], Counter[str]()

        def rule(method: str, path: str, number: int) -> str:
            what = chance.choice(_FAULTS) if chance.random() < _SHARE else ""
            if what:
                broken[what] += 1
            return what

        faults = Faults(address)
        faults.rule = rule
        try:
            for number in range(rounds):
                if number == 0 or committed[-1] == len(undisturbed.committed):  # nothing would be left to disturb
                    killed.delete_below()
                child = subprocess.Popen(
                    [sys.executable, "-m", "tests.drills.bucket_ingest", "ingest", str(root)],
                    env={**os.environ, "AWS_ENDPOINT_URL_S3": faults.address, "PYTHONPATH": str(REPOSITORY)},
                )
                while child.poll() is None and not (killed / "zarr.json").is_file():
                    time.sleep(0.02)
                wait_for_commits(child, killed, chance.randrange(3))
                time.sleep(chance.uniform(0.0, 1.0))
                kills.update(kill_in_turn(child, number, chance))
                committed.append(verified(killed))
            use(patch, faults.address)
            final = ingest(source, killed, config(root), runner=Local(2))
        finally:
            faults.stop()
            use(patch, address)
        assert final.snapshot == undisturbed.snapshot, (final, undisturbed)
        check_once(killed, whole)
        assert verify_store(killed, num_workers=1) == ([], [])
    return {
        "rounds": rounds,
        "committed_after_each_kill": committed,
        "killed": dict(sorted(kills.items())),
        "broken_requests": dict(sorted(broken.items())),
        "undisturbed_s": round(seconds, 2),
    }


def upload(folder: Path, prefix: str) -> None:
    """Put the files of a folder into the bucket."""
    client = boto3.client("s3")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder).as_posix()}")


def config(root: Path) -> IngestConfig:
    """Settings of all ingests: one key."""
    return IngestConfig(spacing_mm=2.0, patient_key_file=str(root / "key"))


if __name__ == "__main__":
    if sys.argv[1] == "ingest":
        place = as_place(f"s3://{BUCKET}/killed")
        ingest(as_place(f"s3://{BUCKET}/incoming"), place, config(Path(sys.argv[2])), runner=Local(2))
    else:
        sys.stdout.write(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
