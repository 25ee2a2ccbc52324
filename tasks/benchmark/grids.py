"""Sampled volumes of each line in one row, all in the same window."""

import io
from collections.abc import Sequence
from functools import cache

from PIL import Image

from storage.artifacts import Ref
from storage.documents.samples import Samples
from storage.documents.split import Split
from storage.geometry import Volume
from storage.phantom import MANUFACTURER
from storage.snapshots import open_snapshot
from storage.volume_store import VolumeStore
from tasks.model.slices import LUNG, draw_plane, orthogonal_planes

NUM_SHOWN = 6
TILE, GAP, MARK = 128, 4, 9


@cache  # the page is written again after every row
def of_samples(samples: Ref, count: int = NUM_SHOWN) -> bytes:
    """The first volumes of a sample store, as WebP: axial slices above coronal ones. Raises: StorageError."""
    listed = Samples.load(samples.path)
    store = VolumeStore.open(samples.path / listed.store)
    return _strip([store.read_level(name) for name in listed.volume_ids[:count]])


def of_store(snapshot: Ref, split: Ref, size: int, edge: int, count: int = NUM_SHOWN) -> bytes | None:
    """Held-out phantoms as rows see them; None where there are none.

    Never a patient's: the page is passed on, and a patient who is forgotten could not be taken out of it. Reports of the rows show
    real volumes by their names.

    Raises: StorageError.
    """
    store, listed = open_snapshot(snapshot)
    held_out = Split.load(split.path).role("val")
    ids = [name for name in held_out if listed.volumes[name].attributes.get("Manufacturer") == MANUFACTURER][:count]
    if not ids:
        return None
    spacing = store.spacing_mm * edge / size
    return _strip(
        [Volume(store.read_view(name, size, edge, None).astype("int16"), (spacing,) * 3, (0.0,) * 3) for name in ids]
    )


def _strip(volumes: Sequence[Volume]) -> bytes:
    width, height = len(volumes) * (TILE + GAP) - GAP, 2 * TILE + GAP
    strip = Image.new("L", (width, height), 255)
    for place, volume in enumerate(volumes):
        for line, plane in enumerate(orthogonal_planes(volume)[:2]):
            picture = draw_plane(plane, LUNG, tile=TILE, marks=MARK)
            strip.paste(picture, (place * (TILE + GAP), line * (TILE + GAP)))
    stream = io.BytesIO()
    strip.save(stream, format="WEBP", quality=82, method=4)
    return stream.getvalue()
