"""What the drift gate knows of one volume: figures, a histogram, and the volume on 8 mm cells; kept beside the store.

Only a level of about 4 mm is read, in the box of 256 mm around the volume's middle that models see by default, so that memory
does not grow with scans or stores.
"""

import logging
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from prdit_models.metrics.anatomy import AIR_HU, MASK_MM, TISSUE_HU, Figures, anatomy, outside_air, pooled
from storage.checkpoints import load_tensors, save_tensors
from storage.errors import StorageError
from storage.files import sha256_json
from storage.geometry import AIR_HU as FILL_HU
from storage.geometry import pool_mean
from storage.privacy import FEATURES, beside_store
from storage.volume_store import VolumeStore

BOX_MM = 256.0
VOXEL_MM, CELL_MM = 4.0, 8.0  # about
HISTOGRAM_HU, BIN_HU = (-1024, 1024), 16
SATURATED_HU = (-1000.0, 400.0)  # of the cells: metal and fill would count most
_AIR_HU, _MUSCLE_HU, _PEAK_BIN_HU = (-1024, -504), (-30, 350), 10  # where peaks of a shifted scan are found, too
_LEAST_OUTSIDE = 0.005  # of the box: fewer voxels are too few for a peak
_VERSION = 1
logger = logging.getLogger("prdit.drift")
Cells = NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """What is measured of one volume.

    Attributes:
        figures: by name: those of `prdit_models.metrics.anatomy`, `air_hu`, `muscle_hu`, of the scan `slice_mm` and `pixel_mm`;
            None where one is not defined.
        histogram: voxels per `BIN_HU` over `HISTOGRAM_HU`, fill left out.
        cells: HU on a grid of about 8 mm, saturated, shape (n, n, n).
    """

    figures: Figures
    histogram: NDArray[np.int64]
    cells: Cells


def view_of(store: VolumeStore) -> tuple[int, int]:
    """(size, edge) of the box that is looked at: about 256 mm, with voxels of about 4 mm that one stored level has, or pools to."""
    factor = max(1, 2 ** round(math.log2(VOXEL_MM / store.spacing_mm)))
    size = 2 * max(8, round(BOX_MM / (store.spacing_mm * factor) / 2))
    return size, size * factor


def measure(store: VolumeStore, volume_id: str) -> Measured:
    """The measures of one volume; from beside the store where they are known.

    Raises: StorageError: the volume cannot be read.
    """
    record = store.commit_record(volume_id)
    key = sha256_json(
        {"version": _VERSION, "view": view_of(store), "arrays": {k: v.sha256 for k, v in record.arrays.items()}}
    )
    path = beside_store(store.path, FEATURES) / volume_id / f"drift-{key[:24]}.safetensors"
    try:
        found = load_tensors(path)
        names = _names()
        values = [None if math.isnan(value) else float(value) for value in found["figures"].tolist()]
        kept = Measured(
            dict(zip(names, values, strict=True)),
            found["histogram"].astype(np.int64),
            found["cells"].astype(np.float32),
        )
        return _with_scan(kept, store, volume_id)
    except (StorageError, KeyError, ValueError):
        made = _measured(store, volume_id)
    figures = np.array([math.nan if made.figures[name] is None else made.figures[name] for name in _names()])
    try:
        save_tensors(
            path, {"figures": figures, "histogram": made.histogram, "cells": np.rint(made.cells).astype(np.int16)}
        )
    except StorageError as error:
        logger.debug("measures of a volume are not kept: %s", error)
    return _with_scan(made, store, volume_id)


def _names() -> list[str]:
    """Of the figures that are kept."""
    return [*ANATOMY, "air_hu", "muscle_hu"]


def _measured(store: VolumeStore, volume_id: str) -> Measured:
    size, edge = view_of(store)
    hu = store.read_view(volume_id, size, edge)
    voxel_mm = store.spacing_mm * edge / size
    figures = anatomy(np.clip(hu, -1000, 1000), voxel_mm)
    outside, body = _outside_and_body(hu, voxel_mm)
    air = hu[outside & (hu > FILL_HU + 0.5)]
    figures["air_hu"] = _peak(air, _AIR_HU, _LEAST_OUTSIDE * hu.size)
    figures["muscle_hu"] = _peak(hu[body], _MUSCLE_HU, _LEAST_OUTSIDE * hu.size)
    low, high = HISTOGRAM_HU
    measured = np.clip(hu[hu > FILL_HU + 0.5], low, high - 1)
    histogram = np.histogram(measured, bins=(high - low) // BIN_HU, range=HISTOGRAM_HU)[0].astype(np.int64)
    cells = pool_mean(hu, 2 if voxel_mm < 0.75 * CELL_MM else 1)
    return Measured(figures, histogram, np.rint(np.clip(cells, *SATURATED_HU)).astype(np.float32))


def _outside_and_body(hu: Cells, voxel_mm: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of the air around the body, without its edge, and of what is dense."""
    coarse = pooled(hu, voxel_mm)
    outside = ndimage.binary_erosion(outside_air(coarse < AIR_HU))
    factor = round(MASK_MM / voxel_mm) if voxel_mm < MASK_MM else 1
    fine = outside.repeat(factor, 0).repeat(factor, 1).repeat(factor, 2)
    fine = fine[: hu.shape[0], : hu.shape[1], : hu.shape[2]]
    if fine.shape != hu.shape:  # voxels that do not divide the masks' grid
        pad = [(0, n - m) for n, m in zip(hu.shape, fine.shape, strict=True)]
        fine = np.pad(fine, pad, mode="edge")
    return fine, hu > TISSUE_HU


def _peak(values: NDArray[np.float32], within: tuple[int, int], least: float) -> float | None:
    """The most frequent HU within a range, of a histogram smoothed over three bins; None of fewer values than `least`."""
    low, high = within
    counts = np.histogram(values, bins=(high - low) // _PEAK_BIN_HU, range=within)[0]
    if counts.sum() < least:
        return None
    smooth = np.convolve(counts, np.ones(3), mode="same")
    return float(low + (int(smooth.argmax()) + 0.5) * _PEAK_BIN_HU)


def _with_scan(found: Measured, store: VolumeStore, volume_id: str) -> Measured:
    scan = store.commit_record(volume_id).scan
    spacing: Figures = {"slice_mm": None, "pixel_mm": None}
    if scan is not None:
        spacing = {"slice_mm": scan.spacing_mm[2], "pixel_mm": max(scan.spacing_mm[:2])}
    return Measured(found.figures | spacing, found.histogram, found.cells)


ANATOMY = (
    "body_share", "body_connected", "body_filled", "lung_right_l", "lung_left_l", "lung_connected", "lung_taper", "lung_hu",
    "tissue_hu", "bone_share", "outside_hu", "grain_hu",
)  # fmt: skip
