"""Copies of volumes as OME-Zarr groups of their own: the files of the store, with a mark where no person was scanned."""

import shutil
from collections.abc import Callable
from pathlib import Path

from storage.errors import DamagedArtifactError, InputError
from storage.exports.origin import Origin
from storage.files import json_text, read_json, reading, sha256_file
from storage.volume_store import VolumeStore

_GROUP = "zarr.json"


def export_ome_zarr(path: Path, store: VolumeStore, origin: Origin, plane_done: Callable[[], None]) -> None:
    """Copy all levels of a volume, checked by hash, see `storage.exports.formats.ExportFormat.write`.

    `zarr.json` of the copy has the attribute `prdit`: id, how the volume was made, and `synthetic` with the mark of its store.

    Raises: InputError: a level other than 0 was asked for.
    """
    if origin.level:
        raise InputError(f"An OME-Zarr copy has every level; got --level {origin.level}. Leave --level out.")
    record, folder = store.commit_record(origin.volume_id), store.folder(origin.volume_id)
    for name, entry in record.files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        with reading(folder / name):
            source = (folder / name).open("rb")
        with source, (path / name).open("wb") as target:
            shutil.copyfileobj(source, target)
        if sha256_file(path / name) != entry.sha256:
            raise DamagedArtifactError(
                f"{folder / name} has other bytes than were committed. {type(record).remedy(store.path)}"
            )
    group = read_json(path / _GROUP)
    group["attributes"]["prdit"] = {"volume_id": origin.volume_id, "made": origin.description} | (
        {"synthetic": origin.generated.to_json() if origin.generated else True} if origin.synthetic else {}
    )
    (path / _GROUP).write_text(json_text(group), encoding="utf-8")
    for _ in range(origin.num_planes):
        plane_done()
