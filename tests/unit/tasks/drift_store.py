"""Stores of phantoms that take milliseconds, for tests of the drift gate."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.artifacts import Ref
from storage.documents.snapshot import SnapshotVolume
from storage.documents.volume import ScanFacts
from storage.geometry import Volume
from storage.snapshots import list_all
from storage.volume_store import VolumeStore
from tests.phantoms import phantom_box

NOISE_HU = 14 / 8  # of phantoms at 1 mm, averaged over blocks of 4³
Hu = NDArray[np.float32]


class DriftStore:
    """A store at 4 mm whose volumes are put into it, and listed, by hand."""

    def __init__(self, path: Path) -> None:
        self.store = VolumeStore.create(path, spacing_mm=4.0, num_levels=1, interpolation="linear")

    def put(
        self, name: str, hu: Hu, *, patient: str = "", scan: str = "", slice_mm: float = 2.5
    ) -> dict[str, SnapshotVolume]:
        """Commit a volume; how it would be listed."""
        voxels = np.rint(np.clip(hu, -1024, 3000)).astype(np.int16)
        facts = ScanFacts(
            scan=scan or name,
            files_digest=name,
            recipe=2,
            num_slices=60,
            num_duplicates=0,
            spacing_mm=(0.8, 0.8, slice_mm),
            tilt_deg=0.0,
            cut={},
            completeness="unknown",
        )
        self.store.write(Volume(voxels, (4.0,) * 3, (0.0,) * 3), volume_id=name, attributes={}, scan=facts)
        listed = SnapshotVolume(patient_key=patient or f"patient-{name}", patient_known=True, shape=voxels.shape)
        return {name: listed}

    def phantoms(self, numbers: range, *, seed: int = 5, prefix: str = "p") -> dict[str, SnapshotVolume]:
        """Commit phantoms of a seed."""
        found: dict[str, SnapshotVolume] = {}
        for number in numbers:
            found |= self.put(f"{prefix}{number}", phantom(number, seed=seed))
        return found

    def listed(self, volumes: Mapping[str, SnapshotVolume]) -> Ref:
        """The snapshot after listing them."""
        return list_all(self.store, volumes, "test")


def phantom(number: int, *, seed: int = 5) -> Hu:
    """One of the phantoms, 64³ voxels of 4 mm."""
    return phantom_box(number, 64, seed=seed, noise_hu=NOISE_HU)
