"""Post-hoc EMA: a checkpoint whose EMA weights are an average of another length, from the training's snapshots."""

import logging
import shutil
from pathlib import Path

import torch

from prdit_models.posthoc_ema import Profile, gamma_of, mix, mixing_coefficients
from storage.artifacts import Ref, load_provenance
from storage.checkpoints import WEIGHTS_FILES, Tensors, load_tensors, save_tensors
from storage.documents.average_snapshots import AverageSnapshots
from storage.documents.checkpoint import Average, Checkpoint
from storage.errors import InputError, as_input_error
from storage.files import replacing
from tasks.average.config import AverageConfig
from tasks.run.progress import Advance
from tasks.run.stage import RunContext, Stage, StageOutcome, run_stage
from tasks.train.averages import FOLDER
from tasks.train.spec import METRICS

RECIPE = 2
logger = logging.getLogger("prdit.average")


def average_stage(checkpoint: Ref, config: AverageConfig, context: RunContext, progress: Advance) -> StageOutcome:
    """Make the average as a checkpoint of its own, with the inputs of the checkpoint it is made from.

    Raises:
        StorageError: the training kept no snapshots, or their list is damaged.
        InputError: the snapshots do not give this average, or the reference is not a checkpoint.
    """
    if checkpoint.kind != "checkpoint":
        raise InputError(f"prdit ema needs a checkpoint, got a {checkpoint.kind} at {checkpoint.uri}.")
    shares = _shares(checkpoint, config)
    inherited = load_provenance(checkpoint).inputs
    return run_stage(
        Stage("average", checkpoint.kind, RECIPE),
        inputs=inherited | {"averaged": checkpoint},
        config=config.key_fields(),
        context=context,
        body=lambda run: average(checkpoint, shares, config, run.directory, progress),
    )


def average(
    checkpoint: Ref, shares: dict[str, float], config: AverageConfig, directory: Path, progress: Advance
) -> None:
    """Write the checkpoint: raw weights and metrics unchanged, EMA weights as the weighted sum of the snapshots."""
    tensors: dict[str, torch.Tensor] = {}
    for done, (name, share) in enumerate(shares.items(), start=1):
        snapshot = load_tensors(checkpoint.path / FOLDER / name)
        for key, value in snapshot.items():
            tensors[key] = mix(tensors.get(key), torch.from_numpy(value), share)
        progress(done, len(shares))
    averaged: Tensors = load_tensors(checkpoint.path / WEIGHTS_FILES["ema"])  # frozen weights are not in the snapshots
    averaged |= {key: tensor.float().numpy() for key, tensor in tensors.items()}
    save_tensors(directory / WEIGHTS_FILES["ema"], averaged)
    for name in (WEIGHTS_FILES["raw"], METRICS):
        with replacing(directory / name) as temporary:
            shutil.copyfile(checkpoint.path / name, temporary)
    described = Average(sigma_rel=config.sigma_rel, updates=config.updates, shares=shares)
    # no gates: the losses were those of the EMA that is replaced
    Checkpoint.load(checkpoint.path).model_copy(update={"gates": None, "average": described}).save(directory)


def _shares(checkpoint: Ref, config: AverageConfig) -> dict[str, float]:
    """Coefficient of each snapshot file in the average."""
    entries = AverageSnapshots.load(checkpoint.path / FOLDER).snapshots
    last = max((entry.updates for entry in entries), default=0)
    with as_input_error():
        kept = [Profile(entry.updates, gamma_of(entry.sigma_rel)) for entry in entries]
        wanted = Profile(config.updates or last, gamma_of(config.sigma_rel))
        shares = mixing_coefficients(kept, wanted)
    logger.info(
        "average of sigma_rel %g as of update %d from %d snapshots", config.sigma_rel, wanted.updates, len(kept)
    )
    return {entry.file: float(share) for entry, share in zip(entries, shares, strict=True)}
