"""How near a reconstruction is to the truth: PSNR, SSIM, error by tissue, and whether its intervals hold what they promise."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from prdit_models.intensity import HounsfieldWindow
from prdit_models.inverse.estimate import VoxelMoments
from prdit_models.metrics.histogram import BANDS
from prdit_models.metrics.ms_ssim import ms_ssim

LEVELS = (0.5, 0.8, 0.9, 0.95)
MAX_PSNR_DB = 200.0  # of volumes that are equal, or as good as that: a file of figures holds no infinity
Hu = NDArray[np.float32]


def psnr_db(truth: Hu, volume: Hu, window: HounsfieldWindow) -> float:
    """Peak signal-to-noise ratio, 20·log10(width of the window / root mean square error), dB; 200 at most.

    Args:
        truth, volume: HU in the window, of one shape.
        window: whose width is the peak.
    """
    width = window.upper_hu - window.lower_hu
    error = float(np.sqrt(np.square(truth.astype(np.float64) - volume).mean()))
    return MAX_PSNR_DB if error == 0 else min(MAX_PSNR_DB, 20 * float(np.log10(width / error)))


def ssim(truth: Hu, volume: Hu, window: HounsfieldWindow) -> float:
    """Structural similarity of two volumes (D, H, W): Gaussian kernel of 3 voxels, one scale, the window's width as data range.

    Source: Wang et al., Image quality assessment (2004); see `prdit_models.metrics.ms_ssim`.
    """
    first, second = (torch.from_numpy(np.ascontiguousarray(each, dtype=np.float32)) for each in (truth, volume))
    return ms_ssim(first, second, window.upper_hu - window.lower_hu, scales=1)


def error_by_tissue(truth: Hu, volume: Hu) -> dict[str, float | None]:
    """Mean absolute error in HU, of `all` voxels and by the band of HU that the truth lies in; None where it has no such voxel."""
    error = np.abs(truth.astype(np.float64) - volume)
    found: dict[str, float | None] = {"all": float(error.mean())}
    for name, band in BANDS.items():
        inside = (truth >= band.low_hu) & (truth < band.high_hu)
        found[name] = float(error[inside].mean()) if inside.any() else None
    return found


def coverage(
    truth: Hu,
    samples: VoxelMoments,
    levels: Sequence[float] = LEVELS,
    among: NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """Share of voxels whose interval holds the truth, by nominal coverage as text; a calibrated model has equal numbers.

    Args:
        truth: HU.
        samples: moments of two samples or more.
        levels: nominal coverages.
        among: voxels that count, at least one; None: all.
    """
    found = {}
    for level in levels:
        low, high = samples.interval(level)
        held = (truth >= low) & (truth <= high)
        found[f"{level:g}"] = float((held if among is None else held[among]).mean())
    return found
