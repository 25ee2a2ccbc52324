"""Pictures of one volume: a PNG, and a small one made of characters for a terminal."""

import shutil

from rich.text import Text

from storage.geometry import Volume
from tasks.model.slices import LUNG, draw_volume, enlarged, orthogonal_planes, png_bytes

_MOST_COLUMNS = 120


def volume_png(volume: Volume) -> bytes:
    """Axial, coronal and sagittal slice through the middle of a volume in HU, in the lung and in the mediastinal window, as PNG."""
    return png_bytes(draw_volume(volume))


def half_blocks(volume: Volume, columns: int | None = None) -> Text:
    """Axial, coronal and sagittal slice through the middle in the lung window, for a terminal: two pixels per character.

    Args:
        volume: in HU.
        columns: width in characters; default: the terminal's, at most 120.
    """
    columns = columns or min(_MOST_COLUMNS, shutil.get_terminal_size().columns)
    tile = max(8, (columns - 2) // 3)
    pictures = [LUNG.to_gray(enlarged(plane, tile)) for plane in orthogonal_planes(volume)]
    text = Text()
    for row in range(0, max(picture.shape[0] for picture in pictures), 2):
        for number, picture in enumerate(pictures):
            text.append(" " if number else "")
            for column in range(picture.shape[1]):
                upper, lower = (int(picture[r, column]) if r < picture.shape[0] else 0 for r in (row, row + 1))
                text.append("▀", style=f"rgb({upper},{upper},{upper}) on rgb({lower},{lower},{lower})")
        text.append("\n")
    return text
