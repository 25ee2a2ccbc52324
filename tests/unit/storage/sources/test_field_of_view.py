"""Fill outside the field of view that no tag declares: one value, the same in every plane."""

from pathlib import Path

import numpy as np
import pytest

from storage.geometry import FILL_HU
from storage.resample import resample_series
from storage.sources import dicom_pixels
from storage.sources.dicom_series import load_series
from storage.sources.field_of_view import mark_outside_field_of_view
from storage.sources.source import ScanRequest, SourceVolume

NUM, EDGE = 12, 48
Y, X = np.mgrid[:EDGE, :EDGE]
RADIUS = np.hypot(Y - 23.5, X - 23.5)
TISSUE = np.random.default_rng(0).integers(20, 80, (NUM, EDGE, EDGE)).astype(np.int16)
TISSUE[:, 20:28, 22:26] -= 900
SHAPES = {
    "circle cut by the edges": RADIUS > 24,
    "circle within the plane": RADIUS > 19,
    "corners": np.minimum(X, EDGE - 1 - X) + np.minimum(Y, EDGE - 1 - Y) < 8,
    "one corner": X + Y < 12,
    "rows above": Y < 5,
    "a frame": (np.minimum(X, EDGE - 1 - X) < 3) | (np.minimum(Y, EDGE - 1 - Y) < 3),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", [-1024, -1000, 0, 3071, 5096, 8000, 20000])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_outside_of_one_value_is_fill(shape: str, value: int, dtype: type) -> None:
    hu = np.where(SHAPES[shape], value, TISSUE).astype(dtype)
    notes = mark_outside_field_of_view(hu)
    np.testing.assert_array_equal(hu, np.where(SHAPES[shape], FILL_HU, TISSUE))
    count = NUM * int(SHAPES[shape].sum())
    said = f"{count} of {hu.size} voxels outside the field of view, all of {value} HU, were taken as fill: -1024 HU"
    assert notes == (() if value == -1024 else (said,))


def test_a_mask_of_each_plane_far_above_tissue() -> None:
    masks = np.stack([23 - k % 5 < RADIUS for k in range(NUM)])
    hu = np.where(masks, 8000, TISSUE).astype(np.int16)
    hu[3, 20:22, 20:22] = 8000  # metal
    expected = np.where(masks, FILL_HU, TISSUE)
    expected[3, 20:22, 20:22] = 8000
    assert mark_outside_field_of_view(hu)
    np.testing.assert_array_equal(hu, expected)


ELLIPSE = ((Y - 23.5) / 20) ** 2 + ((X - 23.5) / 13) ** 2 > 1
STAYS = {
    "air around a patient": np.where(ELLIPSE, -1000, TISSUE),
    "air around a patient who changes": np.where(ELLIPSE | (40 - np.arange(NUM)[:, None, None] % 4 < X), -1024, TISSUE),
    "air with noise": np.where(RADIUS > 24, -1024 + np.random.default_rng(1).integers(0, 3, TISSUE.shape), TISSUE),
    "air that is not the lowest": np.where(RADIUS > 24, -1000, np.where(RADIUS < 5, -1020, TISSUE)),
    "a patient of one value": np.where(ELLIPSE, 0, TISSUE),
    "in some planes": np.where((RADIUS > 24) & (np.arange(NUM) > 4)[:, None, None], 20000, TISSUE),
    "the only air": np.where(RADIUS > 24, -1000, np.abs(TISSUE)),
    "half of the plane": np.where(X < 24, -1000, TISSUE),
    "one value everywhere": np.full_like(TISSUE, -1024),
    "fill that is known": np.where(RADIUS > 24, FILL_HU, TISSUE),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_such_fill_stays(name: str) -> None:
    hu = STAYS[name].astype(np.int16)
    before = hu.copy()
    assert mark_outside_field_of_view(hu) == ()
    np.testing.assert_array_equal(hu, before)


@pytest.mark.parametrize("shape", ["circle cut by the edges", "corners"])
@pytest.mark.parametrize("value", [-1024, -1000, 20000])
def test_it_does_not_ring(shape: str, value: int) -> None:
    hu = np.where(SHAPES[shape], value, np.int16(50)) * np.ones((NUM, 1, 1), dtype=np.int16)
    hu[0, 24, 24] = -900
    mark_outside_field_of_view(hu)
    scan = SourceVolume(hu, (0.7, 0.7, 1.0), (0.0, 0.0, 0.0), np.eye(3), {}, "")
    found = resample_series(scan, spacing_mm=0.5, interpolation="cubic").hu
    assert set(np.unique(found[16:])) == {-1024, 50}


def test_real_scans_change_at_the_edge_of_the_field_of_view_alone(
    real_ct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stored(folder: Path) -> tuple[np.ndarray, float]:
        files = tuple(sorted(path.name for path in folder.glob("*.dcm")))
        (scan,) = load_series(ScanRequest(folder, files, "1.2.3"))
        volume = resample_series(scan, spacing_mm=2.0, interpolation="cubic")
        return volume.hu.astype(int), float((scan.hu == FILL_HU).mean())

    num_marked = 0
    for name in ("Lung_Dx-A0001_B", "Lung_Dx-A0002_B40f", "Lung_Dx-A0002_B70f"):
        with monkeypatch.context() as patch:
            patch.setattr(dicom_pixels, "mark_outside_field_of_view", lambda hu: ())
            before, _ = stored(real_ct / "dicom" / name)
        after, share = stored(real_ct / "dicom" / name)
        num_marked += share > 0
        if share == 0:
            np.testing.assert_array_equal(after, before)
            continue
        assert share == pytest.approx(0.103, abs=0.001)  # a circle of 512 pixels, a little off the middle
        off = np.abs(after - before)
        assert (off > 0).mean() < 0.003
        rows, columns = np.mgrid[: off.shape[1], : off.shape[2]]
        middle = np.hypot(rows - off.shape[1] / 2, columns - off.shape[2] / 2) < 0.45 * off.shape[1]
        assert off[:, middle].max() <= 1
    assert num_marked == 1
