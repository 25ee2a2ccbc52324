"""Volumes -> a folder of files, which is there whole or not at all."""

import errno
import shutil
from importlib.metadata import version
from pathlib import Path

from storage.artifacts import artifact_files
from storage.documents.export import Export, ExportedVolume
from storage.errors import AlreadyExistsError, InputError
from storage.exports.formats import EXPORTS
from storage.files import (
    fsync_directory,
    fsync_tree,
    naming_path,
    remove_leftovers,
    sha256_file,
    sha256_json,
    temporary_path,
)
from storage.places import as_folder
from tasks.export.selection import Selection
from tasks.run.progress import Advance


def export(selection: Selection, format: str, folder: Path, progress: Advance) -> Export:
    """Write volumes, one after another, into a new folder with `export.json`; until all are written it has a hidden name.

    Args:
        selection: which.
        format: row of `EXPORTS`.
        folder: nothing may be there.
        progress: called with (slices written, of all volumes).
    Returns: what `export.json` says.
    Raises:
        InputError: no such format, or the folder lies in the store or in a bucket.
        AlreadyExistsError: something is at `folder`.
        StorageError: a volume cannot be read, or the folder not written.
    """
    if format not in EXPORTS:
        raise InputError(f"--format {format!r} is not known; expected one of {', '.join(EXPORTS)}.")
    _check_free(as_folder(folder, "The folder of an export"), selection.store.path)
    staging = temporary_path(folder)
    done, total = 0, selection.num_planes

    def plane_done() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    with naming_path(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)
        try:
            staging.mkdir()
            row = EXPORTS[format]
            volumes = []
            for volume_id in selection.volumes:
                origin, path = selection.origin(volume_id), staging / f"{volume_id}{row.ending}"
                row.write(path, selection.store, origin, plane_done)
                volumes.append(
                    ExportedVolume(
                        volume_id=volume_id,
                        path=path.name,
                        num_planes=origin.num_planes,
                        digest=path_digest(path),
                        synthetic=origin.synthetic,
                        seed=origin.seed,
                    )
                )
            made = Export(
                format=format,
                level=selection.level,
                prdit=version("prdit"),
                snapshot=selection.snapshot,
                generated=selection.store.synthetic,
                volumes=tuple(volumes),
            )
            made.save(staging)
            fsync_tree(staging)
            _rename(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return made


def path_digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, that of the hashes of its files by name. Raises: UnreadableError."""
    return f"sha256:{sha256_json(artifact_files(path)) if path.is_dir() else sha256_file(path)}"


def _check_free(folder: Path, store: Path) -> None:
    if folder.exists() or folder.is_symlink():
        raise AlreadyExistsError(
            f"{folder} exists, and an export replaces nothing. Name a folder that is not there yet."
        )
    if folder.resolve().is_relative_to(store.resolve()):
        raise InputError(f"{folder} lies in the store {store}, which holds only its own files. Name another folder.")


def _rename(staging: Path, folder: Path) -> None:
    try:
        staging.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise AlreadyExistsError(f"{folder} was made by someone else meanwhile; nothing of it was replaced.") from error
    fsync_directory(folder.parent)
