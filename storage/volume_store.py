"""The volume store: an append-only pool of volumes in HU on one recorded grid; a volume exists once its commit record does.

A writer puts a volume's files into a folder of its own, makes them durable, and then writes the record *if there is none*: of
several writers of one volume exactly one succeeds, without a lock. Record and files never change afterwards. What a run works on
is not the pool but a snapshot of it (`storage/snapshots.py`).
"""

import fnmatch
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from storage.bucket_path import BucketPath
from storage.documents.synthetic import Synthetic
from storage.documents.verdicts import SourceVerdicts
from storage.documents.volume import Grid, ScanFacts, StoredFile, StoreRoot, VolumeRecord
from storage.errors import DamagedArtifactError, MissingArtifactError, StorageError, StoreFormatError
from storage.files import (
    entries,
    fsync_directory,
    fsync_tree,
    is_abandoned,
    json_text,
    naming_path,
    put_if_absent,
    read_json,
    reading,
    remove_leftovers,
    remove_tree,
    rename_folder,
    sha256_bytes,
    sha256_file,
    sha256_json,
    temporary_path,
    write_text_atomic,
)
from storage.geometry import Int3, ViewCut, Volume, view_cut
from storage.level_cache import LevelCache
from storage.ome_zarr import DECODE_ERRORS, group_document, level_grid, open_level, values_digest, write_group
from storage.places import as_place
from storage.privacy import BESIDE, beside_store

Interpolation = Literal["cubic", "linear", "none"]
_REPAIR = "`prdit ingest SOURCE --store {path} --repair` makes it again where SOURCE still has the scan"


class VolumeStore:
    """A folder, or a place in a bucket, with committed volumes on one grid.

    Attributes:
        path: of the store.
        grid: spacing, levels and interpolation, the same for every volume.
        synthetic: what generated the volumes; None for a store of scans.
    """

    def __init__(self, path: Path, grid: Grid, synthetic: Synthetic | None = None) -> None:
        self.path = path
        self.grid = grid
        self.synthetic = synthetic
        self._arrays: dict[tuple[str, int], Any] = {}
        self._records: dict[str, VolumeRecord] = {}
        self._cache = LevelCache.from_environment() if isinstance(path, BucketPath) else None

    def __getstate__(self) -> dict[str, Any]:
        # open arrays belong to one process; records are read again: with those of all volumes each task would grow with the store
        return {**self.__dict__, "_arrays": {}, "_records": {}}

    @property
    def spacing_mm(self) -> float:
        """Voxel distance of level 0 on every axis."""
        return self.grid.spacing_mm

    # ---- opening -----------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        spacing_mm: float = 1.0,
        num_levels: int = 3,
        interpolation: Interpolation = "cubic",
        synthetic: Synthetic | None = None,
    ) -> Self:
        """Make an empty store, or open the one that is there when it has this grid. Several processes may do so at once.

        Args:
            path: its folder.
            spacing_mm, num_levels, interpolation: its grid.
            synthetic: what generates its volumes; None: they are scans.

        Raises:
            ValueError: spacing or number of levels out of range.
            StoreFormatError: the folder holds a store of another grid, format or origin, or something else.
        """
        grid = Grid(spacing_mm=spacing_mm, num_levels=num_levels, interpolation=interpolation)
        path = as_place(path)
        root = path / "zarr.json"
        if not root.exists():
            try:
                _check_free(path)
            except StorageError:
                if not root.exists():  # else another process has made it since
                    raise
            put_if_absent(path / "volumes" / "zarr.json", json_text(group_document({})).encode())
            put_if_absent(root, _root_text(grid, synthetic).encode())
        store = cls.open(path, grid)
        if store.synthetic != synthetic:
            raise StoreFormatError(
                f"{path} holds {_contents(store.synthetic)}; {_contents(synthetic)} were to be put there. Choose another folder."
            )
        return store

    @classmethod
    def open(cls, path: Path, grid: Grid | None = None) -> Self:
        """Open a store; a given grid must be the recorded one.

        Raises:
            MissingArtifactError: no store there.
            DamagedArtifactError, UnreadableError: its root is damaged, or cannot be read now.
            VersionError: another format version.
            StoreFormatError: another grid than asked for.
        """
        path = as_place(path)
        root = path / "zarr.json"
        if not root.is_file():
            if any(
                (path / name).is_dir() for name in ("commits", "snapshots", "history")
            ):  # a copy may have some of them
                raise MissingArtifactError(f"{root}, the root of a volume store, is missing. {StoreRoot.remedy(path)}")
            raise MissingArtifactError(
                f"No volume store at {path}. Make one with `prdit ingest`, or give the run a source."
            )
        try:
            with reading(root):
                attributes = read_json(root)["attributes"]
            values, mark = attributes["prdit"], attributes.get("synthetic")
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise DamagedArtifactError(
                f"{root} is not the root of a prdit volume store. Give the folder that `prdit ingest` made; if this is it, "
                f"the file is damaged: {StoreRoot.remedy(path)}"
            ) from error
        recorded = StoreRoot.from_json(values, str(root)).grid
        if grid is not None and grid != recorded:
            pairs = zip(grid.model_dump().items(), recorded.model_dump().values(), strict=True)
            different = ", ".join(f"{key} {value!r} (store: {old!r})" for (key, value), old in pairs if value != old)
            raise StoreFormatError(
                f"{path} has another grid than asked for: {different}. A store has one grid: choose another store folder or "
                "the store's own settings (ingest.*)."
            )
        return cls(path, recorded, None if mark is None else Synthetic.from_json(mark, str(root)))

    @classmethod
    def write_root(cls, path: Path, grid: Grid) -> Self:
        """Write the root of a store again, in place of what is there; whether the grid is right must be known."""
        put_if_absent(path / "volumes" / "zarr.json", json_text(group_document({})).encode())
        write_text_atomic(path / "zarr.json", _root_text(grid))
        return cls(path, grid)

    # ---- contents -------------------------------------------------------------------------------------------------

    def volume_ids(self) -> list[str]:
        """Ids of the committed volumes, sorted. Raises: UnreadableError."""
        return [path.stem for path in entries(self.path / "commits", "*.json")]

    def commit_record(self, volume_id: str) -> VolumeRecord:
        """Commit record of one volume: geometry, attributes, scan, digests of arrays and files.

        Raises:
            MissingArtifactError: no such committed volume.
            DamagedArtifactError, VersionError: its record cannot be read.
        """
        if volume_id not in self._records:
            path = self.record_path(volume_id)
            try:
                record = VolumeRecord.read(path)
            except MissingArtifactError:
                raise MissingArtifactError(
                    f"Volume {volume_id} is not committed in {self.path}. `prdit verify {self.path}` lists what is lost; "
                    + _REPAIR.format(path=self.path)
                    + "."
                ) from None
            if record.volume_id != volume_id:
                raise DamagedArtifactError(
                    f"{path} is the record of volume {record.volume_id}. {VolumeRecord.remedy(self.path)}"
                )
            self._records[volume_id] = record
        return self._records[volume_id]

    def exclusions(self) -> list[dict[str, Any]]:
        """Skipped and quarantined entries of the last ingest of every source."""
        found: list[dict[str, Any]] = []
        for path in entries(self.path / "exclusions", "*.json"):
            record = SourceVerdicts.read(path)
            for verdict, scans in (("skipped", record.skipped), ("quarantined", record.quarantined)):
                found += [{"verdict": verdict, **scan.model_dump(exclude_none=True)} for scan in scans]
        return found

    def record_path(self, volume_id: str) -> Path:
        """Where the commit record of a volume is. Raises: ValueError: unusable id."""
        _check_id(volume_id)
        return self.path / "commits" / f"{volume_id}.json"

    def folder(self, volume_id: str) -> Path:
        """The OME-Zarr group of a volume, for other readers. Raises: as `commit_record`."""
        return self.path / "volumes" / self.commit_record(volume_id).folder

    # ---- writing -------------------------------------------------------------------------------------------------

    def write(
        self, volume: Volume, *, volume_id: str, attributes: dict[str, Any], scan: ScanFacts | None = None
    ) -> bool:
        """Store and commit one volume with its pyramid; a committed id is left as it is.

        Args:
            volume: level 0; its spacing must be the store's on every axis.
            volume_id: letters, digits, `-`, `_` and `.`.
            attributes: allow-listed JSON attributes (docs/data-model.md); kept in the commit record.
            scan: what it was made from.
        Returns: True when written, False when the id was committed already.
        Raises:
            ValueError: unusable id, or another spacing than the store's.
            UnwritableError: the disk is full, read-only, or access is denied.
        """
        if self.record_path(volume_id).exists():
            return False
        record = self._write_files(volume, volume_id, attributes, scan)
        if record.put(self.record_path(volume_id)):
            return True
        if record.folder != self.commit_record(volume_id).folder:  # another writer, with another version of the codec
            self._discard(record.folder)
        return False

    def repair(
        self, volume: Volume, *, volume_id: str, attributes: dict[str, Any], scan: ScanFacts | None = None
    ) -> None:
        """`write` for a volume whose files or record are damaged: they are replaced by the same values.

        Attributes and scan stay those of the record where it is readable.

        Raises: DamagedArtifactError: the values differ from those that the record, if it is readable, commits to.
        """
        try:
            old = self.commit_record(volume_id)
        except (MissingArtifactError, DamagedArtifactError):
            old = None
        if old is not None:
            attributes, scan = old.attributes, old.scan
        record = self._write_files(volume, volume_id, attributes, scan)
        if old is not None and old.arrays != record.arrays:
            self._discard(record.folder)
            raise DamagedArtifactError(
                f"Volume {volume_id} in {self.path} is damaged, and its scan gives other values on this machine than were "
                f"committed. Repair it where it was ingested, or withdraw it: `prdit remove {self.path} {volume_id}`."
            )
        record.write(self.record_path(volume_id))
        if old is not None and old.folder != record.folder:
            self._discard(old.folder)
        self._records.pop(volume_id, None)
        self._arrays = {key: array for key, array in self._arrays.items() if key[0] != volume_id}

    def delete(self, volume_id: str) -> bool:
        """Delete a volume for ever: only for a patient who is forgotten (`storage/tombstones.py`).

        Its record goes first, so that after a kill there is no volume, but files that nobody names; the same call removes those.
        Returns: whether there was anything of it.
        """
        record = self.record_path(volume_id)
        found = record.exists()
        if self._cache is not None:
            self._cache.forget(f"{self._cache_prefix}-{volume_id}-????????-*")
        with naming_path(record):
            record.unlink(missing_ok=True)
            self._make_durable(record.parent)
            for folder in self._folders_of(volume_id):
                found = True
                remove_tree(folder)
            self._make_durable(self.path / "volumes")
        self._records.pop(volume_id, None)
        self._arrays = {key: array for key, array in self._arrays.items() if key[0] != volume_id}
        return found

    def _folders_of(self, volume_id: str) -> list[Path]:
        """Every folder with files of a volume: committed, never committed, and those that ended writers left."""
        try:
            there = list((self.path / "volumes").iterdir())
        except FileNotFoundError:
            return []
        whole = [path for path in there if fnmatch.fnmatchcase(path.name, f"{volume_id}-????????") and path.is_dir()]
        begun = [path for path in there if fnmatch.fnmatchcase(path.name, f".{volume_id}[.-]*.tmp")]
        return [*whole, *(path for path in begun if is_abandoned(path))]

    def _discard(self, folder: str) -> None:
        """Remove files that no record names; where that fails they only take room."""
        with suppress(OSError):
            remove_tree(self.path / "volumes" / folder)

    def _make_durable(self, folder: Path) -> None:
        if not isinstance(folder, BucketPath) and folder.is_dir():
            fsync_directory(folder)

    def clean(self) -> list[Path]:
        """Remove what killed writers left in the store, beside it, and of a store in a bucket in the folder for temporary files."""
        folders: list[Path] = [
            beside_store(self.path, "").parent,  # of the file with the patient keys' secret, say
            self.path,
            *(self.path / name for name in ("volumes", "commits", "snapshots", "history", "exclusions", "tombstones")),
            *entries(self.path / "roles", "*"),
        ]
        if isinstance(self.path, BucketPath):
            folders.append(Path(tempfile.gettempdir()))  # volumes on their way there
        removed = [path for folder in folders for path in remove_leftovers(folder)]
        for ending in BESIDE:
            removed += remove_leftovers(beside_store(self.path, ending), below=True)
        return removed

    def _write_files(
        self, volume: Volume, volume_id: str, attributes: dict[str, Any], scan: ScanFacts | None
    ) -> VolumeRecord:
        """Put a volume's files, durable, into their folder; the record to commit them with.

        The folder's name has a hash of the files, so that a folder of that name holds these files or damaged ones.
        """
        if any(abs(s - self.spacing_mm) > 1e-6 for s in volume.spacing_mm):
            raise ValueError(
                f"Volume {volume_id} has spacing {volume.spacing_mm} mm, the store at {self.path} {self.spacing_mm} mm. "
                "Resample it, or use a store of that spacing."
            )
        volumes = self.path / "volumes"
        remote = isinstance(volumes, BucketPath)
        staging = temporary_path((Path(tempfile.gettempdir()) if remote else volumes) / volume_id)
        try:
            with naming_path(staging):
                arrays = write_group(staging, volume, volume_id, self.grid.num_levels)
                if not remote:
                    fsync_tree(staging)
            files = {
                p.relative_to(staging).as_posix(): StoredFile(size=p.stat().st_size, sha256=sha256_file(p))
                for p in sorted(staging.rglob("*"))
                if p.is_file()
            }
            hashes = {name: entry.sha256 for name, entry in files.items()}
            folder = volumes / f"{volume_id}-{sha256_json(hashes)[:8]}"
            if isinstance(folder, BucketPath):
                folder.put_files(staging, list(files))
            else:
                _put_in_place(staging, folder, files)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        depth, rows, columns = volume.hu.shape
        return VolumeRecord(
            volume_id=volume_id,
            folder=folder.name,
            shape=(depth, rows, columns),
            spacing_mm=volume.spacing_mm,
            origin_mm=volume.origin_mm,
            arrays=arrays,
            files=files,
            attributes=attributes,
            scan=scan,
        )

    # ---- reading -------------------------------------------------------------------------------------------------

    def read_level(self, volume_id: str, level: int = 0) -> Volume:
        """One whole level, with the spacing and origin of that level.

        Raises:
            MissingArtifactError: not committed, or a file of it is gone.
            DamagedArtifactError: its metadata are not those committed, or its bytes fail their checksum.
        """
        record = self.commit_record(volume_id)
        with self._array(record, level) as array:
            hu = self._read(array, tuple(slice(0, n) for n in array.shape), volume_id)
        return Volume(hu, *level_grid(record.spacing_mm, record.origin_mm, level))

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
        return self.read_cut(volume_id, self.cut(volume_id, size, edge, centre))

    def cut(self, volume_id: str, size: int, edge: int = 256, centre: Int3 | None = None, margin: int = 0) -> ViewCut:
        """Which part of which level `read_view` reads, with `margin` more voxels of the view on every side.

        Raises: ValueError: size does not divide edge; else as for `commit_record`.
        """
        return view_cut(self.commit_record(volume_id).shape, self.grid.num_levels, size, edge, centre, margin)

    def read_cut(self, volume_id: str, cut: ViewCut) -> NDArray[np.float32]:
        """The view that a cut describes, float32 HU, read from the files. Raises: as for read_level."""
        with self._array(self.commit_record(volume_id), cut.level) as array:
            return cut.take(array.shape, lambda where: self._read(array, where, volume_id))

    @property
    def _cache_prefix(self) -> str:
        """What the names of copies of this store's levels begin with."""
        return sha256_json(str(self.path))[:16]

    @contextmanager
    def _level_folder(self, record: VolumeRecord, level: int, *, hashed: bool) -> Iterator[Path]:
        """A level's folder on this machine, its files there in their committed sizes, with their committed bytes if `hashed`."""
        remote = self.path / "volumes" / record.folder
        files = record.level_files(level)

        def check(folder: Path) -> None:
            for name, entry in files.items():  # zarr returns the fill value for a missing shard
                self._check_file(folder / name, entry, record.volume_id, hashed=hashed)

        if self._cache is None:
            check(remote / str(level))
            yield remote / str(level)
            return

        def fetch(folder: Path) -> None:
            for name, entry in files.items():
                self._fetch(remote / str(level) / name, folder / name, entry, record.volume_id)

        def whole(folder: Path) -> bool:
            try:
                check(folder)
            except (MissingArtifactError, DamagedArtifactError):
                return False
            return True

        name = f"{self._cache_prefix}-{record.folder}-{level}"
        with self._cache.held(name, sum(entry.size for entry in files.values()), fetch, whole) as folder:
            yield folder

    def _fetch(self, source: Path, target: Path, entry: StoredFile, volume_id: str) -> None:
        """Copy one file from the bucket. Raises: MissingArtifactError, DamagedArtifactError: it is not as it was committed."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            data = source.read_bytes()
        except FileNotFoundError:
            raise self._lost(source, volume_id) from None
        if sha256_bytes(data) != entry.sha256:
            raise DamagedArtifactError(
                f"{source} was changed after it was committed (SHA-256 differs). {_REPAIR.format(path=self.path)}."
            )
        target.write_bytes(data)

    def _lost(self, path: Path, volume_id: str) -> MissingArtifactError:
        return MissingArtifactError(
            f"{path} is missing: volume {volume_id} was committed with it. {_REPAIR.format(path=self.path)}."
        )

    @contextmanager
    def _array(self, record: VolumeRecord, level: int) -> Iterator[Any]:
        """An open level, its files there in their committed sizes, its metadata those that were committed."""
        if not 0 <= level < self.grid.num_levels:
            raise ValueError(f"Level {level} is not stored; {self.path} has levels 0 to {self.grid.num_levels - 1}.")
        with self._level_folder(record, level, hashed=False) as folder:
            yield self._opened(record, level, folder)

    def _opened(self, record: VolumeRecord, level: int, folder: Path) -> Any:
        key = (record.volume_id, level)
        if key not in self._arrays:
            metadata = folder / "zarr.json"
            self._check_file(metadata, record.level_files(level)["zarr.json"], record.volume_id, hashed=True)
            array = open_level(folder)
            if array.shape != record.arrays[str(level)].shape:
                raise DamagedArtifactError(
                    f"{metadata} says {array.shape}, the commit record of volume {record.volume_id} "
                    f"{record.arrays[str(level)].shape}. {VolumeRecord.remedy(self.path)}"
                )
            self._arrays[key] = array
        return self._arrays[key]

    def _check_file(self, path: Path, entry: StoredFile, volume_id: str, *, hashed: bool) -> None:
        """Raise unless a file is as committed: its size, and its bytes where `hashed`."""
        remedy = _REPAIR.format(path=self.path)
        try:
            with reading(path):
                size = path.stat().st_size
        except FileNotFoundError:
            raise self._lost(path, volume_id) from None
        if size != entry.size:
            raise DamagedArtifactError(f"{path} has {size} bytes, {entry.size} were committed. {remedy}.")
        if hashed and sha256_file(path) != entry.sha256:
            raise DamagedArtifactError(f"{path} was changed after it was committed (SHA-256 differs). {remedy}.")

    def _read(self, array: Any, where: tuple[slice, ...], volume_id: str) -> NDArray[np.int16]:
        try:
            values: NDArray[np.int16] = np.asarray(array[where])
        except DECODE_ERRORS as error:
            raise DamagedArtifactError(
                f"Volume {volume_id} in {self.path} cannot be decoded: {error}. {_REPAIR.format(path=self.path)}."
            ) from error
        return values

    # ---- checking ------------------------------------------------------------------------------------------------

    def check_level(self, volume_id: str, level: int) -> None:
        """Check the bytes of one level's files against the commit record, without decoding them.

        Raises:
            MissingArtifactError: not committed, or a file is gone.
            DamagedArtifactError: a file has other bytes than were committed.
        """
        with self._level_folder(self.commit_record(volume_id), level, hashed=True):
            pass

    def verify(self, volume_id: str) -> None:
        """Check every file and every decoded array of a volume against its commit record, read anew.

        Raises:
            MissingArtifactError: not committed, or a file is gone.
            DamagedArtifactError: record, metadata, a file or an array is not as it was committed.
        """
        fresh = type(self)(self.path, self.grid, self.synthetic)
        if self._cache is None:
            fresh._verify(volume_id)
            return
        folder = temporary_path(Path(tempfile.gettempdir()) / "prdit-verify")
        fresh._cache = LevelCache(folder, 0)  # what is in the bucket is meant, not copies of it
        try:
            fresh._verify(volume_id)
        finally:
            remove_tree(folder)

    def _verify(self, volume_id: str) -> None:
        record = self.commit_record(volume_id)
        folder = self.path / "volumes" / record.folder
        for name, entry in record.files.items():
            if self._cache is None or name.partition("/")[0] not in record.arrays:  # else checked when fetched
                self._check_file(folder / name, entry, volume_id, hashed=True)
        if len(record.arrays) != self.grid.num_levels:
            raise DamagedArtifactError(
                f"Volume {volume_id} has {len(record.arrays)} levels, the root of {self.path} says {self.grid.num_levels}. "
                f"{StoreRoot.remedy(self.path)}"
            )
        for level in range(self.grid.num_levels):
            hu = self.read_level(volume_id, level).hu
            if values_digest(hu) != record.arrays[str(level)].sha256:
                raise DamagedArtifactError(
                    f"Level {level} of volume {volume_id} in {self.path} decodes to other values than the record says. "
                    f"{VolumeRecord.remedy(self.path)}"
                )


def _put_in_place(staging: Path, folder: Path, files: dict[str, StoredFile]) -> None:
    """Give a finished, durable folder its name; damaged files of that name are replaced."""
    if folder.is_dir() and _changed_file(folder, files) is not None:
        with naming_path(folder), suppress(FileNotFoundError):  # another process repairs it
            folder.rename(damaged := temporary_path(folder))
            shutil.rmtree(damaged, ignore_errors=True)
    with naming_path(folder):
        rename_folder(staging, folder)
    fsync_directory(folder.parent)


def _changed_file(folder: Path, files: dict[str, StoredFile]) -> str | None:
    """A file of a folder that is missing or has other bytes."""
    for name, entry in files.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != entry.sha256:
            return name
    return None


def _root_text(grid: Grid, synthetic: Synthetic | None = None) -> str:
    mark = {"synthetic": synthetic.to_json()} if synthetic else {}
    return json_text(group_document({"prdit": StoreRoot(**grid.model_dump()).to_json(), **mark}))


def _contents(synthetic: Synthetic | None) -> str:
    if synthetic is None:
        return "scans"
    sampler, guided = synthetic.sampler, synthetic.guided
    towards = f", towards measurement {guided.measurement[:19]} by {guided.guide} {guided.strength:g}" if guided else ""
    how = f"seed {sampler.seed}, {sampler.num_steps} steps of {sampler.name}{towards}"
    return f"volumes of checkpoint {synthetic.checkpoint[:19]} ({how})"


def _check_free(path: Path) -> None:
    """Raise unless a store may be made here: nothing there, or what a process killed while it made one left."""
    if (path / "commits").is_dir():
        raise MissingArtifactError(
            f"{path / 'zarr.json'}, the root of a volume store, is missing. {StoreRoot.remedy(path)}"
        )
    if not path.exists():
        return
    if not path.is_dir() or any(p.name != "volumes" and not p.name.startswith(".") for p in path.iterdir()):
        raise StoreFormatError(
            f"{path} exists and is not a volume store (no zarr.json). Choose an empty folder or remove it."
        )


def _check_id(volume_id: str) -> None:
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    if not volume_id or volume_id.startswith(".") or not set(volume_id) <= allowed:
        raise ValueError(f"Volume id {volume_id!r} is unusable: expected letters, digits, '-', '_' and '.'.")
