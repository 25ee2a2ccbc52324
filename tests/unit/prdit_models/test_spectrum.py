"""The radial power spectrum against known ones: white noise, a wave, a blurred volume."""

import numpy as np
import pytest
from scipy import ndimage

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.metric import Hu, Setting, Side
from prdit_models.metrics.order import DEGRADATIONS, blind, degraded
from prdit_models.metrics.spectrum import METRIC, frequencies, radial_spectrum, spectrum_distance


def rough(seed: int, size: int = 32) -> Hu:
    """A volume whose power falls with frequency as a scan's does, HU."""
    rng = np.random.default_rng(seed)
    volume = ndimage.gaussian_filter(rng.normal(size=(size,) * 3), 2.5) * 5000 - 500 + rng.normal(0, 20, (size,) * 3)
    return volume.astype(np.float32)


@pytest.mark.parametrize("size", [16, 15])
def test_white_noise_is_flat_at_its_variance_per_voxel(size: int) -> None:
    rng = np.random.default_rng(0)
    spectra = [radial_spectrum(rng.normal(40, 30, (size,) * 3).astype(np.float32), 2.0) for _ in range(60)]
    power = np.mean(10 ** (np.array(spectra) / 10), axis=0)
    assert power[1:] == pytest.approx(30.0**2 * 2.0**3, rel=0.08)  # HU² mm³
    assert len(power) == size // 2


def test_a_wave_has_its_power_at_its_frequency() -> None:
    wave = np.broadcast_to(np.sin(2 * np.pi * 5 * np.arange(32) / 32), (32, 32, 32)).astype(np.float32) * 100
    spectrum = radial_spectrum(wave, 4.0)
    assert spectrum.argmax() == 4
    assert frequencies(32, 4.0)[4] == pytest.approx(5 / 128)
    assert spectrum[4] - spectrum[9] > 40


def test_a_blur_takes_away_what_a_gaussian_does() -> None:
    """White noise blurred by σ voxels loses 10·log₁₀ exp(-(2πkσ/S)²) dB at wave number k."""
    noise = np.random.default_rng(1).normal(0, 100, (48, 48, 48)).astype(np.float32)
    lost = radial_spectrum(ndimage.gaussian_filter(noise, 1.0, mode="wrap"), 1.0) - radial_spectrum(noise, 1.0)
    k = np.arange(4, 15)
    assert lost[k - 1] == pytest.approx(-10 * np.log10(np.e) * (2 * np.pi * k / 48) ** 2, abs=0.5)


def test_a_constant_volume_has_a_finite_spectrum_and_other_shapes_are_refused() -> None:
    assert np.isfinite(radial_spectrum(np.full((8, 8, 8), -1000, np.float32), 1.0)).all()
    with pytest.raises(ValueError, match=r"expected \(S, S, S\)"):
        radial_spectrum(np.zeros((8, 8, 4), np.float32), 1.0)


def test_the_distance_of_white_noises_is_the_difference_of_their_standard_deviations() -> None:
    """Within the sphere of the highest frequency, which holds π/6 of all coefficients."""
    rng = np.random.default_rng(0)
    quiet, loud = (
        np.stack([radial_spectrum(rng.normal(0, std, (24, 24, 24)).astype(np.float32), 3.0) for _ in range(20)])
        for std in (20, 70)
    )
    assert spectrum_distance(quiet, loud, 3.0) == pytest.approx(50 * np.sqrt(np.pi / 6), rel=0.05)
    assert spectrum_distance(quiet, quiet, 3.0) == 0.0


def test_figures_order_real_blurred_noised_and_tell_blur_from_noise() -> None:
    setting = Setting(HounsfieldWindow(), 8.0, 32, num_subsamples=1)

    def side(volumes: list[Hu]) -> Side:
        names = tuple(map(str, range(len(volumes))))
        return Side(
            names,
            np.zeros((len(names), 1), np.float32),
            {"spectrum": [METRIC.of_volume(hu, setting) for hu in volumes]},
        )

    real = side([rough(k) for k in range(6)])
    found = {
        how: METRIC.compare(real, side([degraded(rough(9 + k), how, k) for k in range(6)]), setting)
        for how in DEGRADATIONS
    }
    assert blind(METRIC.figures, {how: each.figures for how, each in found.items()}) == {}
    fine = {how: each.figures["spectrum_fine_power"].value for how, each in found.items()}
    assert fine["real"] == pytest.approx(0, abs=0.5)
    assert fine["blurred"] < -15
    assert fine["noised"] > 15
    figure, details = found["real"].figures["spectrum_distance"], found["real"].details
    assert figure.unit == "HU"
    assert figure.interval is not None
    assert figure.interval["low"] <= figure.value <= figure.interval["high"]
    assert details["real"]["mean_db"] == pytest.approx(np.mean(real.seen["spectrum"], axis=0), rel=1e-3)
    assert len(details["frequency_per_mm"]) == len(details["real"]["p10_db"]) == 16
    assert all(np.array(details["real"]["p10_db"]) <= details["real"]["p90_db"])
