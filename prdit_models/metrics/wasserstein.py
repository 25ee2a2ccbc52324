"""Wasserstein score: how far generated volumes are from real ones that the model was not trained on, by a WGAN-GP critic."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import scipy  # whose modules are imported when they are used
import torch
from numpy.typing import NDArray

from prdit_models.metrics.critic import PATCH, Effort, Estimate, Volumes, estimate_distance
from prdit_models.metrics.metric import LEVEL, About, Comparison, Figure, Hu, Setting, Side, rounded

NAME = "wasserstein"
MIN_VOLUMES = 3  # of a side: two to train the critic, one to measure
_KEPT_EDGE = 32  # 64 KiB a volume
_FEW = 20  # volumes of a side, below which a critic generalises badly
_SOURCE = "PRDiT (ICLR 2026), W-score; Gulrajani et al. 2017"


@dataclass(frozen=True)
class WassersteinSettings:
    """How the critics are trained.

    Attributes:
        steps: optimiser steps of a critic.
        num_seeds: critics per figure, each with other halves of both sides.
        size: edge in voxels to which larger volumes are pooled for the critic; None: as they are. Pooling only brings volumes
            nearer to each other.
        batch_size, width, lr, penalty: see `critic.Effort`.
        reference_distance: `wasserstein` of a reference run, measured with the same settings against the same real volumes; then
            `w_score` is the ratio to it. None: no ratio.
    """

    steps: int = 100
    num_seeds: int = 4
    size: int | None = 32
    batch_size: int = 8
    width: int = 32
    lr: float = 1e-3
    penalty: float = 1.0
    reference_distance: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "num_seeds", "batch_size", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more.")
        if self.size is not None and self.size < PATCH:
            raise ValueError(f"size is {self.size}; expected {PATCH} or more voxels, or null for no pooling.")
        for name in ("lr", "penalty", "reference_distance"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; expected a positive number.")

    @property
    def effort(self) -> Effort:
        """Of one critic."""
        return Effort(self.steps, self.batch_size, self.width, self.lr, self.penalty)

    def comparable(self) -> dict[str, Any]:
        """What must be equal for two distances to be compared."""
        return {name: value for name, value in asdict(self).items() if name != "reference_distance"}


class Wasserstein:
    """Wasserstein-1 distance of held-out real volumes to generated ones, beside that to real training volumes."""

    settings = WassersteinSettings
    figures: Mapping[str, About] = {
        "wasserstein": About(
            "Wasserstein distance by a critic",
            "lower",
            _SOURCE,
            "A lower bound that grows with the critic's steps and volumes: compare only equal settings and numbers of volumes.",
        ),
        "wasserstein_real": About(
            "Wasserstein distance by a critic, training to held-out real volumes",
            "",
            _SOURCE,
            "What a model that draws from the distribution of its training volumes would have.",
        ),
        "w_score": About(
            "W-score: Wasserstein distance relative to the reference run's",
            "",
            _SOURCE,
            "1: as far as the reference run; the published reference is PRDiT-12L.",
        ),
    }

    def of_volume(self, hu: Hu, setting: Setting) -> NDArray[np.float16] | None:
        """The pooled volume where it is small, so that it is not read again."""
        _, edge = _pooling(setting.size, setting.settings[NAME].size)
        return _as_seen(hu, setting) if edge <= _KEPT_EDGE else None

    def compare(self, real: Side, generated: Side, setting: Setting) -> Comparison:
        """Mean of several critics' distances; of one, without the real volumes beside, for the order test."""
        settings: WassersteinSettings = setting.settings[NAME]
        held_out, others = real.of_role("val"), real.of_role("train")
        apart = len(held_out) >= MIN_VOLUMES and not setting.reference
        near = real.part(held_out) if apart else real
        found = _critics(near, generated, settings, setting)
        distance = _figure(found, near, generated, setting)
        if real.roles and not apart:
            words = (
                f"{distance.note} Against all real volumes: {len(held_out)} held-out ones are fewer than {MIN_VOLUMES}."
            )
            distance = replace(distance, note=words)
        figures = {"wasserstein": distance}
        details = {
            "settings": settings.comparable(),
            "edge": _pooling(setting.size, settings.size)[1],
            "held_out": apart,
            "generated": _detail(found),
        }
        if not setting.reference:
            sides = real.part(held_out), real.part(others)
            beside = _critics(*sides, settings, setting)
            figures["wasserstein_real"] = _figure(beside, *sides, setting)
            details["real"] = _detail(beside)
        if settings.reference_distance is not None:
            figures["w_score"] = _ratio(distance, settings.reference_distance)
        return Comparison(figures, details=details)


def critic_interval(found: Sequence[Estimate], n_real: int, n_generated: int) -> dict[str, Any] | None:
    """Interval of the expectation of the mean estimate at these numbers of volumes; None where a spread is not known.

    Two variances add up. That of the volumes at hand: of the critics' values of single volumes, over the number of volumes, because
    all critics together measure nearly all of them. That of training: of the estimates, over the number of critics. The spread of
    the estimates alone is too small, because their halves share volumes: with the correction of Nadeau and Bengio (2003) it covered
    88 % instead of 95 %. `tests/bench/critic_coverage.py` measures the coverage.

    Args:
        found: of critics on other halves of the same volumes.
        n_real, n_generated: volumes of both sides.
    """
    spreads = [one.variances for one in found]
    if len(found) < 2 or any(variance is None for pair in spreads for variance in pair):
        return None
    values = [one.distance for one in found]
    of_volumes = float(np.mean(np.array(spreads, dtype=float) / (n_real, n_generated), axis=0).sum())
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, min(n_real, n_generated) - 1))
    half *= (of_volumes + float(np.var(values, ddof=1)) / len(values)) ** 0.5
    mean = float(np.mean(values))
    return {
        "low": mean - half,
        "high": mean + half,
        "level": LEVEL,
        "num_seeds": len(values),
        "method": "Student's t: variance over unseen volumes plus that over critics",
    }


def _critics(real: Side, generated: Side, settings: WassersteinSettings, setting: Setting) -> list[Estimate]:
    """Estimates in HU by one critic per seed; none where a side is too small."""
    if min(len(real.ids), len(generated.ids)) < MIN_VOLUMES:
        return []
    scale = (setting.window.upper_hu - setting.window.lower_hu) / 2
    count = 1 if setting.reference else settings.num_seeds
    seeds = [int(each) for each in np.random.SeedSequence(setting.seed).generate_state(count)]
    with _pooled(real, setting) as first, _pooled(generated, setting) as second:
        found = [estimate_distance(first, second, settings.effort, seed, setting.device) for seed in seeds]
    return [_in_hu(one, scale) for one in found]


def _in_hu(one: Estimate, scale: float) -> Estimate:
    first, second = (None if variance is None else variance * scale**2 for variance in one.variances)
    return Estimate(one.distance * scale, (first, second), one.gradient_norm, [scale * gap for gap in one.trace])


@contextmanager
def _pooled(side: Side, setting: Setting) -> Iterator[Volumes]:
    """The volumes of a side as a critic sees them: what was kept of them, or, of large ones, from a temporary file.

    They are read once, and memory does not grow with their size.
    """
    _, edge = _pooling(setting.size, setting.settings[NAME].size)
    with TemporaryFile() as file:
        kept: Any = side.seen.get(NAME)
        if kept is None or kept[0] is None:
            kept = np.memmap(file, np.float16, "w+", shape=(len(side.ids), edge, edge, edge))
            for place, name in enumerate(side.ids):
                kept[place] = _as_seen(side.read(name), setting)
        yield Volumes(
            len(side.ids), edge, lambda places: torch.from_numpy(np.stack([kept[k] for k in places]).astype(np.float32))
        )


def _as_seen(hu: Hu, setting: Setting) -> NDArray[np.float16]:
    """A volume pooled and cut to whole blocks, the window's ends at -1 and 1."""
    window = setting.window
    factor, edge = _pooling(setting.size, setting.settings[NAME].size)
    middle, half = (window.upper_hu + window.lower_hu) / 2, (window.upper_hu - window.lower_hu) / 2
    cut = hu[(slice(edge * factor),) * 3].reshape(edge, factor, edge, factor, edge, factor)
    return ((cut.mean(axis=(1, 3, 5), dtype=np.float32) - middle) / half).astype(np.float16)


def _pooling(edge: int, size: int | None) -> tuple[int, int]:
    """Voxels that are pooled along an edge, and the pooled edge, cut to a multiple of the critic's blocks."""
    factor = 1 if size is None else -(-edge // size)
    return factor, edge // factor // PATCH * PATCH


def _figure(found: Sequence[Estimate], real: Side, generated: Side, setting: Setting) -> Figure:
    """The mean of some estimates, with what it depends on."""
    settings: WassersteinSettings = setting.settings[NAME]
    sizes = len(real.ids), len(generated.ids)
    if not found:
        words = f"A critic needs {MIN_VOLUMES} volumes of each side; there are {sizes[0]} and {sizes[1]}."
        return Figure(None, *sizes, unit="HU", note=words)
    note = f"Critics of {settings.steps} steps, {_pooling(setting.size, settings.size)[1]}³ voxels; root mean square over voxels."
    if min(sizes) < _FEW:
        note += f" From {min(sizes)} volumes on the smaller side a critic generalises badly: the value is too low."
    values = [one.distance for one in found]
    interval = critic_interval(found, *sizes) if setting.num_subsamples else None
    return Figure(float(np.mean(values)), *sizes, unit="HU", interval=interval, note=note)


def _ratio(distance: Figure, reference: float) -> Figure:
    """A distance in units of the reference run's, which counts as exact."""
    value = None if distance.value is None else distance.value / reference
    interval = distance.interval and distance.interval | {
        end: distance.interval[end] / reference for end in ("low", "high")
    }
    note = distance.note if value is None else f"Relative to {reference:g} HU of the reference run, taken as exact."
    return Figure(value, distance.n_real, distance.n_generated, interval=interval, note=note)


def _detail(found: Sequence[Estimate]) -> dict[str, Any]:
    """Each critic's estimate and gradient norm, and the mean trace of their trainings, HU."""
    if not found:
        return {}
    return {
        "distances_hu": rounded([one.distance for one in found]),
        "gradient_norms": rounded([one.gradient_norm for one in found]),
        "trace_hu": rounded(np.mean([one.trace for one in found], axis=0)),
    }


METRIC = Wasserstein()
