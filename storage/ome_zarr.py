"""One volume as an OME-Zarr 0.5 multiscale group on disk: arrays with their pyramid <-> files. No other module uses zarr."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from storage.documents.volume import StoredArray
from storage.geometry import AIR_HU, Float3, Volume, pyramid

CHUNK = 64
# OME-Zarr's RFC-4: anatomical direction of each axis, the same for every volume (LPS). Other readers ignore the field.
ORIENTATIONS = {"z": "inferior-to-superior", "y": "anterior-to-posterior", "x": "right-to-left"}
AXES = [
    {"name": name, "type": "space", "unit": "millimeter", "orientation": {"type": "anatomical", "value": value}}
    for name, value in ORIENTATIONS.items()
]
# What zarr and its codecs were seen to raise on files with other bytes.
DECODE_ERRORS = (ValueError, RuntimeError, OSError, TypeError, IndexError, KeyError, AttributeError)


def write_group(folder: Path, volume: Volume, name: str, num_levels: int) -> dict[str, StoredArray]:
    """Write a volume with its pyramid into a folder.

    Args:
        folder: made by this call.
        volume: level 0.
        name: of the image in the metadata.
        num_levels: level k is the mean of blocks of 2**k voxels of level 0.
    Returns: shape and digest of each level.
    """
    group = zarr.open_group(str(folder), mode="w", zarr_format=3)
    arrays: dict[str, StoredArray] = {}
    datasets = []
    for level, values in enumerate(pyramid(volume.hu, num_levels)):
        hu = np.ascontiguousarray(values)
        chunks = tuple(min(CHUNK, n) for n in hu.shape)
        array = zarr.create_array(  # group.create_array needs hard links
            str(folder / str(level)),
            shape=hu.shape,
            chunks=chunks,
            shards=tuple(-(-n // c) * c for n, c in zip(hu.shape, chunks, strict=True)),
            dtype="int16",
            compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=2), Crc32cCodec()],
            fill_value=AIR_HU,
            dimension_names=("z", "y", "x"),
            zarr_format=3,
            config={"write_empty_chunks": True},  # else a chunk of air would look like a missing one
        )
        array[...] = hu
        arrays[str(level)] = StoredArray(shape=(hu.shape[0], hu.shape[1], hu.shape[2]), sha256=values_digest(hu))
        spacing, origin = level_grid(volume.spacing_mm, volume.origin_mm, level)
        transforms = [
            {"type": "scale", "scale": list(spacing[::-1])},
            {"type": "translation", "translation": list(origin[::-1])},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"name": name, "axes": AXES, "datasets": datasets, "type": "mean"}],
    }
    return arrays


def open_level(folder: Path) -> Any:
    """The array in the folder of a level, opened for reading. Raises: one of `DECODE_ERRORS`: its metadata cannot be used."""
    return zarr.open_array(str(folder), mode="r")


def values_digest(hu: NDArray[np.int16]) -> str:
    """SHA-256 of an array's values as little-endian int16, in C order."""
    return hashlib.sha256(np.ascontiguousarray(hu, dtype="<i2").data).hexdigest()


def level_grid(spacing_mm: Float3, origin_mm: Float3, level: int) -> tuple[Float3, Float3]:
    """Spacing and origin (x, y, z) of a level, mm: a coarse voxel's centre is half a block from its first fine voxel's edge."""
    block = 2**level
    (sx, sy, sz), (ox, oy, oz) = spacing_mm, origin_mm
    shift = (block - 1) / 2
    return (sx * block, sy * block, sz * block), (ox + sx * shift, oy + sy * shift, oz + sz * shift)


def group_document(attributes: dict[str, Any]) -> dict[str, Any]:
    """Content of `zarr.json` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}
