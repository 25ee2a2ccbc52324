"""Several samples of one measurement as an estimate: mean, standard deviation and interval of each voxel, without keeping them."""

import math
from typing import Self

import numpy as np
import scipy  # whose modules are imported when they are used
from numpy.typing import ArrayLike, NDArray


class VoxelMoments:
    """Mean and standard deviation of each voxel over volumes that come one by one; two float64 arrays, for any number of them.

    Attributes:
        count: volumes so far.
    Source: Welford 1962; Chan et al. 1979 for `merge`.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: NDArray[np.float64] | None = None
        self._squares: NDArray[np.float64] | None = None  # sum of squared distances from the mean

    def add(self, volume: ArrayLike) -> None:
        """Take one more volume, of any shape and unit, the same for all.

        Raises: ValueError: another shape than those before, or values that are not finite.
        """
        values = np.asarray(volume, dtype=np.float64)
        if not np.isfinite(values).all():
            count = int((~np.isfinite(values)).sum())
            raise ValueError(f"{count} of {values.size} voxels of sample {self.count} are not finite; leave it out.")
        if self._mean is None or self._squares is None:
            self.count, self._mean, self._squares = 1, values.copy(), np.zeros_like(values)
            return
        self._check(values.shape)
        self.count += 1
        distance = values - self._mean
        self._mean += distance / self.count
        distance *= values - self._mean
        self._squares += distance

    def merge(self, other: Self) -> None:
        """Take all volumes of another, such as a worker's. Raises: ValueError: another shape."""
        if other._mean is None or other._squares is None:
            return
        if self._mean is None or self._squares is None:
            self.count, self._mean, self._squares = other.count, other._mean.copy(), other._squares.copy()
            return
        self._check(other._mean.shape)
        count, distance = self.count + other.count, other._mean - self._mean
        self._mean += distance * (other.count / count)
        self._squares += other._squares + distance**2 * (self.count * other.count / count)
        self.count = count

    @property
    def mean(self) -> NDArray[np.float64]:
        """Of each voxel: the estimate with the least expected squared error. Raises: ValueError: there is no volume."""
        if self._mean is None:
            raise ValueError("There are no samples to estimate from; draw at least one.")
        return self._mean.copy()

    @property
    def std(self) -> NDArray[np.float64]:
        """Of each voxel, unbiased in its square (n - 1). Raises: ValueError: there are fewer than two volumes."""
        if self._squares is None or self.count < 2:
            raise ValueError(
                f"There {'is 1 sample' if self.count == 1 else 'are no samples'}; a standard deviation needs at least 2 (several "
                "seeds of one measurement)."
            )
        found: NDArray[np.float64] = np.sqrt(self._squares / (self.count - 1))
        return found

    def interval(self, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper ends of the interval of each voxel that contains another draw, such as the truth, with a probability.

        mean ± t·std·√(1 + 1/n), t the quantile of Student's distribution with n - 1 degrees of freedom: exact for any n where a
        voxel's values are normal. Quantiles of the samples themselves would need all of them kept, and n ≥ 39 for 95 %.

        Args:
            level: of the probability, between 0 and 1.
        Raises: ValueError: there are fewer than two volumes, or the level is out of range.
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"level is {level}; expected between 0 and 1, such as 0.95.")
        std = self.std
        factor = float(scipy.stats.t.ppf((1 + level) / 2, self.count - 1)) * math.sqrt(1 + 1 / self.count)
        return self.mean - factor * std, self.mean + factor * std

    def _check(self, shape: tuple[int, ...]) -> None:
        if self._mean is not None and shape != self._mean.shape:
            raise ValueError(
                f"A sample has shape {shape}; those before have {self._mean.shape}. Samples of one measurement have one grid."
            )
