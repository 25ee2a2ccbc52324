"""Two processes make one store, and ingest different and equal scans into it, at the same moment: nothing is lost or doubled."""

import multiprocessing
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from storage.phantom.series import write_demo_data
from storage.snapshots import history, load_snapshot, newest
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tasks.maintain.verify import verify_store
from tasks.run.runners import Local

CONFIG = IngestConfig(spacing_mm=4.0)


def run(root: Path, rounds: int) -> dict[str, Any]:
    """`rounds` times two creators of an empty store, then two first ingests: of one source, and of two that share scans.

    Raises: AssertionError: stores differ from those of one process after the other.
    """
    write_demo_data(root / "A", num_patients=3, small=True)
    write_demo_data(root / "B", num_patients=3, small=True, seed=8)
    for folder in sorted((root / "A").iterdir())[:2]:  # B has two of A's scans as well
        folder.rename(shared := root / "B" / f"of-A-{folder.name}")
        shutil.copytree(shared, folder)
    alone = root / "alone" / "store"
    for name in ("A", "B"):
        _ingest(root, alone, name)
    expected = set(load_snapshot(newest(VolumeStore.open(alone))).volumes)
    began = time.monotonic()
    two_steps = 0
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(2, mp_context=context) as pool:
        for number in range(rounds):
            turn = manager.Barrier(2)
            made = root / f"made-{number}"
            grids = list(pool.map(_create, [made] * 2, [turn] * 2))
            assert grids[0] == grids[1], grids
            for names in (("A", "A"), ("A", "B")):
                store = root / f"at-once-{number}-{names[1]}" / "store"
                list(pool.map(_ingest, [root] * 2, [store] * 2, names, [turn] * 2))
                opened = VolumeStore.open(store)
                listed = set(load_snapshot(newest(opened)).volumes)
                assert listed == set(opened.volume_ids()), names
                assert names == ("A", "A") or listed == expected, (listed, expected)
                assert verify_store(store, num_workers=1) == ([], []), names
                two_steps += len(history(store).numbers()) > 1
    seconds = round(time.monotonic() - began, 1)
    return {"rounds": rounds, "stores": 3 * rounds, "histories_of_two": two_steps, "seconds_all": seconds}


def _create(path: Path, turn: Any) -> str:
    turn.wait()
    return VolumeStore.create(path, **CONFIG.grid.model_dump()).grid.model_dump_json()


def _ingest(root: Path, store: Path, name: str, turn: Any = None) -> None:
    if turn is not None:
        turn.wait()
    # Each store makes its own key: two first ingests race for it, too.
    ingest(root / name, store, CONFIG, runner=Local(1))
