"""NIfTI files for tests, written with nibabel alone: HU is a known function of LPS world position."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from tests.unit.storage.dicom_files import linear_hu

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def centred(linear: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """RAS affine with steps `linear` (LPS mm, columns i, j, k) whose volume is centred on the world origin."""
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return RAS @ matrix


def world_linear(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`linear_hu` at every voxel (i, j, k) of an affine."""
    index = np.stack([*np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), np.ones(shape)], axis=-1)
    return linear_hu((index @ (RAS @ affine).T)[..., :3])


def write_image(
    path: Path,
    stored: np.ndarray,
    affine: np.ndarray | None = None,
    *,
    kind: type[Any] = nibabel.Nifti1Image,
    change: Callable[[Any], None] = lambda header: None,
) -> Path:
    """Write values as they are stored, with both forms coded and millimetres unless `change` alters the header."""
    affine = centred(np.diag([1.5, 1.3, 2.0]), stored.shape[:3]) if affine is None else affine
    image = kind(stored, affine)
    image.header.set_data_dtype(stored.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    header = image.header.copy()
    header.set_slope_inter(1, 0)
    change(header)
    header.set_data_offset(header.single_vox_offset)
    data = header.binaryblock + b"\0" * (header.single_vox_offset - header.sizeof_hdr)
    data += stored.astype(header.get_data_dtype()).tobytes(order="F")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".gz"):
        import gzip

        data = gzip.compress(data)
    path.write_bytes(data)
    return path
