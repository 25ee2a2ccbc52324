"""Other readers of the corpus' good series: plain pydicom and SimpleITK give HU at places in the world."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
from numpy.typing import NDArray

from storage.geometry import Volume

Floats = NDArray[np.float64]


def trilinear(values: Floats, index_kji: Floats) -> Floats:
    """Values between voxels; every place lies inside."""
    low = np.clip(np.floor(index_kji).astype(int), 0, np.asarray(values.shape) - 2)
    total = np.zeros(len(index_kji))
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, index_kji - low, 1 - (index_kji - low)), axis=1)
        total += weight * values[tuple((low + corner).T)]
    return total


def of_volume(volume: Volume, world: Floats) -> Floats:
    """HU of a volume of the store at places."""
    return trilinear(volume.hu.astype(np.float64), volume.index_of(world))


class PlainSeries:
    """One series as pydicom gives it: slices sorted by place, rescaled one by one, in float64.

    Args:
        folder: with its files and possibly others.
        series_uid: which series.
    """

    def __init__(self, folder: Path, series_uid: str) -> None:
        slices = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                data = pydicom.dcmread(path, force=True)
                if data.get("SeriesInstanceUID") == series_uid:
                    slices[str(data.SOPInstanceUID)] = data
        cosines = np.asarray(next(iter(slices.values())).ImageOrientationPatient, dtype=float)
        self.row, self.column = cosines[:3], cosines[3:]
        normal = np.cross(self.row, self.column)
        ordered = sorted(slices.values(), key=lambda d: float(np.asarray(d.ImagePositionPatient, dtype=float) @ normal))
        self.places = np.asarray([[float(v) for v in data.ImagePositionPatient] for data in ordered])
        spacing = [float(v) for v in ordered[0].PixelSpacing]
        self.linear = np.stack([self.row * spacing[1], self.column * spacing[0]], axis=1)
        self.hu = np.stack(
            [
                data.pixel_array.astype(np.float64) * float(data.RescaleSlope) + float(data.RescaleIntercept)
                for data in ordered
            ]
        )

    def at(self, world: Floats) -> Floats:
        """HU at places inside, slices taken where they were recorded."""
        step = (self.places[-1] - self.places[0]) / (len(self.places) - 1)
        matrix = np.column_stack([self.linear, step])
        index = np.linalg.solve(matrix, (world - self.places[0]).T).T
        along = np.linalg.solve(matrix, (self.places - self.places[0]).T).T[:, 2]
        index[:, 2] = np.interp(index[:, 2], along, np.arange(len(along)))
        return trilinear(self.hu, index[:, ::-1])


def by_simple_itk(folder: Path, series_uid: str) -> sitk.Image:
    """One series as SimpleITK's series reader gives it."""
    names: dict[str, list[str]] = defaultdict(list)
    for place in [folder, *(path for path in sorted(folder.rglob("*")) if path.is_dir())]:
        names[series_uid] += sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(place), series_uid)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names[series_uid])
    reader.SetOutputPixelType(sitk.sitkFloat64)
    return reader.Execute()


def of_image(image: sitk.Image, world: Floats) -> Floats:
    """HU of an ITK image at places."""
    index = np.asarray([image.TransformPhysicalPointToContinuousIndex([float(v) for v in place]) for place in world])
    return trilinear(sitk.GetArrayFromImage(image).astype(np.float64), index[:, ::-1])
