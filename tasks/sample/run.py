"""Sampling: a checkpoint -> volumes in Hounsfield units, each from its own seed."""

import hashlib
import logging
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prdit_models.families.family import Callback, Request
from prdit_models.plan import Work
from storage.artifacts import SCRATCH, Ref
from storage.documents.checkpoint import Intensity, View
from storage.documents.samples import SamplerSettings, Samples
from storage.errors import ComputationError, InputError, as_input_error
from storage.files import write_json_atomic
from storage.geometry import Volume
from storage.nifti import write_nifti
from storage.volume_store import VolumeStore
from tasks.model.checkpoint import CheckpointInfo, load_info, load_model
from tasks.model.compute import autocast, pick_device
from tasks.model.memory import Room, out_of_memory_explained, planned_of, sampling_advice
from tasks.run.progress import Advance
from tasks.sample.config import SampleConfig

__all__ = ["RECIPE", "check", "load_model", "sample", "volume_id", "volume_seed"]

RECIPE = 5
STORE_NAME = "samples.zarr"
_INT16 = np.iinfo(np.int16)
logger = logging.getLogger("prdit.sample")


def check(checkpoint: Ref, config: SampleConfig) -> None:
    """Refuse a checkpoint that cannot be sampled from, or not with these settings, before any work.

    Raises:
        InputError: it is not a checkpoint, its family cannot be sampled, or sampler, parametrisation or label do not fit its model.
        StorageError: there is no readable checkpoint at the reference.
    """
    if checkpoint.kind != "checkpoint":
        raise InputError(f"Sampling needs a checkpoint, got a {checkpoint.kind} at {checkpoint.uri}.")
    info = load_info(checkpoint)
    wanted = request(info, config)
    with as_input_error():
        info.of_family.check(info.model, info.process, wanted)


def request(info: CheckpointInfo, config: SampleConfig) -> Request:
    """What a configuration asks of a checkpoint's model.

    Raises: InputError: the model does not know the label.
    """
    label = None
    if config.label is not None:
        label = (
            info.label_index(config.label) if info.label_values else 0
        )  # of a model without labels, its family says why not
    return Request(config.as_sampler(), config.output, label, config.guidance_scale)


def volume_seed(seed: int, index: int) -> int:
    """Seed of one volume: the first 63 bits of SHA-256 of `<seed>/<index>`, so that volumes share no noise."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big") >> 1


def volume_id(index: int) -> str:
    """Id of a generated volume in its store."""
    return f"generated-{index:05d}"


def sample(checkpoint: Ref, config: SampleConfig, directory: Path, progress: Advance) -> None:
    """Draw volumes into `samples.zarr`, `nifti/` and the list of samples; volumes a killed run has committed are kept.

    One state per batch is in memory, for any number of steps. Noise of a volume comes from its own generator on the
    CPU, so a seed means the same volume in any batch and on any device, up to rounding of the arithmetic.

    Args:
        checkpoint: verified by the stage.
        config: what to draw.
        directory: of the artifact.
        progress: called with (model evaluations done, total).
    Raises:
        InputError: the checkpoint cannot be sampled from.
        ComputationError: the model gave values that are not finite.
    """
    check(checkpoint, config)
    device = pick_device(config)
    with out_of_memory_explained(device, partial(_advice, load_info(checkpoint), config, config.batch_size)):
        model, info = load_model(checkpoint, config.weights, device, attention=config.attention)
    store = VolumeStore.create(directory / STORE_NAME, spacing_mm=info.voxel_mm, num_levels=1, interpolation="none")
    committed = set(store.volume_ids())
    missing = [index for index in range(config.num_volumes) if volume_id(index) not in committed]
    if len(missing) < config.num_volumes:
        logger.info("sample: %d of %d volumes are committed already", len(committed), config.num_volumes)
    each = info.of_family.evaluations(info.process, request(info, config))
    total, finished, seconds = each * config.num_volumes, config.num_volumes - len(missing), 0.0
    progress(finished * each, total)
    for start in range(0, len(missing), config.batch_size):
        indices = missing[start : start + config.batch_size]
        done_before = finished * each

        def advance(done: int, _: int, __: object, before: int = done_before, batch: int = len(indices)) -> None:
            progress(before + done * batch, total)

        began = time.monotonic()
        with out_of_memory_explained(device, partial(_advice, info, config, len(indices))):
            volumes = _draw_batch(model, info, config, indices, device, advance, checkpoint)
        seconds += time.monotonic() - began
        for index, x in zip(indices, volumes, strict=True):
            _commit(store, index, x, info, config)
        finished += len(indices)
    _write_outputs(store, info, config, directory)
    if missing:  # scratch, not artifact: equal runs must give equal bytes
        batches = -(-len(missing) // config.batch_size)
        batch = min(config.batch_size, len(missing))
        timing = {"seconds_per_step": seconds / (batches * each), "batch_size": batch}
        write_json_atomic(directory / SCRATCH / "timing.json", {**timing, "num_volumes": len(missing)})
        logger.info("sample: %.3f s per step for a batch of %d", timing["seconds_per_step"], batch)


def _advice(info: CheckpointInfo, config: SampleConfig, batch_size: int, room: Room) -> str:
    """What would fit where a batch did not."""
    work = Work(info.family, "sample", config.precision)
    return sampling_advice(planned_of(info), work, room, batch_size=batch_size)


def _draw_batch(
    model: torch.nn.Module,
    info: CheckpointInfo,
    config: SampleConfig,
    indices: list[int],
    device: torch.device,
    advance: Callback,
    checkpoint: Ref,
) -> NDArray[np.float32]:
    """Volumes of some indices in model range, shape (B, S, S, S), not clipped."""
    seeds = [volume_seed(config.seed, index) for index in indices]
    with autocast(device, config.precision):
        drawn = info.of_family.generate(
            model,
            info.process,
            request(info, config),
            [torch.Generator().manual_seed(seed) for seed in seeds],
            callback=advance,
        )
    size = info.view.size
    if drawn.dim() != 5 or (len(drawn), *drawn.shape[2:]) != (len(seeds), size, size, size):
        raise ComputationError(
            f"family {info.family!r} drew {tuple(drawn.shape)} for {len(seeds)} seeds; expected ({len(seeds)}, 1, {size}, {size}, "
            f"{size}). Its generate() is wrong, or its checkpoint is of another size."
        )
    volumes: NDArray[np.float32] = drawn[:, 0].float().cpu().numpy()
    for index, seed, x in zip(indices, seeds, volumes, strict=True):
        if not np.isfinite(x).all():
            raise ComputationError(
                f"Volume {index} (seed {seed}) from {checkpoint.uri} ({config.weights} weights) has "
                f"{int((~np.isfinite(x)).sum())} of {x.size} voxels that are not finite; expected finite values. Look at "
                "the training's losses (metrics.jsonl), or sample with the other weights (sample.weights)."
            )
    return volumes


def _commit(store: VolumeStore, index: int, x: NDArray[np.float32], info: CheckpointInfo, config: SampleConfig) -> None:
    """Turn one volume (S, S, S) from model range to int16 HU and commit it; its record has what was clipped."""
    if info.axes == "xyz":
        x = x.transpose(2, 1, 0)
    hu = info.window.to_hu(x)
    rounded = np.rint(hu)
    outside = (hu < info.window.lower_hu) | (hu > info.window.upper_hu)
    half = info.voxel_mm * (x.shape[0] - 1) / 2  # the box's middle is the origin of the world
    volume = Volume(
        np.clip(rounded, _INT16.min, _INT16.max).astype(np.int16), (info.voxel_mm,) * 3, (-half, -half, -half)
    )
    facts = {
        "index": index,
        "seed": volume_seed(config.seed, index),
        "clipped_fraction": float(((rounded < _INT16.min) | (rounded > _INT16.max)).mean()),
        "outside_window_fraction": float(outside.mean()),
    }
    store.write(volume, volume_id=volume_id(index), attributes=facts)


def _write_outputs(store: VolumeStore, info: CheckpointInfo, config: SampleConfig, directory: Path) -> None:
    """NIfTI files and the list of samples from the committed volumes."""
    ids = [volume_id(index) for index in range(config.num_volumes)]
    facts = [store.commit_record(name).attributes for name in ids]
    if config.nifti:
        for index, name in enumerate(ids):
            path = directory / "nifti" / f"{index}.nii.gz"
            if not path.exists():  # written atomically: a file that exists is complete
                write_nifti(path, store.read_level(name))
    sampler = SamplerSettings(
        name=config.sampler,
        schedule=config.schedule,
        num_steps=config.num_steps,
        evaluations=info.of_family.evaluations(info.process, request(info, config)),
        predictor_step=config.predictor_step if config.sampler == "predictor-corrector" else None,
        parametrization=config.parametrization,
        output=config.output,
        label=config.label,
        guidance_scale=config.guidance_scale,
        process=None if info.process is None else info.process.to_dict(),
        seed=config.seed,
        weights=config.weights,
        precision=config.precision,
    )
    Samples(
        store=STORE_NAME,
        volume_ids=ids,
        seeds=[fact["seed"] for fact in facts],
        sampler=sampler,
        clipped_fraction=[fact["clipped_fraction"] for fact in facts],
        outside_window_fraction=[fact["outside_window_fraction"] for fact in facts],
        view=View(**info.view.model_dump()),
        intensity=Intensity(**asdict(info.window)),
        spacing_mm=info.voxel_mm,
    ).save(directory)
