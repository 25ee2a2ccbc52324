"""Losses of a checkpoint on the volumes of the frozen reference, one number per volume.

The noises of a volume depend on its id and the reference's seed alone, and volumes are computed one by one: its number does not
depend on which other volumes there are.
"""

import hashlib
from pathlib import Path
from typing import Literal

import torch

from prdit_models.conditions import Conditions
from prdit_models.families.family import HeldOut, Training
from storage.artifacts import Ref
from storage.documents.held_out import HeldOutLosses
from storage.documents.reference import Reference
from storage.errors import ComputationError, StorageError
from storage.snapshots import load_snapshot
from storage.volume_store import VolumeStore
from tasks.model.checkpoint import load_model
from tasks.model.compute import ComputeConfig, pick_device
from tasks.retrain.reference import reference_snapshot
from tasks.train.conditions import conditions_of
from tasks.train.data import ViewDataset
from tasks.train.mask import Masker

FOLDER = "held-out"
Weights = Literal["ema", "raw"]


def held_out_losses(
    checkpoint: Ref,
    reference: Reference,
    number: int,
    *,
    store: Path,
    workdir: Path,
    weights: Weights = "ema",
    compute: ComputeConfig | None = None,
) -> dict[str, float]:
    """Loss by volume id: the mean over the validation times of the checkpoint's process and the noises of the reference.

    Measured once for a checkpoint and a reference, and then found in `<workdir>/held-out/`.

    Args:
        checkpoint: a checkpoint artifact, already verified by hash.
        reference: volumes and noises.
        number: of the reference.
        store: volume store.
        workdir: working folder.
        weights: which of the checkpoint's two sets.
        compute: where it is computed.
    Raises:
        StorageError: checkpoint or volumes are missing or damaged.
        InputError: the checkpoint cannot be used here.
        ComputationError: a loss is not finite.
    """
    path = workdir / FOLDER / f"{number:08d}" / f"{checkpoint.digest.removeprefix('sha256:')}-{weights}.json"
    if (known := _known(path, checkpoint, reference, weights)) is not None:
        return known
    losses = _measured(checkpoint, reference, store, weights, compute or ComputeConfig())
    HeldOutLosses(checkpoint=checkpoint.digest, weights=weights, reference=number, losses=losses).write(path)
    return losses


def _known(path: Path, checkpoint: Ref, reference: Reference, weights: str) -> dict[str, float] | None:
    try:
        found = HeldOutLosses.read(path)
    except StorageError:  # not measured yet, or damaged: measured again
        return None
    fits = (found.checkpoint, found.weights) == (checkpoint.digest, weights)
    return found.losses if fits and found.losses.keys() == reference.volumes.keys() else None


def _measured(
    checkpoint: Ref,
    reference: Reference,
    store: Path,
    weights: Weights,
    compute: ComputeConfig,
) -> dict[str, float]:
    device = pick_device(compute)
    module, info = load_model(checkpoint, weights, device)
    family = info.of_family
    training, names = Training(family.settings(), info.process), sorted(reference.volumes)
    data = ViewDataset(VolumeStore.open(store), names, info.view, info.window, 0, info.axes)
    known: Conditions | None = None
    if info.label_column or info.conditions:
        known = conditions_of(info, load_snapshot(reference_snapshot(store, reference)), names)
    found, masker = {}, Masker.by(info)
    for index, name in enumerate(names):
        conditions = None if known is None else known.rows([index])
        volume = data.get(index).unsqueeze(0)
        if masker is not None:
            conditions = (conditions or Conditions())._replace(mask=masker.batch(volume))
        total = 0.0
        for place in noise_places(name, reference):
            total += family.validate(module, HeldOut(volume, (place,), conditions), training, 1)["loss"]
        found[name] = total / reference.num_noises
    if bad := sorted(name for name, loss in found.items() if not torch.isfinite(torch.tensor(loss))):
        raise ComputationError(
            f"The held-out loss of the checkpoint at {checkpoint.uri} is not finite on {len(bad)} of {len(found)} volumes (first: "
            f"{bad[0]}): it cannot be compared. Its training has gone wrong; look at its losses."
        )
    return found


def noise_places(volume_id: str, reference: Reference) -> list[int]:
    """Numbers on which the noises of a volume depend, in place of its position among held-out volumes."""
    seeds = (f"{reference.seed}:{volume_id}:{number}" for number in range(reference.num_noises))
    return [int.from_bytes(hashlib.sha256(seed.encode()).digest()[:5]) for seed in seeds]
