"""Figures of an evaluation: distances between feature sets, and Hounsfield statistics, each with its n and interval."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.fid import frechet_distance
from prdit_models.metrics.mmd import maximum_mean_discrepancy

Features = NDArray[np.float32]

MIN_BOOTSTRAP = 5  # volumes a side: below that, resampling says nothing about the spread
LEVEL = 0.95
HISTOGRAM_BINS = 200
RANDOM_SUFFIX = "_random_features"  # ends the name of every distance that has no other features behind it


@dataclass(frozen=True)
class Figure:
    """One number of the report.

    Attributes:
        value: the number, or None where it is not defined (the note says why).
        n_real, n_generated: volumes behind it.
        unit: empty for pure numbers.
        features: digest of the feature network, or None.
        interval: `{low, high, level, num_bootstrap, method}` or None.
        note: one sentence to read with it, or empty.
    """

    value: float | None
    n_real: int
    n_generated: int
    unit: str = ""
    features: str | None = None
    interval: dict[str, Any] | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def distance_figures(
    real: Features, generated: Features, digest: str, *, num_bootstrap: int, seed: int
) -> dict[str, Figure]:
    """FID and MMD of two feature sets, with bootstrap intervals where there are enough volumes.

    Args:
        real: shape (n, d), n >= 2.
        generated: shape (m, d), m >= 2.
        digest: of the feature network.
        num_bootstrap: resamplings; 0 for none.
        seed: of the resampling.
    """
    sizes: dict[str, Any] = {"n_real": len(real), "n_generated": len(generated), "features": digest}
    small = _small_sample_note(len(real), len(generated))
    draws = num_bootstrap if min(len(real), len(generated)) >= MIN_BOOTSTRAP else 0
    fid = frechet_distance(real, generated)
    fid_interval = bootstrap_interval(frechet_distance, real, generated, fid, num_draws=draws, seed=seed)
    figures = {"fid": Figure(fid, **sizes, interval=fid_interval, note=small)}
    try:
        result = maximum_mean_discrepancy(real, generated)
    except ValueError as error:  # two volumes: the published median counts self-distances and is 0
        return figures | {"mmd": Figure(None, **sizes, note=str(error))}

    def mmd(first: Features, second: Features) -> float:
        return maximum_mean_discrepancy(first, second, gamma=result.gamma).mmd  # bandwidth of all real volumes

    interval = bootstrap_interval(mmd, real, generated, result.mmd, num_draws=draws, seed=seed)
    return figures | {"mmd": Figure(result.mmd, **sizes, interval=interval, note=small)}


def bootstrap_interval(
    distance: Callable[[Features, Features], float],
    real: Features,
    generated: Features,
    value: float,
    *,
    num_draws: int,
    seed: int,
) -> dict[str, Any] | None:
    """Spread of a distance when volumes are drawn again with replacement, both sides.

    Repeated volumes raise both distances, so the plain percentiles may lie beside the value. They are shifted until the
    median of the draws meets it, and cut at 0.

    Returns: `{low, high, level, num_bootstrap, method}`, or None without draws.
    """
    if num_draws < 1:
        return None
    rng = np.random.default_rng(seed)
    draws = np.empty(num_draws)
    for k in range(num_draws):
        first = real[rng.integers(0, len(real), len(real))]
        second = generated[rng.integers(0, len(generated), len(generated))]
        draws[k] = distance(first, second)
    tail = (1 - LEVEL) / 2
    low, middle, high = np.quantile(draws, [tail, 0.5, 1 - tail])
    return {
        "low": max(0.0, float(value + low - middle)),
        "high": float(value + high - middle),
        "level": LEVEL,
        "num_bootstrap": num_draws,
        "method": "bootstrap over volumes, percentiles shifted so that their median meets the value",
    }


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


def _small_sample_note(n_real: int, n_generated: int) -> str:
    smallest = min(n_real, n_generated)
    if smallest < MIN_BOOTSTRAP:
        return f"Only {smallest} volumes on a side: too few for an interval, and both distances are biased upward."
    if smallest < 100:
        return f"{smallest} volumes on the smaller side: biased upward; compare only with runs of the same n."
    return ""
