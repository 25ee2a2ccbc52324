"""Radial power spectrum of the two sides: blur and noise that a mean over voxels does not show."""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from prdit_models.metrics.metric import About, Comparison, Figure, Hu, NoSettings, Setting, Side, rounded
from prdit_models.metrics.spread import jackknife_interval

Decibels = NDArray[np.float64]
MIN_SIZE = 4
_FLOOR = (
    1e-12  # (1e-6 HU)² mm³: below what float32 values of HU can hold, so that log10 is finite for a constant volume
)
_QUANTILES = (0.1, 0.9)


def radial_spectrum(hu: Hu, voxel_mm: float) -> Decibels:
    """Power spectral density of one volume over spatial frequency, in dB of 1 HU²·mm³.

    The mean is subtracted and a Hann window applied to every axis, since the box cuts the body; the squared amplitudes are averaged
    over shells of the wave number.

    Args:
        hu: shape (S, S, S), S >= 4.
        voxel_mm: voxel distance.
    Returns: of the wave numbers 1 to S/2 (`frequencies`), shape (S // 2,).
    Raises: ValueError: another shape.
    Source: periodogram (Welch 1967); noise power spectra of CT: ICRU Report 87 (2012).
    """
    size = len(hu)
    if hu.shape != (size,) * 3 or size < MIN_SIZE:
        raise ValueError(f"radial_spectrum got a volume {hu.shape}; expected (S, S, S) with S >= {MIN_SIZE}.")
    window, shells, counts = _grid(size)
    tapered = (hu - hu.mean(dtype=np.float64)).astype(np.float32)
    for axis in range(3):
        tapered *= window.reshape([-1 if a == axis else 1 for a in range(3)])
    power = np.square(np.abs(fft.rfftn(tapered))).astype(np.float64)
    power[..., 1 : (size + 1) // 2] *= 2  # the half of the conjugate frequencies
    density = np.bincount(shells, power.ravel(), minlength=len(counts))[1 : size // 2 + 1] / counts[1 : size // 2 + 1]
    taken = float(np.square(window, dtype=np.float64).sum()) ** 3
    decibels: Decibels = 10 * np.log10(np.maximum(density * voxel_mm**3 / taken, _FLOOR))
    return decibels


def frequencies(size: int, voxel_mm: float) -> NDArray[np.float64]:
    """Spatial frequencies of `radial_spectrum`, cycles per mm; the last one is that of alternating voxels."""
    return np.arange(1, size // 2 + 1) / (size * voxel_mm)


@lru_cache(maxsize=1)
def _grid(size: int) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.float64]]:
    """Hann window (S,), the shell of every coefficient of `rfftn`, flat, and the number of coefficients of every shell."""
    window: NDArray[np.float32] = (0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(size) + 0.5) / size)).astype(np.float32)
    full, half = np.square(np.fft.fftfreq(size, 1 / size)), np.square(np.fft.rfftfreq(size, 1 / size))
    radius = np.sqrt(full[:, None, None] + full[None, :, None] + half)
    shells = np.rint(radius).astype(np.intp).ravel()
    weights = np.ones(radius.shape)
    weights[..., 1 : (size + 1) // 2] = 2
    return window, shells, np.bincount(shells, weights.ravel()).astype(np.float64)


def spectrum_distance(real: Decibels, generated: Decibels, voxel_mm: float) -> float:
    """2-Wasserstein (Fréchet) distance per voxel of stationary Gaussian fields with the mean spectra of two sides, HU.

    It is the root mean square over all coefficients of the difference of amplitudes, up to the highest frequency of an axis.

    Args:
        real, generated: `radial_spectrum` of the volumes, shape (n, S // 2).
        voxel_mm: voxel distance.
    Source: Fréchet distance of Gaussians (Dowson & Landau, 1982): covariances of stationary fields commute, so that
        the trace is a sum over frequencies.
    """
    counts = _grid(2 * real.shape[1])[2][1 : real.shape[1] + 1]
    amplitudes = [np.sqrt((10 ** (rows / 10)).mean(0) / voxel_mm**3) for rows in (real, generated)]
    share = counts / (2 * real.shape[1]) ** 3
    return float(np.sqrt((share * np.square(amplitudes[0] - amplitudes[1])).sum()))


def fine_power(real: Decibels, generated: Decibels) -> float:
    """Generated over real power at the upper half of the frequencies, dB; below 0: blurred, above: noisy."""
    upper = slice(real.shape[1] // 2, None)
    return float((generated.mean(0) - real.mean(0))[upper].mean())


class Spectrum:
    """Distance of the mean power spectra, and how much of the fine detail the samples have."""

    settings = NoSettings
    figures: Mapping[str, About] = {
        "spectrum_distance": About(
            "Radial power spectrum, distance",
            "lower",
            "Fréchet distance of stationary Gaussian fields with the mean spectra",
            "Blind to phase: where structures are, and whether they are anatomy at all.",
        ),
        "spectrum_fine_power": About(
            "Power at the upper half of the frequencies, generated / real",
            source="The same spectra, above half of the highest frequency",
            caveat="0 dB is good; blur and noise can cancel each other.",
        ),
    }

    def of_volume(self, hu: Hu, setting: Setting) -> Decibels:
        """The volume's spectrum."""
        return radial_spectrum(hu, setting.voxel_mm)

    def compare(self, real: Side, generated: Side, setting: Setting) -> Comparison:
        """Two figures; `details`: frequencies and, for each side, mean and quantiles of the spectra in dB."""
        sides = {"real": np.stack(real.seen["spectrum"]), "generated": np.stack(generated.seen["spectrum"])}
        sizes: dict[str, Any] = {"n_real": len(real.ids), "n_generated": len(generated.ids)}
        measures: dict[str, tuple[Callable[..., float], str, float]] = {
            "spectrum_distance": (partial(spectrum_distance, voxel_mm=setting.voxel_mm), "HU", 0.0),
            "spectrum_fine_power": (fine_power, "dB", -np.inf),
        }
        figures = {}
        for name, (measure, unit, low) in measures.items():
            interval = jackknife_interval(measure, *sides.values(), low=low) if setting.num_subsamples else None
            figures[name] = Figure(measure(*sides.values()), **sizes, unit=unit, interval=interval)
        details: dict[str, Any] = {"frequency_per_mm": rounded(frequencies(setting.size, setting.voxel_mm))}
        for name, rows in sides.items():
            low_db, high_db = np.quantile(rows, _QUANTILES, axis=0)
            details[name] = {"mean_db": rounded(rows.mean(0)), "p10_db": rounded(low_db), "p90_db": rounded(high_db)}
        return Comparison(figures, details=details)


METRIC = Spectrum()
