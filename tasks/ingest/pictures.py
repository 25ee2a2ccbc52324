"""Small pictures for the quality page: three planes of a volume in the lung window, its histogram, and a refused scan's image."""

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage.geometry import AIR_HU, Volume
from tasks.model.slices import LUNG, draw_plane, orthogonal_planes, png_bytes

TILE = 150  # pixels of the longer side of a plane: about 12 kB for three, as JPEG
THUMBNAIL = 112
_QUALITY = 72
HISTOGRAM_HU = (-1024, 1024)  # beyond: in the last bin
BINS = 64


def mosaic(volume: Volume) -> str:
    """Axial, coronal and sagittal slice through the middle of a volume in HU, side by side; JPEG in base64."""
    pictures = [draw_plane(plane, LUNG, TILE, marks=12) for plane in orthogonal_planes(volume)]
    strip = Image.new(
        "L", (sum(p.width for p in pictures) + 2 * (len(pictures) - 1), max(p.height for p in pictures)), 0
    )
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, (strip.height - picture.height) // 2))
        left += picture.width + 2
    stream = io.BytesIO()
    strip.save(stream, format="JPEG", quality=_QUALITY, optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def histogram(hu: NDArray[np.int16]) -> list[int]:
    """Share of voxels by HU in `BINS` bins over `HISTOGRAM_HU`, in thousandths of the largest; air outside the body left out.

    Voxels at AIR_HU are fill, and would be the only bin that is seen.
    """
    low, high = HISTOGRAM_HU
    counts = np.histogram(np.clip(hu[hu > AIR_HU], low, high - 1), bins=BINS, range=(low, high))[0]
    highest = max(1, int(counts.max()))
    return [round(1000 * int(count) / highest) for count in counts]


def thumbnail(image: NDArray[Any]) -> str | None:
    """A small picture of one image, PNG in base64; in the lung window where its values can be HU, else from least to largest.

    Values that are no finite number are shown as the lowest one; None where all are.
    """
    finite = np.isfinite(image)
    if image.ndim != 2 or not finite.any():
        return None
    image = np.where(finite, image, image[finite].min()).astype(np.float64)
    lowest, highest = float(image.min()), float(image.max())
    if -4000 <= lowest < -500 and highest < 31000:
        gray = LUNG.to_gray(image)
    else:
        gray = np.rint((image - lowest) / max(highest - lowest, 1.0) * 255).astype(np.uint8)
    picture = Image.fromarray(gray)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return base64.b64encode(png_bytes(picture)).decode()
