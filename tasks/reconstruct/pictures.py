"""What was measured as pictures: a coarse, cut or thick-sliced volume on the grid of the volumes behind it, or the radiographs."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from prdit_models.inverse.operator import MeasurementOperator
from prdit_models.metrics.histogram import BANDS
from storage.geometry import AIR_HU, Volume, to_int16_hu
from tasks.model.slices import GAP, MARK_SIZE, TILE, DisplayWindow, Plane, enlarged, marked, orthogonal_planes
from tasks.reconstruct.placing import kept_of, places_of

BODY = DisplayWindow("body", 1400, -300)  # lungs and soft tissue in one picture
NOT_MEASURED = (31, 92, 99)  # colour of voxels without a value
_MOST_VIEWS = 4  # that are shown one by one; more are a sinogram
_FINER = 8  # pixels per voxel before a picture has its size: voxels of equal width, whatever that is
_BRIGHTEST = 99.5  # percentile of the path lengths that is white
Hu = NDArray[np.float32]
Index = tuple[int, int, int]


def measured_volume(operator: MeasurementOperator, values: torch.Tensor) -> Hu | None:
    """A measurement in HU on the model's grid: every voxel has the sample that is nearest to it, or NaN where nothing was measured.

    Args:
        operator: of the measurement.
        values: of it, shape (1, …).
    Returns: shape (z, y, x); None where the operator measures no volume.
    """
    kept = kept_of(operator)
    if kept is not None:
        return np.where(kept, operator.adjoint(values)[0, 0].numpy(), np.nan).astype(np.float32)
    if operator.unit != "HU" or values.dim() != 4:
        return None
    grid, found = operator.grid, values[0].numpy()
    for axis, (there, n, spacing) in enumerate(
        zip(places_of(operator), grid.shape, reversed(grid.spacing_mm), strict=True)
    ):
        sample = np.floor((np.arange(n) * spacing - there.first_mm) / there.distance_mm + 0.5).astype(int)
        outside = (sample < 0) | (sample >= there.count)
        found = np.moveaxis(np.take(found, np.clip(sample, 0, there.count - 1), axis), axis, 0).copy()
        found[outside] = np.nan
        found = np.moveaxis(found, 0, axis)
    return np.ascontiguousarray(found)


def through_lungs(hu: Hu, operator: MeasurementOperator) -> Index:
    """The (z, y, x) slices with most lung; behind a mask, with most of the lung that was not measured.

    Args:
        hu: shape (z, y, x).
        operator: of the measurement.
    Returns: the middle, of a volume without lung.
    """
    band, kept = BANDS["lung"], kept_of(operator)
    lung = ndimage.binary_erosion(
        (hu >= band.low_hu) & (hu < band.high_hu)
    )  # not the skin, half of it air in coarse voxels
    if kept is not None and (lung & ~kept).any():
        lung &= ~kept
    if not lung.any():
        z, y, x = (n // 2 for n in hu.shape)
    else:
        z, y, x = (int(lung.sum(axis=others).argmax()) for others in ((1, 2), (0, 2), (0, 1)))
    return z, y, x


def slices(
    hu: Hu, spacing_mm: float, window: DisplayWindow, at: Index, *, tile: int = TILE, marks: int = MARK_SIZE
) -> list[Image.Image]:
    """Axial, coronal and sagittal slice, RGB, smoothly enlarged.

    Args:
        hu: shape (z, y, x).
        spacing_mm: of cubic voxels.
        window: black to white.
        at: (z, y, x), which slices.
        tile: pixels of the longer side.
        marks: size of the letters at the sides, pixels; 0: none.
    """
    found = []
    for plane in _planes(hu, spacing_mm, at):
        picture = Image.fromarray(window.to_gray(enlarged(plane, tile))).convert("RGB")
        found.append(marked(picture, plane, marks) if marks else picture)
    return found


def voxels(
    hu: Hu, spacing_mm: float, window: DisplayWindow, at: Index, *, tile: int = TILE, marks: int = MARK_SIZE
) -> list[Image.Image]:
    """As `slices`, voxel by voxel; voxels without a value (NaN) have a colour."""
    found, missing = [], np.isnan(hu)
    holes = _planes(missing.astype(np.float32), spacing_mm, at)
    for plane, hole in zip(_planes(np.where(missing, AIR_HU, hu), spacing_mm, at), holes, strict=True):
        pixels = np.repeat(window.to_gray(plane.hu)[..., None], 3, axis=2)
        pixels[hole.hu > 0] = NOT_MEASURED
        scale = tile / max(plane.size_mm)
        size = (round(plane.size_mm[1] * scale), round(plane.size_mm[0] * scale))
        finer = Image.fromarray(pixels).resize([n * _FINER for n in plane.hu.T.shape], Image.Resampling.NEAREST)
        picture = finer.resize(size, Image.Resampling.BOX)
        found.append(marked(picture, plane, marks) if marks else picture)
    return found


def views(values: torch.Tensor, tile: int = TILE) -> list[Image.Image]:
    """Path lengths as radiographs, a picture per view, long paths bright; of many views the middle row: views × columns.

    Args:
        values: mm of water, shape (1, views, rows, columns).
        tile: pixels of the longer side.
    """
    paths = values[0].numpy()
    shown = list(paths) if len(paths) <= _MOST_VIEWS else [paths[:, paths.shape[1] // 2]]
    white = max(float(np.percentile(paths, _BRIGHTEST)), 1e-6)
    found = []
    for path in shown:
        scale = tile / max(path.shape)
        size = (max(1, round(path.shape[1] * scale)), max(1, round(path.shape[0] * scale)))
        gray = np.rint(np.clip(path / white, 0, 1) * 255).astype(np.uint8)
        found.append(Image.fromarray(gray).resize(size, Image.Resampling.BICUBIC).convert("RGB"))
    return found


def shown_measurement(operator: MeasurementOperator, values: torch.Tensor, at: Index) -> list[Image.Image]:
    """A measurement as pictures: slices of a volume, or radiographs; none of what is neither.

    Args:
        operator, values: of it; values of shape (1, …).
        at: (z, y, x), which slices.
    """
    volume = measured_volume(operator, values)
    if volume is not None:
        return voxels(volume, operator.grid.spacing_mm[0], BODY, at)
    return views(values) if values.dim() == 4 else []


def in_a_row(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures beside each other, white between them."""
    size = sum(each.width + GAP for each in pictures) - GAP, max(each.height for each in pictures)
    strip, left = Image.new("RGB", size, "white"), 0
    for each in pictures:
        strip.paste(each, (left, 0))
        left += each.width + GAP
    return strip


def _planes(hu: Hu, spacing_mm: float, at: Index) -> tuple[Plane, Plane, Plane]:
    volume = Volume(to_int16_hu(hu.astype(np.float64)), (spacing_mm,) * 3, (0.0,) * 3)
    return orthogonal_planes(volume, at)
