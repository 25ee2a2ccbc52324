"""An integer-only test volume, the same on every machine (SPEC §8)."""

import hashlib

import numpy as np

Axes = tuple[np.ndarray, np.ndarray, np.ndarray]


def _ellipsoid(scaled: Axes, centre: tuple[int, int, int], radii: tuple[int, int, int], top: int) -> np.ndarray:
    squares = [((axis - c) * 1000 // r) ** 2 for axis, c, r in zip(scaled, centre, radii, strict=True)]
    return np.clip(4 * (10**6 - squares[0] - squares[1] - squares[2]), 0, 10**6) * top // 10**6


def _triangle(values: np.ndarray, period: int) -> np.ndarray:
    return np.abs(values % (2 * period) - period)


def int_volume(shape: tuple[int, int, int], kind: str, seed: int) -> np.ndarray:
    """A body-like phantom, int16; kind "plain" or "outlier" (a few voxels 3000 higher)."""
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    scaled: Axes = tuple(axis * 1000 // edge for axis, edge in zip((z, y, x), shape, strict=True))  # type: ignore[assignment]
    volume = -1000 + _ellipsoid(scaled, (500, 500, 500), (480, 420, 450), 1040)
    volume -= _ellipsoid(scaled, (500, 450, 300), (350, 200, 150), 850)
    volume -= _ellipsoid(scaled, (500, 450, 700), (350, 200, 150), 850)
    volume += _ellipsoid(scaled, (480, 500, 560), (150, 110, 90), 120)
    volume += _ellipsoid(scaled, (500, 800, 500), (460, 60, 50), 900)
    volume += _ellipsoid(scaled, (300 + 20 * (seed % 7), 450, 290), (30, 40, 30), 700)
    volume += 2 * _triangle(3 * z + 2 * y, 23) - 23 + 2 * _triangle(2 * x + y, 17) - 17
    if kind == "outlier":
        volume += 3000 * ((7919 * z + 104729 * y + 1299709 * x + 15485863 * seed) % 20011 == 0)
    return np.clip(volume, -1500, 4000).astype(np.int16)


def sha256_c_order(volume: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(volume).tobytes()).hexdigest()
