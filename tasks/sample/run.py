"""Sampling: a checkpoint -> volumes in Hounsfield units, each from its own seed."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from pydantic import TypeAdapter

from storage.artifacts import SCRATCH, Ref
from storage.documents.checkpoint import Intensity, View
from storage.documents.samples import Excluded, Redraw, SamplerSettings, Samples, Verdict
from storage.documents.synthetic import Synthetic
from storage.errors import ComputationError, InputError, as_input_error
from storage.files import write_json_atomic
from storage.volume_store import VolumeStore
from tasks.model.checkpoint import CheckpointInfo, load_info
from tasks.run.fanout import Pool
from tasks.run.progress import Advance
from tasks.run.runners import Local, Runner
from tasks.sample.batch import AtOnce, at_once, threads_that_fit
from tasks.sample.chunk import Batch, Drawn, draw_chunk
from tasks.sample.conditions import asked_grid, asked_values, request, warnings_on
from tasks.sample.config import SampleConfig
from tasks.sample.draw import Drawing, Target, model_of, volume_id
from tasks.sample.mask import SampleMask, sample_mask
from tasks.sample.settle import judged
from tasks.sample.watch import Show, Watch

__all__ = ["RECIPE", "check", "sample"]

RECIPE = 6
STORE_NAME = "samples.zarr"
_BATCH = "batch.json"  # in the scratch folder: the batch that was measured, for a run that goes on
_LONGEST = 16  # batches of a chunk: after each chunk its worker waits until all is written
_CHUNKS = 4  # per worker at least, so that all end at about the same time
logger = logging.getLogger("prdit.sample")


def check(
    checkpoint: Ref, config: SampleConfig, target: Target | None = None, mask: SampleMask | None = None
) -> SampleMask | None:
    """Refuse a checkpoint that cannot be sampled from, or not with these settings, before any work; returns the mask they ask for.

    Args:
        checkpoint: what to draw from.
        config: how.
        target: a measurement that the volumes are drawn towards.
        mask: where it was read already.
    Raises:
        InputError: it is not a checkpoint, its family cannot be sampled, or not towards a measurement, or sampler, parametrisation,
            label, conditions or mask do not fit its model.
        StorageError: there is no readable checkpoint at the reference.
    """
    if checkpoint.kind != "checkpoint":
        raise InputError(f"Sampling needs a checkpoint, got a {checkpoint.kind} at {checkpoint.uri}.")
    info = asked_grid(load_info(checkpoint), config)
    mask = mask or sample_mask(checkpoint, info, config)
    wanted = request(info, config, mask)
    if target is not None:
        wanted = replace(wanted, guide=target.guide(info, torch.device("cpu")))
    with as_input_error():
        info.of_family.check(info.model, info.process, wanted)
    return mask


def sample(
    checkpoint: Ref,
    config: SampleConfig,
    directory: Path,
    progress: Advance,
    *,
    runner: Runner | None = None,
    show: Show | None = None,
    target: Target | None = None,
    mask: SampleMask | None = None,
) -> None:
    """Draw volumes into `samples.zarr`, `nifti/` and the list of samples; volumes a killed run has committed are kept.

    On a CPU the bits of a volume depend on its seed alone. On a GPU they depend on its batch, too: batch k has the volumes from
    k · batch_size on, and one of which a volume is missing is drawn as a whole, so that what is made does not depend on where an
    earlier run was killed; nor on the number of workers, where `batch_size` is set (a batch that is measured is no larger than a
    worker's share).

    Args:
        checkpoint: verified by the stage.
        config: what to draw.
        directory: of the artifact.
        progress: called with (model evaluations done, total).
        runner: where batches are drawn; default: in this process.
        show: given pictures of the newest volumes while it runs.
        target: a measurement that the volumes are drawn towards.
        mask: that the configuration asks for, where it was read already.
    Raises:
        InputError: the checkpoint cannot be sampled from.
        ComputationError: no volume is finite, or the guide towards the target is too strong.
        OutOfMemoryError: not even one volume fits.
        RunnerError: a worker is missing, or was lost.
    """
    mask = check(checkpoint, config, target, mask)
    info = asked_grid(load_info(checkpoint), config)
    mark = Synthetic(
        checkpoint=checkpoint.digest,
        family=info.family,
        step=info.step,
        sampler=_sampler(info, config, mask),
        guided=None if target is None else target.guided,
    )
    store = VolumeStore.create(
        directory / STORE_NAME, spacing_mm=info.voxel_mm, num_levels=1, interpolation="none", synthetic=mark
    )
    each = mark.sampler.evaluations
    watch = Watch(store, directory, (config.num_volumes, each), config.preview_every, progress, show)
    absolute = checkpoint.model_copy(update={"uri": str(checkpoint.path.resolve())})
    drawing = Drawing(absolute, config, store.path.resolve(), target, mask)
    if mask is not None:
        mask.write(directory, info.voxel_mm, drawing.origin_mm(info))
    with Pool(_where(runner, config), one_thread=False) as pool:
        drawn = _draw(pool, drawing, store, directory / SCRATCH, watch)
    _samples(store, info, config, mark, drawn.excluded).save(directory)
    watch.finish()
    if drawn.volumes:  # scratch, not artifact: equal runs must give equal bytes
        timing = {"seconds_per_step": drawn.seconds / (drawn.volumes * each), "num_volumes": drawn.volumes}
        write_json_atomic(directory / SCRATCH / "timing.json", timing)
        logger.info("sample: %.3f s per step and volume", timing["seconds_per_step"])


def _where(runner: Runner | None, config: SampleConfig) -> Runner | None:
    """The runner, or none where several processes of this machine would share its GPU."""
    if isinstance(runner, Local) and config.device != "cpu" and torch.cuda.is_available():
        if (runner.num_workers or 1) > 1:
            logger.info("sample: in this process, which has the GPU; runner cuda uses several")
        return None
    return runner


def _draw(pool: Pool, drawing: Drawing, store: VolumeStore, scratch: Path, watch: Watch) -> Drawn:
    """Draw what is missing."""
    indices = range(drawing.config.num_volumes)
    committed = set(store.volume_ids())
    missing = [index for index in indices if volume_id(index) not in committed]
    if not missing:
        return Drawn()
    if len(missing) < len(indices):
        logger.info("sample: %d of %d volumes are committed already", len(indices) - len(missing), len(indices))
    try:
        shape = _at_once(pool, drawing, scratch, -(-len(missing) // pool.num_workers))
        batches = [tuple(indices[start : start + shape.batch]) for start in range(0, len(indices), shape.batch)]
        batches = [batch for batch in batches if not {*map(volume_id, batch)} <= committed]
        if pool.here:
            return draw_chunk(drawing, batches, watch.drawn)
        drawn, chunks = Drawn(), _chunks(batches, pool.num_workers, shape.batches)
        for _, found in pool.each(partial(draw_chunk, drawing), chunks, _named, watch.tick):
            drawn += found
        return drawn
    finally:
        model_of.cache_clear()
        threads_that_fit.cache_clear()


def _at_once(pool: Pool, drawing: Drawing, scratch: Path, most: int) -> AtOnce:
    """What a process draws at once, asked of one of them; a batch that was measured before is kept, and with it the bits."""
    record = scratch / _BATCH
    if drawing.config.batch_size is None and record.exists():
        try:
            return TypeAdapter(AtOnce).validate_json(record.read_bytes())
        except ValueError:
            logger.warning("%s is damaged; what can be drawn at once is measured again", record)
    if pool.here:
        found = at_once(drawing, most)
    else:
        ((_, found),) = pool.each(partial(at_once, drawing), [most], lambda most: "the size of a batch")
    if drawing.config.batch_size is None:
        write_json_atomic(record, asdict(found))
    logger.info("sample: %d at once, in batches of %d", found.batch * found.batches, found.batch)
    return found


def _chunks(batches: Sequence[Batch], workers: int, at_the_same_time: int) -> list[tuple[Batch, ...]]:
    """Batches that a worker draws in one go: enough to overlap drawing and writing, few enough to share them evenly."""
    rounds = max(1, min(_LONGEST, len(batches) // (_CHUNKS * workers * at_the_same_time)))
    size = max(1, min(rounds * at_the_same_time, -(-len(batches) // workers)))
    return [tuple(batches[start : start + size]) for start in range(0, len(batches), size)]


def _named(chunk: Sequence[Batch]) -> str:
    return f"volumes {chunk[0][0]} to {chunk[-1][-1]} of the samples"


def _sampler(info: CheckpointInfo, config: SampleConfig, mask: SampleMask | None) -> SamplerSettings:
    return SamplerSettings(
        name=config.sampler,
        schedule=config.schedule,
        num_steps=config.num_steps,
        evaluations=info.of_family.evaluations(info.process, request(info, config, mask)),
        predictor_step=config.predictor_step if config.sampler == "predictor-corrector" else None,
        parametrization=config.parametrization,
        output=config.output,
        label=config.label,
        guidance_scale=config.guidance_scale,
        process=None if info.process is None else info.process.to_dict(),
        seed=config.seed,
        weights=config.weights,
        precision=config.precision,
        conditions=asked_values(info, config),
        mask=None if mask is None else mask.given,
    )


def _samples(
    store: VolumeStore,
    info: CheckpointInfo,
    config: SampleConfig,
    mark: Synthetic,
    excluded: Sequence[Excluded],
) -> Samples:
    """The list of samples, from what is committed. Raises: ComputationError: nothing is."""
    if len(excluded) == config.num_volumes:
        first = excluded[0]
        raise ComputationError(
            f"None of {len(excluded)} volumes is finite. Of volume {first.index} (seed {first.seed}, {config.weights} weights) "
            f"{first.sentence}. Look at the training's losses (metrics.jsonl), or sample with the other weights (sample.weights)."
        )
    for one in excluded:
        logger.warning("sample: volume %d (seed %d) is left out: %s", one.index, one.seed, one.sentence)
    warnings = warnings_on(info, config)
    for sentence in warnings:
        logger.warning("sample: %s", sentence)
    missing = {one.index for one in excluded}
    ids = [volume_id(index) for index in range(config.num_volumes) if index not in missing]
    facts = [store.commit_record(name).attributes for name in ids]
    tries = [fact["tries"] for fact in facts]
    redraw = Redraw(
        most=config.redraw.most,
        judged=judged(info, config.redraw),
        num_redrawn=sum(count > 1 for count in [*tries, *(one.tries for one in excluded)]),
        tries=tries,
    )
    return Samples(
        store=STORE_NAME,
        num_asked=config.num_volumes,
        volume_ids=ids,
        seeds=[fact["seed"] for fact in facts],
        sampler=mark.sampler,
        clipped_fraction=[fact["clipped_fraction"] for fact in facts],
        outside_window_fraction=[fact["outside_window_fraction"] for fact in facts],
        verdicts=[Verdict(**fact["verdict"]) for fact in facts],
        redraw=redraw,
        excluded=list(excluded),
        view=View(**info.view.model_dump()),
        intensity=Intensity(**asdict(info.window)),
        spacing_mm=info.voxel_mm,
        guided=mark.guided,
        warnings=warnings,
    )
