"""Phantom patients as a model sees them, for tests and benchmarks of what is measured of a volume."""

import numpy as np
from numpy.typing import NDArray

from storage.phantom.anatomy import Anatomy

BOX_MM = 256


def phantom_box(patient: int, size: int, *, seed: int = 5, noise_hu: float = 14.0) -> NDArray[np.float32]:
    """A patient in a box of 256 mm, saturated to [-1000, 1000] HU, shape (S, S, S).

    Args:
        patient: number of the patient, and seed of the noise.
        size: voxels of an edge.
        seed: of the patients.
        noise_hu: standard deviation of white noise.
    """
    place = ((np.arange(size) - (size - 1) / 2) * BOX_MM / size).astype(np.float32)
    z, y, x = np.meshgrid(place, place, place, indexing="ij")
    noise = np.random.default_rng(patient).normal(0, noise_hu, (size,) * 3)
    return np.clip(Anatomy.draw(seed, patient).hu(x, y, z) + noise, -1000, 1000).astype(np.float32)
