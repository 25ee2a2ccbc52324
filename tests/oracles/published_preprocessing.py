"""The published preprocessing, loader and split, restated from SPEC §5 for comparison. Of this the product has the mappings."""

import random

import numpy as np
from scipy import ndimage

CUBE = 256


def centre_crop(volume: np.ndarray, edge: int) -> np.ndarray:
    """The middle cube; starts at floor((n - edge) / 2)."""
    starts = [(size - edge) // 2 for size in volume.shape]
    return volume[tuple(slice(start, start + edge) for start in starts)]


def _min_max(volume: np.ndarray) -> np.ndarray:
    low, high = volume.min(), volume.max()
    return (volume - low) / (high - low)


def resampled_shape(shape: tuple[int, ...], zooms: tuple[float, ...]) -> tuple[int, ...]:
    """Edges at 1 mm, rounded half to even; zooms as a NIfTI header keeps them (float32)."""
    return tuple(round(n * float(np.float32(zoom))) for n, zoom in zip(shape, zooms, strict=True))


def lidc_crop(volume: np.ndarray, zooms: tuple[float, ...]) -> np.ndarray:
    """LIDC-IDRI: cubic to 1 mm, centre 256³, still in HU (SPEC §5.1).

    Raises: ValueError: if an edge is under 256 mm (the published script drops such a case).
    """
    if min(resampled_shape(volume.shape, zooms)) < CUBE:
        raise ValueError(f"{volume.shape} at {zooms} mm is smaller than {CUBE} mm along an axis.")
    factors = [float(np.float32(zoom)) for zoom in zooms]
    resampled = ndimage.zoom(volume.astype(np.float64), factors, order=3, mode="nearest")
    return centre_crop(resampled, CUBE)


def preprocess_lidc(volume: np.ndarray, zooms: tuple[float, ...]) -> np.ndarray:
    """The crop as `unit_lidc` maps it.

    Raises: ValueError: as `lidc_crop`.
    """
    return unit_lidc(lidc_crop(volume, zooms))


def unit_lidc(crop: np.ndarray) -> np.ndarray:
    """LIDC-IDRI: floor -1000 and cap at the 0.999 quantile, min-max to [0, 1] (SPEC §5.1)."""
    crop = np.maximum(crop, -1000.0)
    return _min_max(np.minimum(crop, np.quantile(crop, 0.999)))


def preprocess_rad(volume: np.ndarray, target: tuple[int, ...], upper_quantile: float) -> np.ndarray:
    """RAD-ChestCT: clip to ±1000, centre 256³, linear to the target, cap at a quantile, min-max to [0, 1] (SPEC §5.2)."""
    crop = centre_crop(np.clip(volume.astype(np.float32), -1000.0, 1000.0), CUBE)
    if tuple(target) != crop.shape:
        factors = [edge / CUBE for edge in target]
        crop = ndimage.zoom(crop, factors, order=1, mode="constant", cval=-1000.0)
    return _min_max(np.clip(crop, -1000.0, np.quantile(crop, upper_quantile))).astype(np.float32)


def pool(volume: np.ndarray, factor: int) -> np.ndarray:
    """Means of non-overlapping factor³ blocks."""
    d, h, w = (edge // factor for edge in volume.shape)
    return volume.reshape(d, factor, h, factor, w, factor).mean(axis=(1, 3, 5))


def lidc_item(unit_volume: np.ndarray, size: int) -> np.ndarray:
    """What the published loader returns for a [0, 1] volume: float32, pooled, 2v - 1, with a channel (SPEC §5.3)."""
    pooled = pool(unit_volume.astype(np.float32).astype(np.float64), unit_volume.shape[0] // size)
    return (2.0 * pooled - 1.0)[None]


def published_split(
    names: list[str], seed: int, val_ratio: float | None, val_size: int | None
) -> tuple[list[str], list[str]]:
    """Shuffle the sorted names; the last ones are validation (SPEC §5.4)."""
    order = sorted(names)
    random.Random(seed).shuffle(order)
    count = (
        val_size if val_size is not None else max(1, round(len(order) * (val_ratio if val_ratio is not None else 0.1)))
    )
    return order[:-count], order[-count:]
