"""Stacks of slices: what the page scrolls through without a server, small enough to be inside it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prdit_models.metrics.neighbours import overlap
from storage.geometry import Volume
from tasks.model.slices import LUNG, WINDOWS, DisplayWindow, Plane, enlarged, orthogonal_planes

Hu = NDArray[np.float32]

TILE = 144  # pixels of a slice's edge
MOST_SLICES, LEAST_SLICES = 24, 8  # of a plane
MOST_PIXELS = 30_000_000  # of all stacks of a page, while that leaves LEAST_SLICES: about 3 MB
QUALITY = 60  # of WebP; lossy, as these pictures are for looking and `figures/` has lossless ones
DIFFERENCE = DisplayWindow("difference", 1000, 0)
PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Stack:
    """Slices of one plane in one window, one below the other.

    Attributes:
        label: what it shows, for those who cannot see it.
        marks: directions at the (left, right, top, bottom) of each slice.
        webp: the picture.
    """

    label: str
    marks: tuple[str, str, str, str]
    webp: bytes


@dataclass(frozen=True)
class Row:
    """What the page shows of one volume, or of a pair.

    Attributes:
        caption: which, and what is known of it.
        stacks: from left to right.
        caution: whether the caption says something bad.
    """

    caption: str
    stacks: tuple[Stack, ...]
    caution: bool = False


def slice_places(size: int, num_rows: int) -> range:
    """Indices of the slices that are shown of volumes of `size`³ voxels: evenly spaced, the middle one among them.

    Args:
        size: edge of the volumes in voxels.
        num_rows: of six stacks each on the whole page.
    """
    fitting = MOST_PIXELS // (6 * TILE * TILE * max(num_rows, 1))
    step = -(-size // min(MOST_SLICES, max(LEAST_SLICES, fitting)))
    return range(size // 2 % step, size, step)


def volume_stacks(hu: Hu, places: Sequence[int]) -> tuple[Stack, ...]:
    """Axial, coronal and sagittal slices of a volume (S, S, S) in the lung window, then in the mediastinal one."""
    volume = as_volume(hu)
    planes = [orthogonal_planes(volume, (place,) * 3) for place in places]
    shown = [[enlarged(plane, TILE) for plane in at] for at in planes]
    return tuple(
        _stack([slices[kind] for slices in shown], window, planes[0][kind], f"{PLANES[kind]}, {window.name} window")
        for window in WINDOWS
        for kind in range(len(PLANES))
    )


def pair_stacks(generated: Hu, training: Hu, places: Sequence[int]) -> tuple[Stack, ...]:
    """Axial, then coronal slices of a generated volume, of a training volume and of their difference, (S, S, S) in HU.

    Voxels that are NaN in the training volume (outside of it, where it was shifted) are drawn as air and have no difference.
    """
    outside = np.isnan(training)
    beside = np.where(outside, np.float32(-1000.0), training)
    difference = np.where(outside, np.float32(0.0), generated - beside)
    shown = [(as_volume(generated), LUNG, "generated volume"), (as_volume(beside), LUNG, "training volume")]
    shown.append((as_volume(difference), DIFFERENCE, "difference"))
    stacks = []
    for kind in range(2):
        for volume, window, what in shown:
            planes = [orthogonal_planes(volume, (place,) * 3)[kind] for place in places]
            stacks.append(
                _stack([enlarged(each, TILE) for each in planes], window, planes[0], f"{PLANES[kind]}, {what}")
            )
    return tuple(stacks)


def shifted(hu: Hu, shift: Sequence[int]) -> Hu:
    """A volume moved by whole voxels (z, y, x): voxel i of the result is voxel i - shift of the volume, NaN where there is none."""
    moved = np.full_like(hu, np.nan)
    here, there = overlap(shift)
    moved[here] = hu[there]
    return moved


def offsets_mm(size: int, places: Sequence[int], voxel_mm: float) -> list[float]:
    """Distance of each slice from the middle one, mm; positive towards the head, the back and the patient's left."""
    return [(place - size // 2) * voxel_mm for place in places]


def _stack(slices: Sequence[Hu], window: DisplayWindow, plane: Plane, label: str) -> Stack:
    stream = io.BytesIO()
    picture = Image.fromarray(np.concatenate([window.to_gray(each) for each in slices]))
    picture.save(stream, format="WEBP", quality=QUALITY, method=4)
    return Stack(label, plane.marks, stream.getvalue())


def as_volume(hu: Hu, voxel_mm: float = 1.0) -> Volume:
    """A volume (S, S, S) in HU as it is drawn: whole HU."""
    limits = np.iinfo(np.int16)
    rounded = np.clip(np.rint(hu), limits.min, limits.max).astype(np.int16)
    return Volume(rounded, (voxel_mm,) * 3, (0.0,) * 3)
