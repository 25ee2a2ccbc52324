"""Damage a store in every way, again and again: each is noticed by `prdit verify`, and repaired from the source."""

import shutil
import time
from pathlib import Path
from typing import Any

from storage.phantom.series import write_demo_data
from storage.snapshots import newest
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tasks.maintain.verify import verify_store
from tasks.run.runners import Local
from tests.store_damage import DAMAGE


def run(root: Path, rounds: int) -> dict[str, Any]:
    """Every kind of damage `rounds` times, each on the store that the last repair left.

    Raises: AssertionError: one is not noticed, or the repaired store is not what it was.
    """
    config = IngestConfig(spacing_mm=4.0, patient_key_file=str(root / "key"))
    write_demo_data(root / "source", num_patients=2, small=True)
    store = root / "store"
    digest = ingest(root / "source", store, config, runner=Local(1)).snapshot
    whole = {
        volume_id: VolumeStore.open(store).commit_record(volume_id)
        for volume_id in VolumeStore.open(store).volume_ids()
    }
    table = {}
    for what, (damage, kind) in DAMAGE.items():
        began = time.monotonic()
        for number in range(rounds):
            damage(store)
            found, _ = verify_store(store, num_workers=1)
            assert kind in {finding.kind for finding in found}, (what, found)
            ingest(root / "source", store, config, repair=True, runner=Local(1))
            assert verify_store(store, num_workers=1) == ([], []), (what, number)
            opened = VolumeStore.open(store)
            assert {volume_id: opened.commit_record(volume_id) for volume_id in opened.volume_ids()} == whole, what
            assert newest(opened).digest == digest, what
        seconds = round((time.monotonic() - began) / rounds, 2)
        table[what] = {"noticed_as": kind, "repaired": rounds, "seconds_each": seconds}
    shutil.rmtree(store)
    return {"rounds": rounds, "damage": table}
