"""What the tests of formats with one scan per file share."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.errors import UnusableSeriesError
from storage.resample import resample_series
from storage.sources.formats import FORMATS, file_facts
from storage.sources.source import FileFacts, Limits, ScanRequest, SourceVolume
from tests.unit.storage.dicom_files import linear_hu

SHAPE = (22, 24, 20)  # (k, j, i)
SPACING = (1.5, 1.3, 2.0)  # (i, j, k)
VALUES = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)

_c, _s = np.cos(np.deg2rad(15)), np.sin(np.deg2rad(15))
_TURN = np.array([[_c, -_s, 0], [_s, _c, 0], [0, 0, 1]])
_TIP = np.array([[1, 0, 0], [0, _c, -_s], [0, _s, _c]])
DIRECTIONS = {
    "supine": np.eye(3),
    "prone": np.diag([-1.0, -1.0, 1.0]),
    "feet first": np.diag([-1.0, 1.0, -1.0]),
    "from above, left-handed": np.diag([1.0, 1.0, -1.0]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]]),
    "sagittal": np.array([[0, 0, 1.0], [1.0, 0, 0], [0, -1.0, 0]]),
    "oblique": _TURN @ _TIP,
    "oblique, left-handed": _TURN @ _TIP @ np.diag([-1.0, 1.0, 1.0]),
}


def centre_origin(steps: np.ndarray) -> np.ndarray:
    """Origin of a scan of `SHAPE` whose centre is at (-31, 17, 40)."""
    return np.array([-31.0, 17.0, 40.0]) - steps @ ((np.asarray(SHAPE[::-1]) - 1) / 2)


def world_linear(steps: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """`linear_hu` at the voxels (k, j, i) of a scan of `SHAPE`."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    return linear_hu(np.stack([i, j, k], axis=-1) @ steps.T + origin)


def facts_of(path: Path) -> FileFacts:
    with path.open("rb") as stream:
        return file_facts(stream, path)


def load(source: Path, *names: str, spacing_mm: Any = None, **limits: Any) -> SourceVolume:
    facts = facts_of(source / names[0])
    assert facts.reason == ""
    request = ScanRequest(source, names, facts.scan, Limits(**limits), spacing_mm=spacing_mm)
    (volume,) = FORMATS[facts.format].load(request)
    return volume


def refused(source: Path, *names: str, **limits: Any) -> UnusableSeriesError:
    with pytest.raises(UnusableSeriesError) as caught:
        load(source, *names, **limits)
    assert str(caught.value).startswith(f"Scan {facts_of(source / names[0]).scan} ")
    assert not [name for name in names if name in str(caught.value)]
    return caught.value


def assert_world_linear(scan: SourceVolume, tolerance: float = 1.0) -> None:
    """HU of a scan on the store's grid are `linear_hu` where its voxels are, away from its faces."""
    steps = scan.direction * np.asarray(scan.spacing_mm)
    volume = resample_series(scan, spacing_mm=1.0, interpolation="cubic")
    world = np.random.default_rng(0).uniform(5, 14, (200, 3)) @ steps.T + np.asarray(scan.origin_mm)
    place = np.rint(volume.index_of(world)).astype(int)
    expected = linear_hu(volume.world_mm(place.astype(float)))
    assert np.abs(volume.hu[tuple(place.T)] - expected).max() <= tolerance
