"""Perturbed volumes that the anatomy limits must reject; shared by tests and the table of docs/anatomy.md."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Hu = NDArray[np.float32]
Perturb = Callable[[Hu, float, np.random.Generator], Hu]
BLUR_MM = 16.0  # standard deviation: twice the voxel of a 32³ view


def noise(hu: Hu, _: float, rng: np.random.Generator) -> Hu:
    """White noise of the volume's mean and spread, saturated to the window."""
    return np.clip(rng.normal(hu.mean(), hu.std(), hu.shape), -1000, 1000).astype(np.float32)


def mirrored(hu: Hu, _: float, __: np.random.Generator) -> Hu:
    """Top to bottom."""
    return hu[::-1].copy()


def shuffled(hu: Hu, patches: int, rng: np.random.Generator) -> Hu:
    """Cut into patches³ cubes, put together in another order."""
    n, p = patches, hu.shape[0] // patches
    cubes = hu.reshape(n, p, n, p, n, p).transpose(0, 2, 4, 1, 3, 5).reshape(-1, p, p, p)
    return rng.permutation(cubes).reshape(n, n, n, p, p, p).transpose(0, 3, 1, 4, 2, 5).reshape(hu.shape)


def blurred(hu: Hu, voxel_mm: float, _: np.random.Generator) -> Hu:
    """By a Gaussian of `BLUR_MM`."""
    smooth: Hu = ndimage.gaussian_filter(hu, BLUR_MM / voxel_mm, mode="nearest")
    return smooth


PERTURBATIONS: dict[str, Perturb] = {
    "noise": noise,
    "mirrored top to bottom": mirrored,
    "shuffled, 4³ patches": lambda hu, _, rng: shuffled(hu, 4, rng),
    "shuffled, 8³ patches": lambda hu, _, rng: shuffled(hu, 8, rng),
    f"blurred, {BLUR_MM:g} mm": blurred,
}
