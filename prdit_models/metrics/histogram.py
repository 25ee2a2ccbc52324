"""Hounsfield values of two sides: mean, standard deviation, distance of the histograms, all voxels and by band of tissue."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.metric import About, Comparison, Figure, Hu, NoSettings, Setting, Side, rounded
from prdit_models.metrics.spread import jackknife_interval

HISTOGRAM_BINS = 200
Rows = NDArray[np.float64]  # of volumes: mean, mean square, share of voxels in each bin


@dataclass(frozen=True)
class Band:
    """A range of Hounsfield units that one kind of tissue mostly has: low <= HU < high."""

    title: str
    low_hu: float
    high_hu: float


# Lung: normally and poorly aerated (Gattinoni et al., 2001); fat and muscle: body composition by CT (Mitsiopoulos et al., 1998)
BANDS = {
    "air": Band("air", -np.inf, -900.0),
    "lung": Band("lung", -900.0, -190.0),
    "fat": Band("fat", -190.0, -30.0),
    "soft": Band("soft tissue", -30.0, 150.0),
    "bone": Band("bone and contrast agent", 150.0, np.inf),
}


def bin_edges(window: HounsfieldWindow) -> NDArray[np.float64]:
    """Edges of the bins, HU."""
    return np.linspace(window.lower_hu, window.upper_hu, HISTOGRAM_BINS + 1)


def row_of(hu: Hu, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """The row of one volume; values outside the edges saturate (what a model can represent)."""
    values = np.clip(hu, edges[0], edges[-1]).astype(np.float64)
    shares = np.histogram(values, edges)[0] / values.size
    return np.concatenate([[values.sum() / values.size, np.square(values).sum() / values.size], shares])


def mean_hu(rows: Rows) -> float:
    """Mean over all voxels of volumes of equal size."""
    return float(rows[:, 0].mean())


def std_hu(rows: Rows) -> float:
    """Standard deviation over all voxels of volumes of equal size."""
    return float(np.sqrt(max(rows[:, 1].mean() - rows[:, 0].mean() ** 2, 0.0)))


def histogram_distance(real: Rows, generated: Rows, width_hu: float, bins: slice = slice(None)) -> float:
    """Wasserstein-1 distance of the HU of two sides, HU: the area between the cumulative curves.

    Args:
        real, generated: one row per volume.
        width_hu: of a bin.
        bins: those of a band; the shares are then of the band's voxels. NaN where a side has none there.
    """
    sides = [rows[:, 2:][:, bins].mean(0) for rows in (real, generated)]
    if min(side.sum() for side in sides) == 0:
        return float("nan")
    return area_between(sides[0] / sides[0].sum(), sides[1] / sides[1].sum(), width_hu)


def area_between(first: NDArray[np.float64], second: NDArray[np.float64], width_hu: float) -> float:
    """Wasserstein-1 distance of two histograms of sum 1, HU: the area between their cumulative curves."""
    return float(np.abs(np.cumsum(first - second)).sum() * width_hu)


def share_of(rows: Rows, bins: slice) -> float:
    """Share of all voxels in some bins."""
    return float(rows[:, 2:][:, bins].mean(0).sum())


def bins_of(band: Band, edges: NDArray[np.float64]) -> slice:
    """Bins whose middles are in a band."""
    middles = (edges[1:] + edges[:-1]) / 2
    first, last = np.searchsorted(middles, [band.low_hu, band.high_hu])
    return slice(int(first), int(last))


def _measures(edges: NDArray[np.float64]) -> dict[str, tuple[Callable[..., float], str, str]]:
    """Figures by name: how they are computed, of which sides (`r`, `g`), and their unit."""
    width = float(edges[1] - edges[0])
    found: dict[str, tuple[Callable[..., float], str, str]] = {
        "hu_mean_real": (mean_hu, "r", "HU"),
        "hu_mean_generated": (mean_hu, "g", "HU"),
        "hu_std_real": (std_hu, "r", "HU"),
        "hu_std_generated": (std_hu, "g", "HU"),
        "hu_std_ratio": (_std_ratio, "rg", ""),
        "hu_histogram_distance": (lambda real, generated: histogram_distance(real, generated, width), "rg", "HU"),
    }
    for name, band in BANDS.items():
        bins = bins_of(band, edges)
        found[f"hu_{name}_distance"] = (
            lambda real, generated, bins=bins: histogram_distance(real, generated, width, bins),
            "rg",
            "HU",
        )
        found[f"hu_{name}_share_difference"] = (
            lambda real, generated, bins=bins: share_of(generated, bins) - share_of(real, bins),
            "rg",
            "",
        )
    return found


def _std_ratio(real: Rows, generated: Rows) -> float:
    spread = std_hu(real)
    return std_hu(generated) / spread if spread > 0 else float("nan")


_NEVER_NEGATIVE = ("hu_std", "hu_histogram", *(f"hu_{name}_distance" for name in BANDS))


def hu_figures(
    real: Rows, generated: Rows, edges: NDArray[np.float64], *, intervals: bool = False, note: str = ""
) -> dict[str, Figure]:
    """HU statistics of both sides; one row per volume, all of one size.

    Args:
        real, generated: `row_of` every volume.
        edges: of the bins, HU.
        intervals: whether to say how far the figures would vary.
        note: of every figure.
    """
    figures = {}
    for name, (measure, of, unit) in _measures(edges).items():
        sides = [{"r": real, "g": generated}[letter] for letter in of]
        value = measure(*sides)
        defined = bool(np.isfinite(value))
        low = 0.0 if name.startswith(_NEVER_NEGATIVE) else -np.inf
        figures[name] = Figure(
            value if defined else None,
            len(real),
            len(generated),
            unit=unit,
            interval=jackknife_interval(measure, *sides, low=low) if intervals and defined else None,
            note=note if defined else f"Not defined: a side has no voxels or no spread there. {note}".strip(),
        )
    return figures


class Histograms:
    """HU statistics and the Wasserstein-1 distances of the histograms."""

    settings = NoSettings
    figures: Mapping[str, About] = {
        "hu_mean_real": About("Mean, real"),
        "hu_mean_generated": About("Mean, generated"),
        "hu_std_real": About("Standard deviation, real"),
        "hu_std_generated": About("Standard deviation, generated"),
        "hu_std_ratio": About(
            "Standard deviation, generated / real", caveat="Near 1 is good; noise and lost contrast cancel."
        ),
        "hu_histogram_distance": About(
            "Wasserstein distance of HU histograms",
            "lower",
            "Wasserstein-1 of all voxels",
            "Sees how much of every value there is, not where it is.",
        ),
    } | {
        figure: about
        for name, band in BANDS.items()
        for figure, about in {
            f"hu_{name}_distance": About(
                f"HU within {band.title}, Wasserstein distance",
                "lower",
                f"Wasserstein-1 of voxels in the band {band.low_hu:g} to {band.high_hu:g} HU",
                "A band is a range of values, not a segmentation: edges of other tissue fall into it.",
            ),
            f"hu_{name}_share_difference": About(
                f"Share of {band.title}, generated less real",
                source=f"Share of voxels in the band {band.low_hu:g} to {band.high_hu:g} HU",
                caveat="Follows from how much of the box the patients fill, too.",
            ),
        }.items()
    }

    def of_volume(self, hu: Hu, setting: Setting) -> NDArray[np.float64]:
        """The volume's own row."""
        return row_of(hu, bin_edges(setting.window))

    def compare(self, real: Side, generated: Side, setting: Setting) -> Comparison:
        """See `hu_figures`; `details`: bin edges, shares of voxels of both sides, and bands."""
        rows = {"real": np.stack(real.seen["hu"]), "generated": np.stack(generated.seen["hu"])}
        edges = bin_edges(setting.window)
        note = f"Voxels saturated to [{edges[0]:g}, {edges[-1]:g}] HU on both sides."
        if setting.window.follows_scan:
            note += " HU are nominal: the checkpoint's mapping scales every scan by itself."
        figures = hu_figures(rows["real"], rows["generated"], edges, intervals=setting.num_subsamples > 0, note=note)
        details: dict[str, Any] = {"edges_hu": rounded(edges)}
        details |= {f"share_{name}": rounded(each[:, 2:].mean(0)) for name, each in rows.items()}
        details["bands"] = {}
        for name, band in BANDS.items():
            bins = bins_of(band, edges)
            details["bands"][name] = {
                "title": band.title,
                "low_hu": max(band.low_hu, float(edges[0])),
                "high_hu": min(band.high_hu, float(edges[-1])),
                "share_real": round(share_of(rows["real"], bins), 6),
                "share_generated": round(share_of(rows["generated"], bins), 6),
            }
        return Comparison(figures, details=details)


METRIC = Histograms()
