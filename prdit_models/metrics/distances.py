"""What distances on features have in common: sides, names, notes, intervals."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from numpy.typing import ArrayLike

from prdit_models.metrics.intervals import Range, Subsampling, interval
from prdit_models.metrics.metric import About, Comparison, Figure, Hu, NoSettings, Setting, Side
from prdit_models.metrics.pairs import Matrix, Pairs, feature_sets

MIN_VOLUMES = 2  # of a side of a distance
MIN_FOR_INTERVAL = 5  # volumes of a side
FEW = 100  # volumes of a side: below that, biased figures depend on n more than on most models
RANDOM_SUFFIX = "_random_features"  # ends the name of every distance that was computed on random features
VAL_SUFFIX = "_val"
_SIDES = {"": "all real volumes", VAL_SUFFIX: "held-out volumes only"}


class FeatureDistance(ABC):
    """A metric on features: to all real volumes, and to the held-out ones alone where there are enough.

    Attributes:
        name: of its row of METRICS.
        about: its figures by their names without suffixes.
        ranges: what values each can have; a share is of the volumes of one side.
        unbiased: those whose expectation does not depend on the number of volumes.
        left_out: share of both sides that a subsample leaves out, for the intervals.
    """

    name: str
    settings: type[Any] = NoSettings
    about: Mapping[str, About]
    ranges: Mapping[str, Range]
    unbiased: frozenset[str] = frozenset()
    left_out: float = 0.5

    @cached_property
    def figures(self) -> Mapping[str, About]:
        """Every figure in the names it can have."""
        return {
            f"{name}{side}{suffix}": About(
                f"{about.title}{' (random features)' * bool(suffix)}, {words}", about.better, about.source, about.caveat
            )
            for name, about in self.about.items()
            for side, words in _SIDES.items()
            for suffix in ("", RANDOM_SUFFIX)
        }

    @abstractmethod
    def pairs(self, real: Matrix, generated: Matrix) -> Pairs:
        """What the figures need of every pair of volumes, from features (n, d) and (m, d)."""

    @abstractmethod
    def of_pairs(self, pairs: Pairs, settings: Any) -> dict[str, float]:
        """The figures by their names without suffixes.

        Raises: ValueError: too few volumes, or figures that are not defined for them.
        """

    def values(self, real: Matrix, generated: Matrix, settings: Any) -> dict[str, float]:
        """The same figures from features; for those that have a faster way than `of_pairs`."""
        return self.of_pairs(self.pairs(real, generated), settings)

    def min_for_interval(self, settings: Any) -> int:
        """Volumes of a side that an interval needs."""
        return MIN_FOR_INTERVAL

    def of_volume(self, hu: Hu, setting: Setting) -> None:
        """Nothing: it works on features."""
        return

    def compare(self, real: Side, generated: Side, setting: Setting) -> Comparison:
        """Figures of both sides; on random features their names end in `RANDOM_SUFFIX`."""
        sides = {"": list(range(len(real.ids)))}
        if len(held_out := real.of_role("val")) >= MIN_VOLUMES:
            sides[VAL_SUFFIX] = held_out
        suffix = RANDOM_SUFFIX if setting.random_features else ""
        return Comparison(
            {
                f"{name}{side}{suffix}": figure
                for side, places in sides.items()
                for name, figure in self.measured(real.features[places], generated.features, setting).items()
            }
        )

    def measured(self, real: ArrayLike, generated: ArrayLike, setting: Setting) -> dict[str, Figure]:
        """The figures of two sets of features by their names without suffixes, with intervals where there are enough volumes."""
        first, second = feature_sets(real, generated)
        own = setting.settings.get(self.name) or self.settings()
        sizes = len(first), len(second)
        counts: dict[str, Any] = {"n_real": sizes[0], "n_generated": sizes[1], "features": setting.features}
        try:
            values = self.values(first, second, own)
        except ValueError as error:  # too few volumes, or duplicates
            return {name: Figure(None, **counts, note=str(error)) for name in self.about}
        few, failed = min(sizes) < self.min_for_interval(own), ""
        intervals: dict[str, dict[str, Any] | None] = dict.fromkeys(values)
        if setting.num_subsamples > 1 and not setting.reference and not few:
            try:
                intervals = self._intervals(first, second, values, own, setting)
            except ValueError as error:
                failed = f"No interval: {error}"
        return {
            name: Figure(value, **counts, interval=intervals[name], note=failed or self._note(name, min(sizes), few))
            for name, value in values.items()
        }

    def _intervals(
        self, real: Matrix, generated: Matrix, values: dict[str, float], own: Any, setting: Setting
    ) -> dict[str, dict[str, Any] | None]:
        sizes = len(real), len(generated)
        subsampling = Subsampling(self.left_out, setting.num_subsamples, setting.seed)
        drawn = [
            list(self.of_pairs(pairs, own).values()) for (pairs,) in subsampling.draws(self.pairs, real, (generated,))
        ]
        errors = zip(*subsampling.standard_errors(drawn, sizes), strict=True)
        return {
            name: interval(value, (float(below), float(above)), self.ranges[name], sizes, subsampling)
            for (name, value), (below, above) in zip(values.items(), errors, strict=True)
        }

    def _note(self, name: str, smallest: int, few: bool) -> str:
        bias = "" if name in self.unbiased else ", biased by so few"
        if few:
            return f"Only {smallest} volumes on a side: too few for an interval{bias}."
        if smallest < FEW:
            return f"{smallest} volumes on the smaller side{bias}: compare only with runs of the same n."
        return ""
