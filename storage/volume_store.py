"""The volume store: OME-Zarr 0.5 volumes in HU on one recorded grid; a volume exists once its commit record does.

No other module uses zarr. One process writes a volume (a lock file per id): arrays go to a hidden folder that is renamed
into place, and the commit record follows last. It holds the digest of every array and every file, so a missing
shard is an error here, where zarr alone would return the fill value.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from storage.documents.verdicts import SourceVerdicts
from storage.errors import DamagedArtifactError, MissingArtifactError, StoreFormatError
from storage.files import read_json, sha256_file, sha256_json, write_json_atomic
from storage.geometry import AIR_HU, VIEW_ALIGNMENT, Int3, Volume, block_mean, padded_crop_bounds, pool_mean, view_start

FORMAT_VERSION = 1
CHUNK = 64
Interpolation = Literal["cubic", "linear", "none"]
# OME-Zarr's RFC-4: anatomical direction of each axis, the same for every volume (LPS). Other readers ignore the field.
ORIENTATIONS = {"z": "inferior-to-superior", "y": "anterior-to-posterior", "x": "right-to-left"}
AXES = [
    {"name": name, "type": "space", "unit": "millimeter", "orientation": {"type": "anatomical", "value": value}}
    for name, value in ORIENTATIONS.items()
]


class VolumeStore:
    """A folder of committed volumes on one grid.

    Attributes:
        path: folder of the store.
        spacing_mm: voxel distance of level 0 on every axis.
        num_levels: pyramid levels of each volume (level k has blocks of 2**k voxels).
        interpolation: how scans were resampled to the grid ("none" for volumes generated on it).
    """

    def __init__(self, path: Path, *, spacing_mm: float, num_levels: int, interpolation: str) -> None:
        self.path = path
        self.spacing_mm = spacing_mm
        self.num_levels = num_levels
        self.interpolation = interpolation
        self._arrays: dict[tuple[str, int], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}  # open arrays belong to one process

    # ---- opening -----------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, path: Path, *, spacing_mm: float = 1.0, num_levels: int = 3, interpolation: Interpolation = "cubic"
    ) -> Self:
        """Make an empty store, or open the one that is there when it has this grid.

        Raises:
            ValueError: spacing or number of levels out of range.
            StoreFormatError: the folder holds a store of another grid or format, or something else.
        """
        if not spacing_mm > 0 or not 1 <= num_levels <= 6:
            raise ValueError(
                f"spacing_mm is {spacing_mm} and num_levels {num_levels}; expected a positive spacing, 1 to 6 levels."
            )
        path = Path(path)
        if (path / "zarr.json").exists():
            return cls.open(path, spacing_mm=spacing_mm, num_levels=num_levels, interpolation=interpolation)
        if path.exists() and (not path.is_dir() or any(not p.name.startswith(".") for p in path.iterdir())):
            raise StoreFormatError(
                f"{path} exists and is not a volume store (no zarr.json). Choose an empty folder or remove it."
            )
        for name in ("volumes", "commits", "exclusions", "roles"):
            (path / name).mkdir(parents=True, exist_ok=True)
        attributes = {
            "format_version": FORMAT_VERSION,
            "spacing_mm": float(spacing_mm),
            "num_levels": int(num_levels),
            "interpolation": interpolation,
            "orientation": "LPS",
            "unit": "HU",
        }
        write_json_atomic(path / "volumes" / "zarr.json", _group_document({}))
        write_json_atomic(path / "zarr.json", _group_document({"prdit": attributes}))
        return cls(path, spacing_mm=float(spacing_mm), num_levels=num_levels, interpolation=interpolation)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        spacing_mm: float | None = None,
        num_levels: int | None = None,
        interpolation: str | None = None,
    ) -> Self:
        """Open a store; given grid values must be the recorded ones.

        Raises:
            MissingArtifactError: no store there.
            StoreFormatError: not our format, a newer format version, or another grid than asked for.
        """
        path = Path(path)
        root = path / "zarr.json"
        if not root.is_file():
            raise MissingArtifactError(
                f"No volume store at {path}: zarr.json is missing. Make one with `prdit ingest`, or give the run a source."
            )
        try:
            recorded = read_json(root)["attributes"]["prdit"]
            version = recorded["format_version"]
            found = {name: recorded[name] for name in ("spacing_mm", "num_levels", "interpolation")}
        except (KeyError, TypeError, ValueError) as error:
            raise StoreFormatError(
                f"{root} is not the root of a prdit volume store ({error!r}). Point to the folder `prdit ingest` made."
            ) from error
        if version != FORMAT_VERSION:
            raise StoreFormatError(
                f"{path} has format_version {version!r}; this version reads {FORMAT_VERSION}. "
                "Update prdit or ingest the source again."
            )
        asked = {"spacing_mm": spacing_mm, "num_levels": num_levels, "interpolation": interpolation}
        different = {k: v for k, v in asked.items() if v is not None and v != found[k]}
        if different:
            grid = ", ".join(f"{k} {v!r} (store: {found[k]!r})" for k, v in different.items())
            raise StoreFormatError(
                f"{path} has another grid than asked for: {grid}. A store has one grid: choose another store folder "
                "or the store's own configuration."
            )
        return cls(path, **found)

    # ---- contents -------------------------------------------------------------------------------------------------

    def volume_ids(self) -> list[str]:
        """Ids of the committed volumes, sorted."""
        return sorted(p.stem for p in (self.path / "commits").glob("*.json") if not p.name.startswith("."))

    def fingerprint(self) -> str:
        """`sha256:<hex>` over the sorted committed ids: the same on any machine."""
        return "sha256:" + sha256_json(self.volume_ids())

    def commit_record(self, volume_id: str) -> dict[str, Any]:
        """Commit record of one volume: geometry, attributes, source, digests of arrays and files.

        Raises: MissingArtifactError: no such committed volume.
        """
        path = self.path / "commits" / f"{volume_id}.json"
        if not path.is_file():
            raise MissingArtifactError(f"Volume {volume_id} is not committed in {self.path}; see volume_ids().")
        record: dict[str, Any] = read_json(path)
        return record

    def table(self) -> list[dict[str, Any]]:
        """One row per committed volume: `volume_id`, `shape` and its allow-listed attributes."""
        records = [self.commit_record(volume_id) for volume_id in self.volume_ids()]
        return [{"volume_id": r["volume_id"], "shape": r["shape"], **r["attributes"]} for r in records]

    def exclusions(self) -> list[dict[str, Any]]:
        """Skipped and quarantined entries of the last ingest of every source."""
        found: list[dict[str, Any]] = []
        for path in sorted((self.path / "exclusions").glob("*.json")):
            record = SourceVerdicts.read(path)
            for verdict, entries in (("skipped", record.skipped), ("quarantined", record.quarantined)):
                found += [{"verdict": verdict, **entry.model_dump(exclude_none=True)} for entry in entries]
        return found

    # ---- writing -------------------------------------------------------------------------------------------------

    def write(
        self, volume: Volume, *, volume_id: str, attributes: dict[str, Any], source: dict[str, Any] | None = None
    ) -> bool:
        """Store and commit one volume with its pyramid; a committed id is left as it is.

        Args:
            volume: level 0; its spacing must be the store's on every axis.
            volume_id: letters, digits, `-`, `_` and `.`.
            attributes: allow-listed JSON attributes (docs/data-model.md); kept in the commit record.
            source: JSON about where it came from (series UID, source digest, cut shares).
        Returns: True when written, False when the id was committed already.
        Raises: ValueError: unusable id, or another spacing than the store's.
        """
        _check_id(volume_id)
        if any(abs(s - self.spacing_mm) > 1e-6 for s in volume.spacing_mm):
            raise ValueError(
                f"Volume {volume_id} has spacing {volume.spacing_mm} mm, the store at {self.path} {self.spacing_mm} mm. "
                "Resample it, or use a store of that spacing."
            )
        with self._writer(volume_id):
            record_path = self.path / "commits" / f"{volume_id}.json"
            if record_path.exists():
                return False
            folder = self.path / "volumes" / volume_id
            shutil.rmtree(folder, ignore_errors=True)  # left by a writer killed before its commit
            for stale in (self.path / "volumes").glob(f".{volume_id}.*.tmp"):
                shutil.rmtree(stale, ignore_errors=True)
            staging = self.path / "volumes" / f".{volume_id}.{os.getpid()}.tmp"
            try:
                arrays = self._write_levels(staging, volume, volume_id)
                files = {
                    p.relative_to(staging).as_posix(): _file_entry(p) for p in sorted(staging.rglob("*")) if p.is_file()
                }
                staging.rename(folder)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
            record = {
                "format_version": FORMAT_VERSION,
                "volume_id": volume_id,
                "shape": list(volume.hu.shape),
                "spacing_mm": list(volume.spacing_mm),
                "origin_mm": list(volume.origin_mm),
                "arrays": arrays,
                "files": files,
                "attributes": attributes,
                "source": source or {},
            }
            write_json_atomic(record_path, record)
            return True

    def _write_levels(self, folder: Path, volume: Volume, volume_id: str) -> dict[str, Any]:
        """Write the OME-Zarr group of one volume into a folder; returns shape and digest by level."""
        group = zarr.open_group(str(folder), mode="w", zarr_format=3)
        arrays: dict[str, Any] = {}
        datasets = []
        for level in range(self.num_levels):
            hu = volume.hu if level == 0 else block_mean(volume.hu, 2**level)
            hu = np.ascontiguousarray(hu)
            chunks = tuple(min(CHUNK, n) for n in hu.shape)
            array = group.create_array(
                str(level),
                shape=hu.shape,
                chunks=chunks,
                shards=tuple(-(-n // c) * c for n, c in zip(hu.shape, chunks, strict=True)),
                dtype="int16",
                compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=2), Crc32cCodec()],
                fill_value=AIR_HU,
                dimension_names=("z", "y", "x"),
                config={"write_empty_chunks": True},  # else a chunk of air would look like a missing one
            )
            array[...] = hu
            arrays[str(level)] = {"shape": list(hu.shape), "sha256": _array_digest(hu)}
            scale, translation = level_transform(volume, level)
            datasets.append(
                {
                    "path": str(level),
                    "coordinateTransformations": [
                        {"type": "scale", "scale": scale},
                        {"type": "translation", "translation": translation},
                    ],
                }
            )
        group.attrs["ome"] = {
            "version": "0.5",
            "multiscales": [{"name": volume_id, "axes": AXES, "datasets": datasets, "type": "mean"}],
        }
        return arrays

    @contextmanager
    def _writer(self, volume_id: str) -> Iterator[None]:
        """Hold the volume's write lock; the system frees it when a process dies."""
        locks = self.path / ".locks"
        locks.mkdir(exist_ok=True)
        with (locks / f"{volume_id}.lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    # ---- reading -------------------------------------------------------------------------------------------------

    def read_level(self, volume_id: str, level: int = 0) -> Volume:
        """One whole level, with the spacing and origin of that level.

        Raises:
            MissingArtifactError: not committed, or a file of it is gone.
            DamagedArtifactError: its bytes fail their checksum.
        """
        record = self.commit_record(volume_id)
        array = self._array(volume_id, level, record)
        hu = self._read(array, tuple(slice(0, n) for n in array.shape), volume_id)
        base = Volume(np.zeros((1, 1, 1), np.int16), _float3(record["spacing_mm"]), _float3(record["origin_mm"]))
        scale, translation = level_transform(base, level)
        return Volume(hu, _float3(scale[::-1]), _float3(translation[::-1]))

    def read_view(self, volume_id: str, size: int, edge: int = 256, centre: Int3 | None = None) -> NDArray[np.float32]:
        """What a model sees: a cube of level 0, `edge` voxels wide, sampled at `size` voxels per axis; outside is AIR_HU.

        The coarsest stored level that fits is read, and the rest is pooled in float32.

        Args:
            volume_id: a committed volume.
            size: voxels per axis of the result.
            edge: voxels per axis of the cube on level 0; a multiple of size.
            centre: level-0 voxel (z, y, x) in the middle; the volume's middle when None.
        Returns: float32 HU, shape (size, size, size).
        Raises:
            ValueError: size does not divide edge.
            MissingArtifactError, DamagedArtifactError: as for read_level.
        """
        if size < 1 or edge < 1 or edge % size:
            raise ValueError(
                f"A view of size {size} cannot be cut from an edge of {edge} voxels: edge must be a positive multiple "
                f"of size. Use for example edge {max(1, round(edge / max(size, 1))) * max(size, 1)}."
            )
        record = self.commit_record(volume_id)
        factor = edge // size
        level = max(k for k in range(self.num_levels) if factor % 2**k == 0)
        alignment = max(VIEW_ALIGNMENT, 2 ** (self.num_levels - 1))
        start = view_start(tuple(record["shape"]), edge, centre, alignment)
        step, length = 2**level, edge // 2**level
        array = self._array(volume_id, level, record)
        first = (start[0] // step, start[1] // step, start[2] // step)
        source, target = padded_crop_bounds(array.shape, first, (length, length, length))
        box = np.full((length, length, length), AIR_HU, dtype=np.float32)
        if all(s.stop > s.start for s in source):
            box[target] = self._read(array, source, volume_id)
        return pool_mean(box, factor // step)

    def _array(self, volume_id: str, level: int, record: dict[str, Any]) -> Any:
        if not 0 <= level < self.num_levels:
            raise ValueError(f"Level {level} is not stored; {self.path} has levels 0 to {self.num_levels - 1}.")
        folder = self.path / "volumes" / volume_id
        for name, entry in record["files"].items():
            if not name.startswith(f"{level}/"):
                continue
            # zarr returns the fill value for a missing shard, so check before reading.
            path = folder / name
            if not path.is_file():
                raise MissingArtifactError(
                    f"{path} is missing: volume {volume_id} was committed with it. Ingest again."
                )
            if path.stat().st_size != entry["size"]:
                raise DamagedArtifactError(
                    f"{path} has {path.stat().st_size} bytes, {entry['size']} were committed. Ingest again."
                )
        key = (volume_id, level)
        if key not in self._arrays:
            self._arrays[key] = zarr.open_array(str(folder / str(level)), mode="r")
        return self._arrays[key]

    def _read(self, array: Any, where: tuple[slice, ...], volume_id: str) -> NDArray[np.int16]:
        try:
            values: NDArray[np.int16] = np.asarray(array[where])
        except (ValueError, RuntimeError, OSError, TypeError, IndexError) as error:
            raise DamagedArtifactError(
                f"Volume {volume_id} in {self.path} cannot be decoded: {error}. Remove it and ingest again."
            ) from error
        return values

    # ---- checking ------------------------------------------------------------------------------------------------

    def verify(self, volume_id: str) -> None:
        """Check every file and every decoded array of a volume against its commit record.

        Raises:
            MissingArtifactError: not committed, or a file is gone.
            DamagedArtifactError: a file or an array differs from what was committed.
        """
        record = self.commit_record(volume_id)
        folder = self.path / "volumes" / volume_id
        for name, entry in record["files"].items():
            path = folder / name
            if not path.is_file():
                raise MissingArtifactError(
                    f"{path} is missing: volume {volume_id} was committed with it. Ingest again."
                )
            if sha256_file(path) != entry["sha256"]:
                raise DamagedArtifactError(
                    f"{path} was changed after it was committed (SHA-256 differs). Remove the volume and ingest again."
                )
        for level in range(self.num_levels):
            array = self._array(volume_id, level, record)
            hu = self._read(array, tuple(slice(0, n) for n in array.shape), volume_id)
            if _array_digest(hu) != record["arrays"][str(level)]["sha256"]:
                raise DamagedArtifactError(
                    f"Level {level} of volume {volume_id} in {self.path} decodes to other values. Remove it and ingest again."
                )

    def remove(self, volume_id: str) -> None:
        """Remove a volume: the record first, so that no reader finds half of it."""
        _check_id(volume_id)
        with self._writer(volume_id):
            (self.path / "commits" / f"{volume_id}.json").unlink(missing_ok=True)
            shutil.rmtree(self.path / "volumes" / volume_id, ignore_errors=True)
            self._arrays = {key: value for key, value in self._arrays.items() if key[0] != volume_id}


def level_transform(volume: Volume, level: int) -> tuple[list[float], list[float]]:
    """OME scale and translation (z, y, x), mm: a coarse voxel's centre is half a block from its first fine voxel's edge."""
    block = 2**level
    scale = [float(s) * block for s in reversed(volume.spacing_mm)]
    pairs = zip(volume.spacing_mm, volume.origin_mm, strict=True)
    translation = [float(o + s * (block - 1) / 2) for s, o in reversed(list(pairs))]
    return scale, translation


def _group_document(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _check_id(volume_id: str) -> None:
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    if not volume_id or volume_id.startswith(".") or not set(volume_id) <= allowed:
        raise ValueError(f"Volume id {volume_id!r} is unusable: expected letters, digits, '-', '_' and '.'.")


def _array_digest(hu: NDArray[np.int16]) -> str:
    return hashlib.sha256(np.ascontiguousarray(hu, dtype="<i2").data).hexdigest()


def _file_entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_file(path)}


def _float3(values: Any) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z
