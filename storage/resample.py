"""A scan -> the store's axis-aligned LPS grid.

Interpolation is separable. Where the scan's axes lie along the patient's (nearly always) it is one banded matrix per axis, fifty
times as fast as voxel by voxel; oblique and tilted scans are evaluated voxel by voxel. Both compute the same spline, and a test
compares them.
"""

from functools import reduce
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from storage.fill import Fill, has_fill
from storage.geometry import AIR_HU, Float3, Int3, Volume, to_int16_hu
from storage.sources.source import SourceVolume
from storage.spline import COLUMNS, Band, axis_weights, bands, coefficient_weights, nearest, times_plane

SLAB_VOXELS = 2  # output planes of an oblique scan computed at once: about 100 bytes of memory per voxel
ALIGNED_TOLERANCE = 1e-5  # direction cosines; 0.004 mm over the width of a chest


def target_grid(scan: SourceVolume, spacing_mm: float) -> tuple[Int3, Float3]:
    """Shape (z, y, x) and origin (x, y, z) of the LPS grid that covers every voxel of a scan, faces included."""
    shape = np.asarray(scan.hu.shape[::-1])
    corners = np.asarray([[(-0.5, n - 0.5)[(k >> axis) & 1] for axis, n in enumerate(shape)] for k in range(8)])
    world = corners * scan.spacing_mm @ scan.direction.T + scan.origin_mm
    low, high = world.min(axis=0), world.max(axis=0)
    count = np.maximum(1, np.ceil((high - low) / spacing_mm - 1e-3)).astype(int)
    # What it covers beyond the scan is split evenly between both sides.
    origin = (low + high) / 2 - (count - 1) / 2 * spacing_mm
    return (int(count[2]), int(count[1]), int(count[0])), (float(origin[0]), float(origin[1]), float(origin[2]))


def resample_series(scan: SourceVolume, *, spacing_mm: float, interpolation: str) -> Volume:
    """Interpolate a scan on the store's grid; outside the scan, and where the nearest voxel is FILL_HU, is AIR_HU.

    Planes are taken where they were recorded (`SourceVolume.slice_mm`). An oblique scan with uneven planes is first interpolated
    along k, on even ones.

    Args:
        scan: HU at least AIR_HU, or FILL_HU: the nearest tissue takes the place of fill before interpolation, so that it does not
            ring into the body.
        spacing_mm: target distance on every axis.
        interpolation: "cubic" (natural cubic spline) or "linear"; half a voxel beyond the outermost samples their value holds.
    Returns: int16 HU; overshoot below AIR_HU is clamped.
    """
    shape, origin = target_grid(scan, spacing_mm)
    centres = [origin[world] + np.arange(shape[2 - world], dtype=np.float64) * spacing_mm for world in range(3)]
    resample = _resample_aligned if is_aligned(scan.direction) else _resample_oblique
    return Volume(resample(scan, centres, interpolation), (spacing_mm,) * 3, origin)


def is_aligned(direction: NDArray[np.float64]) -> bool:
    """Whether every index axis runs along a patient axis, in either direction."""
    rounded = np.rint(direction)
    return bool(np.abs(direction - rounded).max() < ALIGNED_TOLERANCE and np.abs(rounded).sum() == 3)


def _offsets_mm(scan: SourceVolume, axis: int) -> NDArray[np.float64]:
    """Distance of each sample from the first along index axis i, j or k (0, 1, 2)."""
    if axis == 2 and scan.slice_mm is not None:
        return np.asarray(scan.slice_mm)
    return np.arange(scan.hu.shape[2 - axis], dtype=np.float64) * scan.spacing_mm[axis]


def _resample_aligned(scan: SourceVolume, centres: list[NDArray[np.float64]], interpolation: str) -> NDArray[np.int16]:
    signs = np.rint(scan.direction)
    index_axis = [int(np.abs(signs[world]).argmax()) for world in range(3)]  # which index axis runs along x, y, z
    source = scan.hu.transpose([2 - index_axis[world] for world in (2, 1, 0)])
    matrices, nearest_sample = [], []
    for world in (2, 1, 0):
        axis = index_axis[world]
        samples = scan.origin_mm[world] + signs[world, axis] * _offsets_mm(scan, axis)
        if signs[world, axis] < 0:  # count from the other end, so that the axis grows
            samples, source = samples[::-1], np.flip(source, 2 - world)
        matrices.append(bands(axis_weights(samples, centres[world], interpolation)))
        nearest_sample.append(nearest(samples, centres[world]))
    fill = Fill(source) if has_fill(source) else None
    z, y, x = nearest_sample
    planes = np.empty((len(source), len(y), len(x)), dtype=np.float32)
    _in_plane(source, fill, matrices[1:], planes)
    flat = planes.reshape(len(source), -1)
    out = np.empty((len(z), len(y) * len(x)), dtype=np.int16)
    for start in range(0, out.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        for band in matrices[0]:
            out[band.rows, part] = to_int16_hu(band.weights @ flat[band.columns, part])
    volume = out.reshape(len(z), len(y), len(x))
    if fill is not None:
        for plane, index in zip(volume, z, strict=True):
            plane[fill.mask[index][y][:, x]] = AIR_HU
    return volume


def _in_plane(
    source: NDArray[np.generic], fill: Fill | None, matrices: list[list[Band]], out: NDArray[np.float32]
) -> None:
    """Every plane of a scan, fill replaced, interpolated along its two axes."""
    for index, plane in enumerate(source):
        values = plane.astype(np.float32) if fill is None else fill.plane(index)
        times_plane(matrices[0], matrices[1], values, out[index])


def _resample_oblique(scan: SourceVolume, centres: list[NDArray[np.float64]], interpolation: str) -> NDArray[np.int16]:
    fill = Fill(scan.hu) if has_fill(scan.hu) else None
    order: Literal[1, 3] = 3 if interpolation == "cubic" else 1
    coefficients = _coefficients(scan, fill, interpolation)
    counts = scan.hu.shape[::-1]
    inverse = np.linalg.inv(scan.direction * np.asarray(scan.spacing_mm))
    x, y, z = (values - first for values, first in zip(centres, scan.origin_mm, strict=True))
    out = np.empty((len(z), len(y), len(x)), dtype=np.int16)
    for start in range(0, len(z), SLAB_VOXELS):
        slab = z[start : start + SLAB_VOXELS]
        index = [row[0] * x + row[1] * y[:, None] + row[2] * slab[:, None, None] for row in inverse]
        air = reduce(np.logical_or, [(a < -0.5) | (a > n - 0.5) for a, n in zip(index, counts, strict=True)])
        inside = [np.clip(a, 0, n - 1) for a, n in zip(index, counts, strict=True)]
        if fill is not None:
            k = nearest(_offsets_mm(scan, 2), inside[2] * scan.spacing_mm[2])
            j, i = (np.floor(a + 0.5).astype(np.intp) for a in (inside[1], inside[0]))
            air |= fill.mask[k, j, i]
        at = np.stack(inside[::-1]) + (order == 3)  # coefficients begin one before the samples
        values = np.empty(air.shape, dtype=np.float32)
        ndimage.map_coordinates(coefficients, at, values, order, mode="nearest", prefilter=False)
        out[start : start + SLAB_VOXELS] = np.where(air, AIR_HU, to_int16_hu(values))
    return out


def _coefficients(scan: SourceVolume, fill: Fill | None, interpolation: str) -> NDArray[np.float32]:
    """What `ndimage.map_coordinates` needs, on even planes: samples, or spline coefficients with one more at every end."""
    matrices = [coefficient_weights(n) if interpolation == "cubic" else np.eye(n) for n in scan.hu.shape]
    even = np.arange(len(scan.hu), dtype=np.float64) * scan.spacing_mm[2]
    matrices[0] = matrices[0] @ axis_weights(_offsets_mm(scan, 2), even, interpolation)
    along_k, *in_plane = (bands(matrix) for matrix in matrices)
    out = np.empty([len(matrix) for matrix in matrices], dtype=np.float32)
    _in_plane(scan.hu, fill, in_plane, out[: len(scan.hu)])
    flat = out.reshape(len(out), -1)
    for start in range(0, flat.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        samples = flat[: len(scan.hu), part].copy()
        for band in along_k:
            flat[band.rows, part] = band.weights @ samples[band.columns]
    return out
