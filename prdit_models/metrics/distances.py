"""FID and MMD of two sets of features, each with a bootstrap interval."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prdit_models.metrics.fid import frechet_distance
from prdit_models.metrics.metric import LEVEL, Comparison, Figure, Hu, Setting, Side
from prdit_models.metrics.mmd import maximum_mean_discrepancy

Features = NDArray[np.float32]

MIN_VOLUMES = 2  # of a side of a distance
MIN_BOOTSTRAP = 5  # volumes of a side: below that, resampling says nothing about the spread
RANDOM_SUFFIX = "_random_features"  # ends the name of every distance that was computed on random features
_SIDES = {"": "all real volumes", "_val": "held-out volumes only"}


class Distances:
    """FID and MMD to all real volumes, and to the held-out ones alone where there are enough."""

    titles: Mapping[str, str] = {
        f"{name}{side}{suffix}": f"{name.upper()}{' (random features)' * bool(suffix)}, {words}"
        for name in ("fid", "mmd")
        for side, words in _SIDES.items()
        for suffix in ("", RANDOM_SUFFIX)
    }

    def of_volume(self, hu: Hu, setting: Setting) -> None:
        """Nothing: it works on features."""

    def compare(self, real: Side, generated: Side, setting: Setting) -> Comparison:
        """See `distance_figures`; on random features the names of the figures end in `RANDOM_SUFFIX`."""
        options: dict[str, int] = {"num_bootstrap": setting.num_bootstrap, "seed": setting.seed}
        figures = distance_figures(real.features, generated.features, setting.features, **options)
        held_out = real.of_role("val")
        if len(held_out) >= MIN_VOLUMES:
            beside = distance_figures(real.features[held_out], generated.features, setting.features, **options)
            figures |= {f"{name}_val": figure for name, figure in beside.items()}
        suffix = RANDOM_SUFFIX if setting.random_features else ""
        return Comparison({name + suffix: figure for name, figure in figures.items()})


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

    Repeated volumes raise both distances, so the plain percentiles may not contain the value. They are shifted so that the
    median of the draws equals it, and clipped at 0.

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
        "method": "bootstrap over volumes, percentiles shifted so that their median equals the value",
    }


def _small_sample_note(n_real: int, n_generated: int) -> str:
    smallest = min(n_real, n_generated)
    if smallest < MIN_BOOTSTRAP:
        return f"Only {smallest} volumes on a side: too few for an interval, and both distances are biased upward."
    if smallest < 100:
        return f"{smallest} volumes on the smaller side: biased upward; compare only with runs of the same n."
    return ""


METRIC = Distances()
