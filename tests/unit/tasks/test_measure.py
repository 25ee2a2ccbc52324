"""Measurements from files: arrays of projections, scans, scans under a mask; and the baselines made of measurements."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from prdit_models.intensity import HounsfieldWindow
from prdit_models.inverse.grid import Grid3
from prdit_models.inverse.operator import operator_from_dict
from storage.documents.measurement import Measurement
from storage.errors import DamagedArtifactError, InputError, UnusableSeriesError
from storage.exports.nifti import write_nifti
from storage.geometry import Volume
from storage.sources.one_scan import find_scan
from storage.sources.source import Limits
from tasks.model.view import ViewConfig
from tasks.reconstruct.baselines import baselines
from tasks.reconstruct.measure import ArrayFile, ScanFiles, Source, load_measurement, measure_stage
from tasks.reconstruct.setting import Setting
from tasks.run.stage import RunContext

SETTING = Setting(ViewConfig(size=8, edge=16), 2.0, HounsfieldWindow())  # 8 voxels of 4 mm
GRID = Grid3((8, 8, 8), (4.0, 4.0, 4.0))
VIEWS = {
    "name": "projection",
    "beam": "parallel",
    "views": [{"angle_deg": 0.0}, {"angle_deg": 90.0}],
    "detector_shape": [8, 12],
    "detector_pitch_mm": 4.0,
    "noise_std": 2.0,
}
LIMITS = (-1000.0, 1000.0)


def measured(source: Source, operator: dict[str, Any], folder: Path) -> tuple[Measurement, torch.Tensor]:
    return load_measurement(measure_stage(source, operator, SETTING, RunContext(workdir=folder / "work")).ref)


def test_projections_in_mm_of_water_are_taken_as_they_are(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(0, 200, (2, 8, 12))
    np.save(tmp_path / "views.npy", values)
    document, found = measured(ArrayFile(tmp_path / "views.npy"), VIEWS, tmp_path)
    np.testing.assert_array_equal(found[0].numpy(), values.astype(np.float32))
    assert (document.unit, document.noise_std) == ("mm", 2.0)
    assert document.recorded is not None
    assert document.recorded.format == "npy"
    assert document.grid.origin_mm == (-14.0,) * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((1, 8, 12), 100.0), r"has shape \(1, 8, 12\); the views of operator 'projection' have \(2, 8, 12\)"),
        (np.full((2, 8, 12), 5.0), r"from 5 to 5; expected mm of water .* divided by the attenuation of water"),
        (np.full((2, 8, 12), np.nan), r"192 of 192 values that are no finite number; repair them"),
        (
            np.linspace(-1000.0, 800.0, 192).reshape(2, 8, 12),
            r"from -1000 to 800; expected mm of water .* 0 beside a body",
        ),
        (
            np.linspace(160.0, 65535.0, 192).reshape(2, 8, 12),
            r"to 6.554e\+04; expected mm of water .* Intensities I become",
        ),
        (np.array([{"a": 1}], dtype=object), "not an .npy file of numbers"),
    ],
)
def test_arrays_that_are_no_projections_are_named(tmp_path: Path, values: np.ndarray, message: str) -> None:
    np.save(tmp_path / "views.npy", values, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        measured(ArrayFile(tmp_path / "views.npy"), VIEWS, tmp_path)


def test_an_array_has_no_voxels_for_an_operator_in_hu(tmp_path: Path) -> None:
    np.save(tmp_path / "volume.npy", np.zeros((4, 4, 4)))
    with pytest.raises(InputError, match=r"an array without geometry.*Give a NIfTI file or a DICOM series"):
        measured(ArrayFile(tmp_path / "volume.npy"), {"name": "downsampling", "factor": 2}, tmp_path)


def test_a_scan_under_a_mask_gives_the_values_that_it_keeps_within_the_window(tmp_path: Path) -> None:
    hu = np.random.default_rng(0).integers(-1024, 2000, (8, 8, 8)).astype(np.int16)
    write_nifti(tmp_path / "scan.nii.gz", Volume(hu, (4.0,) * 3, (1.0, 2.0, 3.0)))
    cut = {"name": "mask", "region": "half", "side": "left"}
    document, found = measured(ScanFiles(find_scan(tmp_path / "scan.nii.gz")), cut, tmp_path)
    kept = np.zeros((8, 8, 8), dtype=bool)
    kept[..., :4] = True  # x grows towards the left
    np.testing.assert_array_equal(found[0].numpy(), np.clip(hu[kept], -1000, 1000))
    assert document.grid.origin_mm == (1.0, 2.0, 3.0)
    assert document.saturated_fraction == pytest.approx(((hu < -1000) | (hu > 1000)).mean())


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [(0.0, 0.05, "not the HU of a chest .*no air"), (0, 0, "no air"), (-1000, -1000, "all its voxels are -1000 HU")],
)
def test_a_scan_in_another_unit_is_refused(tmp_path: Path, low: float, high: float, message: str) -> None:
    values = np.random.default_rng(0).uniform(low, high, (8, 8, 8)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([4.0, 4.0, 4.0, 1.0])), tmp_path / "scan.nii.gz")
    with pytest.raises(UnusableSeriesError, match=message):
        measured(ScanFiles(find_scan(tmp_path)), {"name": "downsampling", "factor": 2}, tmp_path)


def test_voxels_without_a_number_are_refused_or_taken_as_air_where_the_limits_say_so(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(-1000, 1000, (8, 8, 8)).astype(np.float32)
    values[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.diag([4.0, 4.0, 4.0, 1.0])), tmp_path / "scan.nii.gz")
    scan, half = find_scan(tmp_path / "scan.nii.gz"), {"name": "downsampling", "factor": 2}
    with pytest.raises(UnusableSeriesError, match=r"no finite number \(1 of 512\).*ingest.nan to air"):
        measured(ScanFiles(scan), half, tmp_path)
    document, _ = measured(ScanFiles(scan, Limits(nan="air")), half, tmp_path)
    assert document.recorded is not None
    assert "1 of 512 voxels are not finite and became -1024 HU" in document.recorded.notes


def test_thick_slices_of_a_small_scan_are_measured(tmp_path: Path) -> None:
    hu = np.random.default_rng(0).integers(-1000, 1000, (2, 8, 8)).astype(np.int16)
    write_nifti(tmp_path / "scan.nii.gz", Volume(hu, (4.0, 4.0, 16.0), (0.0, 0.0, 0.0)))
    thick = {"name": "thick-slices", "thickness_mm": 16.0}
    _, found = measured(ScanFiles(find_scan(tmp_path), Limits()), thick, tmp_path)
    np.testing.assert_array_equal(found[0].numpy(), hu)


def test_a_damaged_measurement_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "views.npy", np.full((2, 8, 12), 100.0))
    outcome = measure_stage(ArrayFile(tmp_path / "views.npy"), VIEWS, SETTING, RunContext(workdir=tmp_path / "work"))
    path = outcome.ref.path / Measurement.VALUES
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedArtifactError, match=r"is not what measurement\.json beside it describes"):
        load_measurement(outcome.ref)


def test_interpolation_is_exact_on_a_ramp_between_samples() -> None:
    operator = operator_from_dict({"name": "downsampling", "factor": 2}, GRID)
    ramp = (50.0 * torch.arange(8.0)).expand(1, 1, 8, 8, 8)
    found = baselines(operator, operator.forward(ramp), LIMITS)
    assert set(found) == {"trilinear", "spline", "sirt"}
    for name in ("trilinear", "spline"):
        np.testing.assert_allclose(found[name][..., 1:-1], ramp[0, 0, ..., 1:-1], atol=1e-3)
        np.testing.assert_allclose(found[name][..., 0], 25.0, atol=1e-3)  # beyond the outermost sample its value holds


def test_what_a_mask_hides_is_filled_from_beside_it() -> None:
    operator = operator_from_dict({"name": "mask", "region": "half", "side": "left"}, GRID)
    volume = (100.0 * torch.arange(8.0)).expand(1, 1, 8, 8, 8)
    found = baselines(operator, operator.forward(volume), LIMITS)
    assert set(found) == {"nearest"}
    np.testing.assert_array_equal(found["nearest"][0, 0], [0, 100, 200, 300, 300, 300, 300, 300])


def test_projections_have_no_interpolation() -> None:
    operator = operator_from_dict(VIEWS, GRID)
    assert set(baselines(operator, operator.forward(torch.zeros(1, 1, 8, 8, 8)), LIMITS)) == {"sirt"}


def test_views_on_an_arc_are_backprojected_too() -> None:
    operator = operator_from_dict({"name": "sparse-view", "num_views": 90, "arc_deg": 180, "beam": "parallel"}, GRID)
    volume = torch.full((1, 1, 8, 8, 8), -1000.0)
    volume[..., 1:7, 1:7] = 100.0
    found = baselines(operator, operator.forward(volume), LIMITS)
    assert set(found) == {"fdk", "sirt"}
    assert found["fdk"][4, 3:5, 3:5].mean() == pytest.approx(100, abs=50)  # of 1100
