"""Interpolation along one axis as a banded matrix, and its product with planes and volumes.

A cubic spline needs every sample, but the influence of a sample falls by 0.268 from one to the next. So a few rows of the matrix
have few columns that count, and a product of small dense blocks is as exact as the whole one and many times as fast.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline

NEGLIGIBLE = 1e-6  # weights below are left out: 3000 HU of them are 0.003 HU
ROWS = 16  # output samples per block
COLUMNS = 12_000  # columns multiplied at once along the first axis: block and result stay in the processor's cache


class Band(NamedTuple):
    """Some rows of a matrix without the columns that do not count.

    Attributes:
        rows: output samples.
        columns: input samples.
        weights: float32, shape (rows, columns).
    """

    rows: slice
    columns: slice
    weights: NDArray[np.float32]


def axis_weights(
    samples_mm: NDArray[np.float64], positions_mm: NDArray[np.float64], interpolation: str
) -> NDArray[np.float64]:
    """Matrix (positions, samples) that interpolates along one axis; beyond the samples the value of the last one holds.

    Cubic: the natural cubic spline through the samples, even or not. It reproduces linear functions between the outermost samples.

    Args:
        samples_mm: where the samples are, strictly increasing.
        positions_mm: where values are wanted.
        interpolation: "cubic" or "linear".
    """
    if len(samples_mm) == 1:
        return np.ones((len(positions_mm), 1))
    unit = np.eye(len(samples_mm))
    if interpolation == "cubic":
        spline = make_interp_spline(samples_mm, unit, k=3, bc_type="natural")
    else:
        spline = make_interp_spline(samples_mm, unit, k=1)
    weights: NDArray[np.float64] = spline(np.clip(positions_mm, samples_mm[0], samples_mm[-1]))
    return weights


def coefficient_weights(num_samples: int) -> NDArray[np.float64]:
    """Matrix (samples + 2, samples) from even samples to the coefficients of the uniform cubic B-splines of their natural spline.

    Coefficient k + 1 belongs to the B-spline centred at sample k.
    Source: Unser, "Splines: a perfect fit", IEEE Signal Processing Magazine 1999, eq. 1-3.
    """
    if num_samples == 1:
        return np.ones((3, 1))
    values = np.zeros((num_samples + 2, num_samples + 2))
    inner = np.arange(num_samples)
    for tap, weight in enumerate((1 / 6, 4 / 6, 1 / 6)):
        values[inner + 1, inner + tap] = weight
    values[0, :3] = values[-1, -3:] = (1, -2, 1)  # no curvature at both ends
    return np.asarray(np.linalg.solve(values, np.eye(num_samples + 2)[:, 1:-1]), dtype=np.float64)


def bands(weights: NDArray[np.float64]) -> list[Band]:
    """A matrix in blocks of `ROWS` rows without the columns whose weights are `NEGLIGIBLE`."""
    found = []
    for start in range(0, len(weights), ROWS):
        block = weights[start : start + ROWS]
        used = np.flatnonzero(np.abs(block).max(axis=0) > NEGLIGIBLE)
        columns = slice(int(used[0]), int(used[-1]) + 1)
        found.append(Band(slice(start, start + len(block)), columns, block[:, columns].astype(np.float32)))
    return found


def times_plane(
    along_rows: list[Band], along_columns: list[Band], plane: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Interpolate a plane along both its axes.

    Args:
        along_rows: for axis 0.
        along_columns: for axis 1.
        plane: float32.
        out: shape (rows of along_rows, rows of along_columns).
    """
    half = np.empty((out.shape[0], plane.shape[1]), dtype=np.float32)
    for band in along_rows:
        np.matmul(band.weights, plane[band.columns], out=half[band.rows])
    for band in along_columns:
        np.matmul(half[:, band.columns], band.weights.T, out=out[:, band.rows])


def nearest(samples_mm: NDArray[np.float64], positions_mm: NDArray[np.float64]) -> NDArray[np.intp]:
    """Index of the sample nearest to each position; the later one of two as near."""
    found: NDArray[np.intp] = np.searchsorted((samples_mm[1:] + samples_mm[:-1]) / 2, positions_mm, side="right")
    return found
