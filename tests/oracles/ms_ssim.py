"""Multi-scale structural similarity of volumes in float64, from the definition in the parity manifest."""

import numpy as np
from scipy import ndimage

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SIGMA = 1.5
K1, K2 = 0.01, 0.03


def _smooth(volume: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Separable filter, valid part only."""
    margin = len(kernel) // 2
    for axis in range(3):
        volume = ndimage.correlate1d(volume, kernel, axis=axis, mode="constant")
    return volume[(slice(margin, -margin),) * 3]


def _terms(first: np.ndarray, second: np.ndarray, kernel: np.ndarray, data_range: float) -> tuple[float, float]:
    """Means of SSIM and of its contrast-structure part."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean1, mean2 = _smooth(first, kernel), _smooth(second, kernel)
    var1 = _smooth(first * first, kernel) - mean1**2
    var2 = _smooth(second * second, kernel) - mean2**2
    covariance = _smooth(first * second, kernel) - mean1 * mean2
    contrast = (2.0 * covariance + c2) / (var1 + var2 + c2)
    luminance = (2.0 * mean1 * mean2 + c1) / (mean1**2 + mean2**2 + c1)
    return float((luminance * contrast).mean()), float(contrast.mean())


def _halve(volume: np.ndarray) -> np.ndarray:
    """Means of 2³ blocks, an odd last plane dropped."""
    d, h, w = (edge // 2 for edge in volume.shape)
    return volume[: 2 * d, : 2 * h, : 2 * w].reshape(d, 2, h, 2, w, 2).mean(axis=(1, 3, 5))


def ms_ssim(
    first: np.ndarray,
    second: np.ndarray,
    data_range: float = 1.0,
    kernel_size: int = 3,
    weights: tuple[float, ...] = WEIGHTS,
) -> float:
    """MS-SSIM of two volumes (D, H, W)."""
    offsets = np.arange(kernel_size) - (kernel_size - 1) / 2
    kernel = np.exp(-(offsets**2) / (2 * SIGMA**2))
    kernel /= kernel.sum()
    first, second = first.astype(np.float64), second.astype(np.float64)
    value = 1.0
    for scale, weight in enumerate(weights):
        ssim, contrast = _terms(first, second, kernel, data_range)
        term = ssim if scale == len(weights) - 1 else contrast
        value *= max(term, 0.0) ** weight
        first, second = _halve(first), _halve(second)
    return value
