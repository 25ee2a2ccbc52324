"""The coarse mask that volumes are drawn for: from a file of labels, a scan, or a volume that the model's training listed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prdit_models.coarse_mask import BODY, LUNGS, OUTSIDE, labels_of_mask, mask_of_volume
from storage.artifacts import Ref, load_provenance
from storage.documents.samples import GivenMask
from storage.errors import InputError, SourceError, UnusableSeriesError
from storage.exports.nifti import write_nifti
from storage.files import sha256_file
from storage.geometry import AIR_HU, Float3, Volume
from storage.snapshots import open_snapshot
from storage.sources.nifti import read_nifti_values
from storage.sources.one_scan import find_scan
from tasks.model.checkpoint import CheckpointInfo
from tasks.model.upright import Upright, in_the_middle, upright
from tasks.model.view import read_as_seen
from tasks.sample.config import SampleConfig

NAME = "mask.nii.gz"  # beside the samples
_DESCRIPTION = "synthetic: coarse mask that volumes were drawn for (prdit)"
_MOST_LABEL = 255  # whole numbers up to it are labels, not HU
_OBLIQUE = (
    "is oblique or tilted; a mask lies along the patient's axes. Resample it, or ingest the scan and name the volume "
    "(sample.mask_volume)."
)


@dataclass(frozen=True)
class SampleMask:
    """A mask on the model's grid, as it is sent to workers.

    Attributes:
        shares: float32 values as bytes, so that drawings can be compared and hashed.
        shape: (channels, cells, cells, cells).
        cell: edge of a cell in voxels.
        given: where it comes from.
    """

    shares: bytes
    shape: tuple[int, ...]
    cell: int
    given: GivenMask

    @property
    def tensor(self) -> Tensor:
        """The shares, of one volume, shape (1, channels, cells, cells, cells)."""
        return torch.from_numpy(np.frombuffer(self.shares, np.float32).reshape(1, *self.shape).copy())

    def write(self, directory: Path, voxel_mm: float, origin_mm: Float3) -> None:
        """Write it as labels of voxels, to be laid over the samples. Raises: UnwritableError."""
        labels = labels_of_mask(self.tensor[0], self.cell)
        write_nifti(directory / NAME, Volume(labels, (voxel_mm,) * 3, origin_mm), _DESCRIPTION)


def sample_mask(checkpoint: Ref, info: CheckpointInfo, config: SampleConfig) -> SampleMask | None:
    """The mask that a configuration asks for, on the grid of a checkpoint's model; None where it asks for none.

    Args:
        checkpoint: of the model; its record names the volumes of its training.
        info: of the checkpoint, as `asked_grid` gave it.
        config: how to draw.
    Raises:
        InputError: the model was trained without a mask, there is no such file or volume, it has no place or unknown labels, or
            neither body nor lungs in the model's box.
        StorageError: the store is missing or damaged.
    """
    if config.mask is None and config.mask_volume is None:
        return None
    if info.mask is None:
        asked = "sample.mask" if config.mask is not None else "sample.mask_volume"
        raise InputError(
            f"A mask was asked for ({asked}) of a model that was trained without one. Leave it out, or train a global transformer "
            "with mask: body-and-lungs (docs/options.md)."
        )
    if config.mask_volume is not None:
        found, given = _of_volume(checkpoint, info, config.mask_volume), GivenMask(volume_id=config.mask_volume)
        where = f"Volume {config.mask_volume} (sample.mask_volume)"
    else:
        path = Path(str(config.mask))
        found, given = _of_file(path, info)
        where = f"{path} (sample.mask)"
    if not found.any():
        raise InputError(
            f"{where} has neither body nor lungs in the model's box of {info.voxel_mm * info.view.size:g} mm, which lies in its "
            "middle. Give a mask of the chest, or leave it out."
        )
    values = np.ascontiguousarray(found, dtype=np.float32)
    return SampleMask(values.tobytes(), values.shape, info.mask.cell, given)


def mask_key(config: SampleConfig, mask: SampleMask | None) -> dict[str, Any]:
    """The key fields of a configuration; a file counts by its content."""
    found = config.key_fields()
    return found if mask is None or config.mask is None else found | {"mask": mask.given.files_digest}


def _of_volume(checkpoint: Ref, info: CheckpointInfo, volume_id: str) -> NDArray[np.float32]:
    """The mask of a volume that the snapshot of the training lists, as the training made it."""
    snapshot = load_provenance(checkpoint).inputs.get("snapshot")
    if snapshot is None:
        raise InputError(
            f"The checkpoint {checkpoint.uri} names no snapshot of volumes, so that {volume_id!r} (sample.mask_volume) cannot be "
            "found. Give a file instead (sample.mask)."
        )
    check_mask_volume(snapshot, volume_id)
    store = open_snapshot(snapshot)[0]
    return _of_hu(info.window.to_hu(read_as_seen(store, volume_id, info.view, info.window).numpy()), info)


def check_mask_volume(snapshot: Ref, volume_id: str) -> None:
    """Refuse a volume that a model's training does not list. Raises: InputError."""
    store, listed = open_snapshot(snapshot)
    if volume_id not in listed.volumes:
        known = sorted(listed.volumes)
        raise InputError(
            f"{volume_id!r} (sample.mask_volume) is not one of the {len(known)} volumes that the model's training lists (such as "
            f"{known[0] if known else 'none'}). `prdit ls {store.path} --volumes` lists those of the store."
        )


def _of_file(path: Path, info: CheckpointInfo) -> tuple[NDArray[np.float32], GivenMask]:
    if not path.exists():
        raise InputError(f"There is nothing at {path} (sample.mask). Give a NIfTI file of labels, or a scan.")
    try:
        values = read_nifti_values(path) if path.is_file() else None
        if values is not None and _are_labels(values.values):
            seen = upright(values.values, values.spacing_mm, values.origin_mm, values.direction)
            return _of_labels(path, seen, info), GivenMask(format="labels", files_digest=f"sha256:{sha256_file(path)}")
        found = find_scan(path)
        scan = found.read()
    except SourceError as error:  # says what to give
        raise InputError(f"sample.mask cannot be used: {error}") from error
    except UnusableSeriesError as error:
        raise InputError(
            f"{path} (sample.mask) cannot be used: {error} Give a NIfTI file of the labels {OUTSIDE} (outside), {BODY} (body) and "
            f"{LUNGS} (lungs), or a CT scan."
        ) from error
    air = np.maximum(scan.hu, AIR_HU)  # what was not measured is lower, and would weigh in means
    seen = upright(air, scan.spacing_mm, scan.origin_mm, scan.direction)
    if seen is None or scan.slice_mm is not None:
        raise InputError(f"The scan at {path} (sample.mask) {_OBLIQUE}")
    hu = in_the_middle(seen, info.view.size, info.voxel_mm, outside=AIR_HU)
    saturated = info.window.to_hu(info.window.to_model(torch.from_numpy(hu)).numpy())  # as the training saw its volumes
    return _of_hu(saturated, info), GivenMask(format=found.format, files_digest=found.digest)


def _are_labels(values: NDArray[np.generic]) -> bool:
    low, high = values.min(), values.max()
    return bool(low >= 0 and high <= _MOST_LABEL and (values == np.rint(values)).all())


def _of_labels(path: Path, seen: Upright | None, info: CheckpointInfo) -> NDArray[np.float32]:
    """Shares of the cells that labels fill."""
    if seen is None:
        raise InputError(f"The mask {path} (sample.mask) {_OBLIQUE}")
    labels = np.unique(seen.values)
    if unknown := [int(label) for label in labels if label not in (OUTSIDE, BODY, LUNGS)]:
        raise InputError(
            f"The mask {path} (sample.mask) has labels {unknown[:5]}; expected {OUTSIDE} (outside), {BODY} (body) and {LUNGS} "
            "(lungs) only. Change its labels to these."
        )
    cell = info.mask.cell if info.mask else 1
    channels = [
        Upright(flags, seen.first_mm, seen.spacing_mm) for flags in (seen.values > OUTSIDE, seen.values == LUNGS)
    ]
    return np.stack([in_the_middle(each, info.view.size // cell, cell * info.voxel_mm) for each in channels])


def _of_hu(hu: NDArray[np.float32], info: CheckpointInfo) -> NDArray[np.float32]:
    cell = info.mask.cell if info.mask else 1
    found: NDArray[np.float32] = mask_of_volume(np.asarray(hu, np.float32), info.voxel_mm, cell).numpy()
    return found
