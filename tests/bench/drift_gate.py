"""How often the drift gate holds good batches, and what it catches: `python -m tests.bench.drift_gate [STORE…] [--batches 300]`.

Phantoms in random batches against random stores of them; then each volume of a STORE of real scans against the others in it, and
against nothing: as it is, and with its HU shifted, an axis flipped, or noise added under another id. Prints a Markdown table.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from storage.artifacts import Ref
from storage.documents.snapshot import Snapshot, SnapshotVolume
from storage.snapshots import load_snapshot, newest, snapshot_file, snapshot_ref
from storage.volume_store import VolumeStore
from tasks.drift.config import DriftConfig
from tasks.drift.gate import check_drift
from tests.unit.tasks.drift_store import DriftStore, Hu

CONFIG = DriftConfig()
_EDGE_MM = 256


def changes(hu: Hu, rng: np.random.Generator) -> Iterator[tuple[str, Hu]]:
    """What is done to a volume, by name."""
    yield "as it is", hu
    for shift in (50, 100, 200, -50, -100, -200):
        yield f"HU {shift:+d}", np.maximum(hu + shift, -1024)
    for axis, name in enumerate(("up and down", "front and back", "left and right")):
        yield f"{name} flipped", np.flip(hu, axis).copy()
    yield "a noisy copy of a listed one", hu + rng.normal(0, 6, hu.shape).astype(np.float32)


def snapshot_of(store: VolumeStore, volumes: dict[str, SnapshotVolume]) -> Ref | None:
    """A snapshot of some volumes, which is not the newest."""
    if not volumes:
        return None
    made = Snapshot(grid=store.grid, volumes=dict(sorted(volumes.items())))
    made.put(snapshot_file(store.path, made.digest))
    return snapshot_ref(store.path, made.digest)


def good_batches(number: int) -> str:
    """How many batches of 1 to 5 of 80 phantoms are held, against stores of 3 to 60 others."""
    with tempfile.TemporaryDirectory() as folder:
        lab = DriftStore(Path(folder) / "store")
        pool = lab.phantoms(range(80), seed=11)
        rng, held = np.random.default_rng(1), []
        for _ in range(number):
            order = rng.permutation(list(pool))
            listed, new = int(rng.integers(3, 61)), int(rng.integers(1, 6))
            reference = snapshot_of(lab.store, {name: pool[name] for name in order[:listed]})
            batch = {name: pool[name] for name in order[listed : listed + new]}
            held += [one.name for one in check_drift(lab.store, batch, reference, CONFIG).findings[:1]]
    return f"held {len(held)} of {number} batches of phantoms ({', '.join(sorted(held)) or 'none'})"


def caught(volumes: dict[str, tuple[Hu, str]]) -> dict[str, list[str]]:
    """For each change: which volumes are held against the others, and against an empty store, of how many."""
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        lab, rng = DriftStore(Path(folder) / "store"), np.random.default_rng(0)
        plain: dict[str, SnapshotVolume] = {}
        for name, (hu, patient) in volumes.items():
            plain |= lab.put(name, hu, patient=patient)
        for name, (hu, patient) in volumes.items():
            others = {one: listed for one, listed in plain.items() if listed.patient_key != patient}
            for number, (what, changed) in enumerate(changes(hu, rng)):
                copy = "copy" in what
                new = lab.put(f"{name}-{number}", changed, patient="another" if copy else patient)
                for where, listed in (("store", plain if copy else others), ("empty", {})):
                    verdict = check_drift(lab.store, new, snapshot_of(lab.store, listed), CONFIG)
                    found.setdefault(f"{what}/{where}", []).append(verdict.findings[0].name if verdict.findings else "")
    return found


def real(path: Path) -> dict[str, tuple[Hu, str]]:
    """Volumes of a store in the box of 256 mm at 4 mm, with their patients."""
    store = VolumeStore.open(path)
    edge = round(_EDGE_MM / store.spacing_mm)
    listed = load_snapshot(newest(store)).volumes
    return {name: (store.read_view(name, 64, edge), one.patient_key) for name, one in listed.items()}


def main(arguments: list[str]) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", nargs="*", type=Path)
    parser.add_argument("--batches", type=int, default=300)
    given = parser.parse_args(arguments)
    from tests.unit.tasks.drift_store import phantom

    sys.stdout.write(good_batches(given.batches) + "\n\n")
    groups = {"phantoms": {f"p{k}": (phantom(k, seed=11), f"patient{k}") for k in range(12)}}
    groups |= {str(path.parent.name): real(path) for path in given.stores}
    results = {name: caught(volumes) for name, volumes in groups.items()}
    sys.stdout.write("| held | " + " | ".join(f"{name}, store | {name}, empty" for name in results) + " |\n")
    sys.stdout.write("|---" * (1 + 2 * len(results)) + "|\n")
    for what in dict.fromkeys(key.split("/")[0] for key in next(iter(results.values()))):
        cells = []
        for rows in results.values():
            for where in ("store", "empty"):
                names = rows[f"{what}/{where}"]
                cells.append(f"{sum(map(bool, names))}/{len(names)}")
        sys.stdout.write(f"| {what} | {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main(sys.argv[1:])
