"""What is sent to a DICOM node: volumes of a store, written in memory, or those of an exported folder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from storage.documents.export import Export, ExportedVolume
from storage.errors import DamagedArtifactError, InputError
from storage.exports.dicom import read_image, series
from storage.files import entries
from tasks.export.folder import path_digest
from tasks.export.selection import Selection


@dataclass(frozen=True)
class Sendable:
    """One volume as a DICOM series.

    Attributes:
        volume_id: its id.
        num_images: of the series.
        images: makes the data sets, one after another; each is to be used before the next is asked for.
    """

    volume_id: str
    num_images: int
    images: Callable[[], Iterator[Any]]


def of_selection(selection: Selection) -> list[Sendable]:
    """Volumes of a store; a volume is read when it is sent."""
    return [
        Sendable(name, selection.origin(name).num_planes, partial(_from_store, selection, name))
        for name in selection.volumes
    ]


def of_folder(folder: Path, volume_ids: Sequence[str] = ()) -> list[Sendable]:
    """Volumes of an exported folder; all when none is named.

    Raises:
        InputError: an export of another format, or a volume that it does not have.
        StorageError: there is no `export.json`, or it cannot be read.
    """
    made = Export.load(folder)
    if made.format != "dicom":
        raise InputError(
            f"{folder} is an export as {made.format}; a DICOM node takes DICOM. Send from the store, or export with --format dicom."
        )
    if unknown := sorted(set(volume_ids) - {volume.volume_id for volume in made.volumes}):
        raise InputError(f"{folder} has no volume {', '.join(unknown)}; {Export.NAME} in it lists those that it has.")
    return [
        Sendable(volume.volume_id, volume.num_planes, partial(_from_folder, folder, volume))
        for volume in made.volumes
        if not volume_ids or volume.volume_id in volume_ids
    ]


def _from_store(selection: Selection, volume_id: str) -> Iterator[Any]:
    return series(selection.store.read_level(volume_id, selection.level), selection.origin(volume_id))


def _from_folder(folder: Path, volume: ExportedVolume) -> Iterator[Any]:
    """The images as they were exported. Raises: DamagedArtifactError: a file is missing, changed or added."""
    place = folder / volume.path
    if path_digest(place) != volume.digest:
        raise DamagedArtifactError(
            f"{place} is not as it was exported: a file in it is missing, changed or added. {Export.REMEDY}"
        )
    return (read_image(path) for path in entries(place, "*.dcm"))
