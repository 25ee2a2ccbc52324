"""Hounsfield values of two sides: mean, standard deviation, distance of the histograms."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.metric import Comparison, Figure, Hu, Setting, Side

HISTOGRAM_BINS = 200


class HistogramSum:
    """Running HU statistics of one side, values saturated to the window (what a model can represent).

    Args:
        window: Hounsfield window of the checkpoint.
    """

    def __init__(self, window: HounsfieldWindow) -> None:
        self.edges = np.linspace(window.lower_hu, window.upper_hu, HISTOGRAM_BINS + 1)
        self.counts = np.zeros(HISTOGRAM_BINS, dtype=np.int64)
        self.num_volumes = 0
        self._sum = self._squares = 0.0
        self._size = 0

    def add(self, hu: NDArray[np.float32]) -> None:
        """Count one volume."""
        values = np.clip(hu, self.edges[0], self.edges[-1]).astype(np.float64)
        self.counts += np.histogram(values, self.edges)[0]
        self.num_volumes += 1
        self._size += values.size
        self._sum += float(values.sum())
        self._squares += float(np.square(values).sum())

    def merge(self, other: "HistogramSum") -> None:
        """Count what another has counted, of the same window."""
        self.counts += other.counts
        self.num_volumes += other.num_volumes
        self._size += other._size
        self._sum += other._sum
        self._squares += other._squares

    @property
    def mean(self) -> float:
        """Mean over all voxels, HU."""
        return self._sum / self._size

    @property
    def std(self) -> float:
        """Standard deviation over all voxels, HU."""
        return float(np.sqrt(max(self._squares / self._size - self.mean**2, 0.0)))

    @property
    def density(self) -> NDArray[np.float64]:
        """Share of voxels in each bin."""
        return self.counts / max(self.counts.sum(), 1)


def histogram_distance(real: HistogramSum, generated: HistogramSum) -> float:
    """Wasserstein-1 distance of two HU histograms on the same bins, HU: the area between the cumulative curves."""
    gap = np.cumsum(real.density - generated.density)
    return float(np.abs(gap).sum() * (real.edges[1] - real.edges[0]))


def hu_figures(real: HistogramSum, generated: HistogramSum) -> dict[str, Figure]:
    """HU statistics of both sides."""
    sizes: dict[str, Any] = {"n_real": real.num_volumes, "n_generated": generated.num_volumes}
    note = f"Voxels saturated to [{real.edges[0]:g}, {real.edges[-1]:g}] HU on both sides."
    values = {
        "hu_mean_real": (real.mean, "HU"),
        "hu_mean_generated": (generated.mean, "HU"),
        "hu_std_real": (real.std, "HU"),
        "hu_std_generated": (generated.std, "HU"),
        "hu_histogram_distance": (histogram_distance(real, generated), "HU"),
    }
    figures = {name: Figure(value, **sizes, unit=unit, note=note) for name, (value, unit) in values.items()}
    ratio = generated.std / real.std if real.std > 0 else None
    return figures | {"hu_std_ratio": Figure(ratio, **sizes, note=note)}


def histogram_of(side: Side, window: HounsfieldWindow) -> HistogramSum:
    """The histogram of a side, of what `Histograms.of_volume` kept."""
    total = HistogramSum(window)
    for one in side.seen["hu"]:
        total.merge(one)
    return total


class Histograms:
    """HU statistics and the Wasserstein-1 distance of the histograms."""

    titles: Mapping[str, str] = {
        "hu_mean_real": "Mean, real",
        "hu_mean_generated": "Mean, generated",
        "hu_std_real": "Standard deviation, real",
        "hu_std_generated": "Standard deviation, generated",
        "hu_std_ratio": "Standard deviation, generated / real",
        "hu_histogram_distance": "Wasserstein distance of HU histograms",
    }

    def of_volume(self, hu: Hu, setting: Setting) -> HistogramSum:
        """The volume's own histogram."""
        histogram = HistogramSum(setting.window)
        histogram.add(hu)
        return histogram

    def compare(self, real: Side, generated: Side, setting: Setting) -> Comparison:
        """See `hu_figures`."""
        return Comparison(hu_figures(*(histogram_of(side, setting.window) for side in (real, generated))))


METRIC = Histograms()
