"""Writing volumes as NIfTI (`storage.sources.nifti` reads): int16 HU, RAS affine, written atomically."""

import gzip
from pathlib import Path

import nibabel
import numpy as np

from storage.files import write_bytes_atomic
from storage.geometry import Volume


def write_nifti(path: Path, volume: Volume, description: str = "") -> None:
    """Write a volume as `.nii` or `.nii.gz`; same volume, same bytes.

    The array is stored (x, y, z) in LPS index order; the affine turns LPS into NIfTI's RAS by negating x and y.

    Args:
        path: of the file.
        volume: what it holds.
        description: for the header's field of that name, at most 79 bytes.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path} is not a NIfTI file name; expected one that ends in .nii or .nii.gz.")
    affine = np.diag([-volume.spacing_mm[0], -volume.spacing_mm[1], volume.spacing_mm[2], 1.0])
    affine[:3, 3] = (-volume.origin_mm[0], -volume.origin_mm[1], volume.origin_mm[2])
    image = nibabel.Nifti1Image(np.asfortranarray(volume.hu.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    data = image.to_bytes()
    write_bytes_atomic(path, gzip.compress(data, compresslevel=4, mtime=0) if path.name.endswith(".gz") else data)
