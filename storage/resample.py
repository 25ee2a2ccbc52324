"""A scan -> the store's axis-aligned LPS grid, in slabs so that memory stays bounded.

Interpolation is separable. Where the scan's axes lie along the patient's (nearly always) it is computed as one matrix per
axis, ten times faster than voxel by voxel; oblique and tilted scans go through SimpleITK. Both compute the same interpolation,
and a test compares them.
"""

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
from numpy.typing import NDArray

from storage.geometry import AIR_HU, Volume, to_int16_hu
from storage.sources.source import SourceVolume

SLAB_VOXELS = 96  # output slices computed at once
# Beyond this many source slices a cubic B-spline coefficient keeps 0.268**12 = 1e-7 of a neighbour's influence.
SPLINE_MARGIN = 12
ALIGNED_TOLERANCE = 1e-5  # direction cosines; 0.004 mm over the width of a chest
_INTERPOLATORS = {"cubic": sitk.sitkBSpline3, "linear": sitk.sitkLinear}


def target_grid(scan: SourceVolume, spacing_mm: float) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape (z, y, x) and origin (x, y, z) of the LPS grid that covers every voxel of a scan, faces included."""
    shape = np.asarray(scan.hu.shape[::-1])
    corners = np.asarray([[(-0.5, n - 0.5)[(k >> axis) & 1] for axis, n in enumerate(shape)] for k in range(8)])
    world = corners * scan.spacing_mm @ scan.direction.T + scan.origin_mm
    low, high = world.min(axis=0), world.max(axis=0)
    count = np.maximum(1, np.ceil((high - low) / spacing_mm - 1e-3)).astype(int)
    origin = (low + high) / 2 - (
        count - 1
    ) / 2 * spacing_mm  # what it covers beyond the scan is split evenly between both sides
    return (int(count[2]), int(count[1]), int(count[0])), (float(origin[0]), float(origin[1]), float(origin[2]))


def resample_series(scan: SourceVolume, *, spacing_mm: float, interpolation: str) -> Volume:
    """Interpolate a scan on the store's grid; outside the scan is AIR_HU.

    Args:
        scan: HU at least AIR_HU already (clamped before interpolation, so that field-of-view fill does not ring
            into the body).
        spacing_mm: target distance on every axis.
        interpolation: "cubic" (B-spline of order 3) or "linear".
    Returns: int16 HU; overshoot below AIR_HU is clamped.
    """
    shape, origin = target_grid(scan, spacing_mm)
    spacing = (spacing_mm, spacing_mm, spacing_mm)
    if is_aligned(scan.direction):
        return Volume(_resample_aligned(scan, shape, origin, spacing_mm, interpolation), spacing, origin)
    return Volume(_resample_oblique(scan, shape, origin, spacing_mm, interpolation), spacing, origin)


def is_aligned(direction: NDArray[np.float64]) -> bool:
    """Whether every index axis runs along a patient axis, in either direction."""
    rounded = np.rint(direction)
    return bool(np.abs(direction - rounded).max() < ALIGNED_TOLERANCE and np.abs(rounded).sum() == 3)


def axis_weights(
    num_in: int,
    spacing_in: float,
    first_in: float,
    num_out: int,
    spacing_out: float,
    first_out: float,
    interpolation: str,
) -> NDArray[np.float32]:
    """Matrix (num_out, num_in) that interpolates along one axis; positions in mm, samples mirrored at both ends.

    Cubic: B-spline of order 3 through the samples. The basis values at the new positions times the inverse of the
    (tridiagonal) matrix of basis values at the samples.
    Source: Unser, "Splines: a perfect fit", IEEE Signal Processing Magazine 1999, eq. 1-3 and its cubic kernel.
    """
    place = (first_out + np.arange(num_out) * spacing_out - first_in) / spacing_in
    taps = (-1, 0, 1, 2) if interpolation == "cubic" else (0, 1)
    base = np.floor(place).astype(int)
    basis = np.zeros((num_out, num_in))
    for tap in taps:
        distance = np.abs(place - (base + tap))
        value = _cubic_kernel(distance) if interpolation == "cubic" else 1 - distance
        np.add.at(basis, (np.arange(num_out), _mirrored(base + tap, num_in, interpolation)), value)
    if interpolation == "linear":
        return basis.astype(np.float32)
    samples = np.zeros((num_in, num_in))
    for tap, value in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
        np.add.at(samples, (np.arange(num_in), _mirrored(np.arange(num_in) + tap, num_in, interpolation)), value)
    weights: NDArray[np.float32] = np.linalg.solve(samples.T, basis.T).T.astype(np.float32)
    return weights


def _cubic_kernel(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far)


def _mirrored(index: NDArray[np.int_], count: int, interpolation: str) -> NDArray[np.int_]:
    if interpolation == "linear" or count == 1:
        return np.clip(index, 0, count - 1)  # linear keeps the last sample's value over half a voxel
    period = 2 * (count - 1)
    index = np.mod(index, period)
    return np.where(index < count, index, period - index)


def _resample_aligned(
    scan: SourceVolume,
    shape: tuple[int, int, int],
    origin: tuple[float, float, float],
    spacing_mm: float,
    interpolation: str,
) -> NDArray[np.int16]:
    signs = np.rint(scan.direction)
    index_axis = [int(np.abs(signs[world]).argmax()) for world in range(3)]  # which index axis runs along x, y, z
    source = scan.hu.transpose([2 - index_axis[world] for world in (2, 1, 0)])
    weights = []
    for world in (2, 1, 0):
        axis = index_axis[world]
        step = scan.spacing_mm[axis]
        count = scan.hu.shape[2 - axis]
        first = scan.origin_mm[world]
        if signs[world, axis] < 0:  # count from the other end, so that the axis grows
            first -= (count - 1) * step
            source = np.flip(source, 2 - world)
        weights.append(axis_weights(count, step, first, shape[2 - world], spacing_mm, origin[world], interpolation))
    along_z, along_y, along_x = weights
    out = np.empty(shape, dtype=np.int16)
    for start in range(0, shape[0], SLAB_VOXELS):
        rows = along_z[start : start + SLAB_VOXELS]
        used = np.flatnonzero(np.abs(rows).max(axis=0) > 1e-7)
        part = slice(int(used[0]), int(used[-1]) + 1)
        slab = np.tensordot(rows[:, part], source[part].astype(np.float32), axes=1)
        slab = np.matmul(along_y, slab)
        out[start : start + SLAB_VOXELS] = to_int16_hu(np.matmul(slab, along_x.T))
    return out


def _resample_oblique(
    scan: SourceVolume,
    shape: tuple[int, int, int],
    origin: tuple[float, float, float],
    spacing_mm: float,
    interpolation: str,
) -> NDArray[np.int16]:
    out = np.full(shape, AIR_HU, dtype=np.int16)
    for first in range(0, shape[0], SLAB_VOXELS):
        count = min(SLAB_VOXELS, shape[0] - first)
        corner = (origin[0], origin[1], origin[2] + first * spacing_mm)
        low, high = _source_range(scan, corner, (count, *shape[1:]), spacing_mm)
        if low < high:
            out[first : first + count] = _slab(scan, low, high, corner, (count, *shape[1:]), spacing_mm, interpolation)
    return out


def _source_range(
    scan: SourceVolume, corner: tuple[float, float, float], shape: tuple[int, int, int], spacing_mm: float
) -> tuple[int, int]:
    """Source slices [low, high) that a box of output voxels needs, margin included."""
    extent = [(n - 1) * spacing_mm for n in shape[::-1]]
    corners = np.asarray([[corner[a] + extent[a] * ((k >> a) & 1) for a in range(3)] for k in range(8)])
    inverse = np.linalg.inv(scan.direction * np.asarray(scan.spacing_mm))
    depth = ((corners - scan.origin_mm) @ inverse.T)[:, 2]
    low = max(0, int(np.floor(depth.min())) - SPLINE_MARGIN)
    high = min(scan.hu.shape[0], int(np.ceil(depth.max())) + SPLINE_MARGIN + 1)
    return low, high


def _slab(
    scan: SourceVolume,
    low: int,
    high: int,
    corner: tuple[float, float, float],
    shape: tuple[int, int, int],
    spacing_mm: float,
    interpolation: str,
) -> NDArray[np.int16]:
    image = sitk.GetImageFromArray(np.asarray(scan.hu[low:high], dtype=np.float32))
    image.SetSpacing(scan.spacing_mm)
    shift = scan.direction[:, 2] * scan.spacing_mm[2] * low
    image.SetOrigin([float(o + s) for o, s in zip(scan.origin_mm, shift, strict=True)])
    image.SetDirection([float(v) for v in scan.direction.ravel()])
    resampler = sitk.ResampleImageFilter()
    resampler.SetNumberOfThreads(1)  # series are ingested in parallel processes
    resampler.SetInterpolator(_INTERPOLATORS[interpolation])
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    resampler.SetDefaultPixelValue(AIR_HU)
    resampler.SetOutputOrigin(corner)
    resampler.SetOutputSpacing((spacing_mm,) * 3)
    resampler.SetOutputDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
    resampler.SetSize([int(n) for n in shape[::-1]])
    resampled = resampler.Execute(image)  # keeps a name: the array view does not keep the image's memory alive
    return to_int16_hu(sitk.GetArrayViewFromImage(resampled))
