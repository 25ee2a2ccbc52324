"""Volumes as NIfTI: int16 HU, RAS affine, written atomically."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError

from storage.errors import MissingArtifactError, StorageError
from storage.files import write_bytes_atomic
from storage.geometry import Volume


def write_nifti(path: Path, volume: Volume) -> None:
    """Write a volume as `.nii` or `.nii.gz`; same volume, same bytes.

    The array is stored (x, y, z) in LPS index order; the affine turns LPS into NIfTI's RAS by negating x and y.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path} is not a NIfTI file name; expected one that ends in .nii or .nii.gz.")
    affine = np.diag([-volume.spacing_mm[0], -volume.spacing_mm[1], volume.spacing_mm[2], 1.0])
    affine[:3, 3] = (-volume.origin_mm[0], -volume.origin_mm[1], volume.origin_mm[2])
    image = nibabel.Nifti1Image(np.asfortranarray(volume.hu.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    data = image.to_bytes()
    write_bytes_atomic(path, gzip.compress(data, compresslevel=4, mtime=0) if path.name.endswith(".gz") else data)


def read_nifti(path: Path) -> Volume:
    """Read a NIfTI whose axes lie along the patient's, flipped and reordered to LPS; values are rounded to int16 HU.

    Raises:
        MissingArtifactError: no such file.
        StorageError: not a readable 3-D NIfTI, or an oblique affine.
    """
    if not path.is_file():
        raise MissingArtifactError(f"No NIfTI at {path}.")
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        values = np.asarray(image.dataobj)
    except (ImageFileError, OSError, ValueError, EOFError) as error:
        raise StorageError(f"{path} cannot be read as NIfTI ({error}). Write or copy it again.") from error
    affine = image.affine
    linear = affine[:3, :3]
    if values.ndim != 3 or not np.allclose(linear, np.diag(np.diag(linear)), atol=1e-3 * np.abs(linear).max()):
        raise StorageError(f"{path} has shape {values.shape} and affine {linear.tolist()}; expected 3-D, axis-aligned.")
    spacing = np.diag(linear)
    ras = values[::-1, ::-1]  # as_closest_canonical gives RAS; LPS runs the other way in x and y
    last = affine @ np.array([values.shape[0] - 1, values.shape[1] - 1, 0, 1])
    hu = np.clip(np.rint(ras), -32768, 32767).astype(np.int16).transpose(2, 1, 0)
    origin = (float(-last[0]), float(-last[1]), float(last[2]))
    return Volume(np.ascontiguousarray(hu), (float(spacing[0]), float(spacing[1]), float(spacing[2])), origin)
