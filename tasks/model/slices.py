"""Pictures of volumes: orthogonal slices in Hounsfield windows, in radiological convention, with direction marks."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from storage.geometry import Volume

Gray = NDArray[np.uint8]

TILE = 288  # pixels of the longer side of one slice
GAP = 6
MARK_SIZE = 20


@dataclass(frozen=True)
class DisplayWindow:
    """A display window: black below level - width/2, white above level + width/2."""

    name: str
    width_hu: float
    level_hu: float

    def to_gray(self, hu: NDArray[np.floating]) -> Gray:
        """HU to 0 … 255, linear between the window's ends."""
        low = self.level_hu - self.width_hu / 2
        gray: Gray = np.rint(np.clip((hu - low) / self.width_hu, 0.0, 1.0) * 255).astype(np.uint8)
        return gray


LUNG = DisplayWindow("lung", 1500, -600)
MEDIASTINAL = DisplayWindow("mediastinal", 350, 50)
WINDOWS = (LUNG, MEDIASTINAL)


@dataclass(frozen=True)
class Plane:
    """One slice as it is shown.

    Attributes:
        name: axial, coronal or sagittal.
        hu: shape (rows, columns), first row on top.
        pixel_mm: (row, column) distances.
        marks: directions at the (left, right, top, bottom) of the picture.
    """

    name: str
    hu: NDArray[np.float32]
    pixel_mm: tuple[float, float]
    marks: tuple[str, str, str, str]

    @property
    def size_mm(self) -> tuple[float, float]:
        """(height, width) of the picture in mm."""
        return self.hu.shape[0] * self.pixel_mm[0], self.hu.shape[1] * self.pixel_mm[1]


def orthogonal_planes(volume: Volume, at: tuple[int, int, int] | None = None) -> tuple[Plane, Plane, Plane]:
    """Axial, coronal and sagittal slice of a volume in HU on an LPS grid.

    Stored axes grow towards superior, posterior and left. Seen from the feet (axial) and from the front (coronal), the
    patient's right is on the left of the picture; the sagittal slice is seen from the patient's left.

    Args:
        volume: which.
        at: indices (z, y, x) of the voxel that all three contain; default: the middle.
    """
    z, y, x = at or tuple(n // 2 for n in volume.hu.shape)
    sx, sy, sz = volume.spacing_mm
    axial, coronal, sagittal = (
        each.astype(np.float32) for each in (volume.hu[z], volume.hu[::-1, y], volume.hu[::-1, :, x])
    )
    return (
        Plane("axial", axial, (sy, sx), ("R", "L", "A", "P")),
        Plane("coronal", coronal, (sz, sx), ("R", "L", "S", "I")),
        Plane("sagittal", sagittal, (sz, sy), ("A", "P", "S", "I")),
    )


def enlarged(plane: Plane, tile: int) -> NDArray[np.float32]:
    """HU of one slice in true proportions, bicubic, the longer side of `tile` pixels."""
    height_mm, width_mm = plane.size_mm
    scale = tile / max(height_mm, width_mm)
    size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane.hu)).resize(size, Image.Resampling.BICUBIC))


def draw_plane(plane: Plane, window: DisplayWindow, tile: int = TILE, marks: int = MARK_SIZE) -> Image.Image:
    """One slice as a picture of true proportions, marked on its four sides; HU are interpolated, then windowed.

    Args:
        plane: the slice.
        window: black to white.
        tile: pixels of the picture's longer side.
        marks: size of the letters, pixels.
    """
    return marked(Image.fromarray(window.to_gray(enlarged(plane, tile))), plane, marks)


def marked(picture: Image.Image, plane: Plane, size: int = MARK_SIZE) -> Image.Image:
    """A picture of a plane with its directions written on the four sides, in letters of `size` pixels."""
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=size)
    left, right, top, bottom = plane.marks
    width, height = picture.size
    places = {
        (4, height / 2): (left, "lm"),
        (width - 4, height / 2): (right, "rm"),
        (width / 2, 3): (top, "mt"),
        (width / 2, height - 3): (bottom, "mb"),
    }
    ink, shade = ((each,) * len(picture.getbands()) for each in (255, 0))
    for place, (mark, anchor) in places.items():
        draw.text(place, mark, fill=ink, font=font, anchor=anchor, stroke_width=2, stroke_fill=shade)
    return picture


def draw_volume(volume: Volume) -> Image.Image:
    """Six slices in a row: axial, coronal and sagittal in the lung window, then in the mediastinal window."""
    planes = orthogonal_planes(volume)
    pictures = [draw_plane(plane, window) for window in WINDOWS for plane in planes]
    height = max(picture.height for picture in pictures)
    strip = Image.new("L", (len(pictures) * TILE + (len(pictures) - 1) * GAP, height), 255)
    for place, picture in enumerate(pictures):
        left = place * (TILE + GAP)
        strip.paste(0, (left, 0, left + TILE, height))
        strip.paste(picture, (left + (TILE - picture.width) // 2, (height - picture.height) // 2))
    return strip


def draw_volumes(volumes: Sequence[Volume]) -> Image.Image:
    """One row of `draw_volume` per volume, of equal size."""
    rows = [draw_volume(volume) for volume in volumes]
    sheet = Image.new("L", (rows[0].width, sum(row.height + GAP for row in rows) - GAP), 255)
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * (row.height + GAP)))
    return sheet


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as PNG."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
