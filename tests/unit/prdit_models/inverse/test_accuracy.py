"""Accuracy figures against closed forms."""

import numpy as np
import pytest

from prdit_models.intensity import HounsfieldWindow
from prdit_models.inverse.accuracy import MAX_PSNR_DB, coverage, error_by_tissue, psnr_db, ssim
from prdit_models.inverse.estimate import VoxelMoments

WINDOW = HounsfieldWindow()


def test_psnr_of_a_known_error() -> None:
    truth = np.zeros((4, 4, 4), dtype=np.float32)
    assert psnr_db(truth, truth + 20, WINDOW) == pytest.approx(40.0)  # 2000 / 20
    assert psnr_db(truth, truth + 200, WINDOW) == pytest.approx(20.0)
    assert psnr_db(truth, truth, WINDOW) == MAX_PSNR_DB


def test_ssim_falls_with_noise_and_is_1_of_equal_volumes() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(-1000, 1000, (8, 8, 8)).astype(np.float32)
    noise = rng.normal(size=truth.shape).astype(np.float32)
    values = [ssim(truth, truth + size * noise, WINDOW) for size in (0.0, 50.0, 500.0)]
    assert values[0] == pytest.approx(1.0, abs=1e-6)
    assert values[0] > values[1] > values[2]
    # constant volumes: structure term 1, luminance (2ab + c1)/(a² + b² + c1) with c1 = (0.01·2000)²
    first, second = np.full((4, 4, 4), 100, np.float32), np.full((4, 4, 4), 200, np.float32)
    assert ssim(first, second, WINDOW) == pytest.approx((2 * 2e4 + 400) / (1e4 + 4e4 + 400), rel=1e-4)


def test_errors_are_those_of_the_truths_tissue() -> None:
    truth = np.array([[[-1000, -950], [-800, -500]], [[0, 40], [300, 800]]], dtype=np.float32)
    error = np.array([[[2, 4], [10, 30]], [[-5, 5], [100, -300]]], dtype=np.float32)
    found = error_by_tissue(truth, truth + error)
    assert found == {"all": 57.0, "air": 3.0, "lung": 20.0, "fat": None, "soft": 5.0, "bone": 200.0}


def test_intervals_of_a_calibrated_model_hold_what_they_promise() -> None:
    rng = np.random.default_rng(1)
    middle = rng.normal(size=(40, 40, 40))
    moments = VoxelMoments()
    for _ in range(6):
        moments.add(middle + rng.normal(size=middle.shape))
    truth = (middle + rng.normal(size=middle.shape)).astype(np.float32)
    found = coverage(truth, moments)
    for level, share in found.items():
        assert share == pytest.approx(float(level), abs=0.01)  # 64,000 voxels: standard error 0.002
    narrow = coverage((middle + 3 * rng.normal(size=middle.shape)).astype(np.float32), moments)
    assert narrow["0.9"] < 0.7
    far = np.zeros(middle.shape, dtype=np.bool_)
    far[:5] = True
    wrong = np.where(far, truth + 1000, truth).astype(np.float32)
    assert coverage(wrong, moments, among=far) == {f"{level:g}": 0.0 for level in (0.5, 0.8, 0.9, 0.95)}
    assert coverage(wrong, moments, among=~far)["0.9"] == pytest.approx(0.9, abs=0.01)
