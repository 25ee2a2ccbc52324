"""A series -> the store's axis-aligned LPS grid, in slabs so that memory stays bounded."""

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
from numpy.typing import NDArray

from storage.dicom_series import SourceSeries
from storage.geometry import AIR_HU, Volume, to_int16_hu

SLAB_VOXELS = 96  # output slices computed at once
# Beyond this many source slices a cubic B-spline coefficient keeps 0.268**12 = 1e-7 of a neighbour's influence.
SPLINE_MARGIN = 12
_INTERPOLATORS = {"cubic": sitk.sitkBSpline3, "linear": sitk.sitkLinear}


def target_grid(series: SourceSeries, spacing_mm: float) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape (z, y, x) and origin (x, y, z) of the LPS grid that covers every voxel of a series, faces included."""
    shape = np.asarray(series.hu.shape[::-1])
    corners = np.asarray([[(-0.5, n - 0.5)[(k >> axis) & 1] for axis, n in enumerate(shape)] for k in range(8)])
    world = corners * series.spacing_mm @ series.direction.T + series.origin_mm
    low, high = world.min(axis=0), world.max(axis=0)
    count = np.maximum(1, np.ceil((high - low) / spacing_mm - 1e-3)).astype(int)
    origin = (low + high) / 2 - (count - 1) / 2 * spacing_mm  # what the grid covers in excess is shared by both sides
    return (int(count[2]), int(count[1]), int(count[0])), (float(origin[0]), float(origin[1]), float(origin[2]))


def resample_series(series: SourceSeries, *, spacing_mm: float, interpolation: str, num_threads: int = 1) -> Volume:
    """Interpolate a series on the store's grid; outside the scan is AIR_HU.

    Args:
        series: HU at least AIR_HU already (clamped before interpolation, so that field-of-view fill does not ring
            into the body).
        spacing_mm: target distance on every axis.
        interpolation: "cubic" (B-spline of order 3) or "linear".
        num_threads: ITK threads.
    Returns: int16 HU; overshoot below AIR_HU is clamped.
    """
    shape, origin = target_grid(series, spacing_mm)
    out = np.full(shape, AIR_HU, dtype=np.int16)
    for first in range(0, shape[0], SLAB_VOXELS):
        count = min(SLAB_VOXELS, shape[0] - first)
        corner = (origin[0], origin[1], origin[2] + first * spacing_mm)
        low, high = _source_range(series, corner, (count, *shape[1:]), spacing_mm)
        if low < high:
            out[first : first + count] = _slab(
                series, low, high, corner, (count, *shape[1:]), spacing_mm, interpolation, num_threads
            )
    return Volume(out, (spacing_mm, spacing_mm, spacing_mm), origin)


def _source_range(
    series: SourceSeries, corner: tuple[float, float, float], shape: tuple[int, int, int], spacing_mm: float
) -> tuple[int, int]:
    """Source slices [low, high) that a box of output voxels needs, margin included."""
    extent = [(n - 1) * spacing_mm for n in shape[::-1]]
    corners = np.asarray([[corner[a] + extent[a] * ((k >> a) & 1) for a in range(3)] for k in range(8)])
    inverse = np.linalg.inv(series.direction * np.asarray(series.spacing_mm))
    depth = ((corners - series.origin_mm) @ inverse.T)[:, 2]
    low = max(0, int(np.floor(depth.min())) - SPLINE_MARGIN)
    high = min(series.hu.shape[0], int(np.ceil(depth.max())) + SPLINE_MARGIN + 1)
    return low, high


def _slab(
    series: SourceSeries,
    low: int,
    high: int,
    corner: tuple[float, float, float],
    shape: tuple[int, int, int],
    spacing_mm: float,
    interpolation: str,
    num_threads: int,
) -> NDArray[np.int16]:
    image = sitk.GetImageFromArray(np.asarray(series.hu[low:high], dtype=np.float32))
    image.SetSpacing(series.spacing_mm)
    shift = series.direction[:, 2] * series.spacing_mm[2] * low
    image.SetOrigin([float(o + s) for o, s in zip(series.origin_mm, shift, strict=True)])
    image.SetDirection([float(v) for v in series.direction.ravel()])
    resampler = sitk.ResampleImageFilter()
    resampler.SetNumberOfThreads(num_threads)
    resampler.SetInterpolator(_INTERPOLATORS[interpolation])
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    resampler.SetDefaultPixelValue(AIR_HU)
    resampler.SetOutputOrigin(corner)
    resampler.SetOutputSpacing((spacing_mm,) * 3)
    resampler.SetOutputDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
    resampler.SetSize([int(n) for n in shape[::-1]])
    resampled = resampler.Execute(image)  # named: the array view does not keep the image's memory alive
    return to_int16_hu(sitk.GetArrayViewFromImage(resampled))
