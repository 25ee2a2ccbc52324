"""Evaluation: samples, snapshot and split -> figures, `report.html` and `figures/`."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prdit_models.metrics.anatomy import LIMITS
from prdit_models.metrics.distances import MIN_VOLUMES
from prdit_models.metrics.histogram import histogram_of
from prdit_models.metrics.metric import METRICS, Comparison, Figure, Hu, Setting, Side
from storage.artifacts import SCRATCH, Ref, input_ref, load_provenance
from storage.documents.report import Features, FigureRecord, Report
from storage.documents.samples import Samples
from storage.documents.split import Split
from storage.errors import InputError, as_input_error
from storage.files import write_text_atomic
from storage.snapshots import open_snapshot
from storage.volume_store import VolumeStore
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.features import Extractor, load_extractor, volume_features
from tasks.evaluate.report import ReportInput, render, write_pictures
from tasks.model.checkpoint import CheckpointInfo, load_info
from tasks.model.compute import pick_device
from tasks.model.data import check_split
from tasks.model.memory import evaluation_advice, out_of_memory_explained
from tasks.model.view import read_as_seen
from tasks.run.progress import Advance

__all__ = ["RECIPE", "check", "evaluate"]

RECIPE = 3
logger = logging.getLogger("prdit.evaluate")
PROTOCOL = (
    "Real side: every volume of the split, training and validation together (the published protocol); figures ending in "
    "_val use held-out volumes only. Both sides are saturated to the checkpoint's Hounsfield window and mapped to the model's "
    "range."
)


def check(samples: Ref, snapshot: Ref, split: Ref) -> None:
    """Refuse what cannot be compared, before any work.

    Raises:
        InputError: fewer than two volumes on a side, a split of volumes that the store does not have, or another kind of artifact.
        StorageError: an artifact is missing.
    """
    for ref, kind in ((samples, "samples"), (snapshot, "snapshot"), (split, "split")):
        if ref.kind != kind:
            raise InputError(f"evaluate expected a reference of kind {kind!r}, got {ref.kind!r} at {ref.uri}.")
    num_generated = len(Samples.load(samples.path).volume_ids)
    if num_generated < MIN_VOLUMES:
        raise InputError(
            f"The samples at {samples.uri} hold {num_generated} volume; a distance between sets needs at least "
            f"{MIN_VOLUMES}. Sample more (sample.num_volumes)."
        )
    roles_of = Split.load(split.path)
    real = roles_of.volume_ids
    if len(real) < MIN_VOLUMES:
        raise InputError(
            f"The split at {split.uri} names {len(real)} real volume; a distance between sets needs at least "
            f"{MIN_VOLUMES}. Ingest more scans."
        )
    check_split(open_snapshot(snapshot)[1], roles_of, split)


def evaluate(
    samples: Ref,
    snapshot: Ref,
    split: Ref,
    config: EvaluateConfig,
    directory: Path,
    progress: Advance,
    *,
    repeat_command: str | None = None,
) -> None:
    """Measure samples against real volumes and write the report.

    Args:
        samples: of stage sample.
        snapshot: of the volume store with the real volumes.
        split: roles of them.
        config: how to measure.
        directory: of the artifact.
        progress: called with (volumes read and measured, total).
        repeat_command: the command that repeats the run, for the report.
    Raises:
        InputError: fewer than two volumes on a side, or unusable feature weights.
        StorageError: an artifact is missing or damaged.
    """
    check(samples, snapshot, split)
    device = pick_device(config)
    extractor = load_extractor(config)
    with as_input_error():  # one of another package may not be importable
        metrics_by_name = {name: METRICS[name] for name in METRICS.names()}
    info = load_info(input_ref(samples, "checkpoint"))
    drawn, roles_of = Samples.load(samples.path), Split.load(split.path)
    real_ids, generated_ids = roles_of.volume_ids, drawn.volume_ids
    store, _ = open_snapshot(snapshot)
    if abs(store.spacing_mm - info.spacing_mm) > 1e-6:
        raise InputError(
            f"The store at {store.path} has {store.spacing_mm} mm voxels, the checkpoint was trained at {info.spacing_mm} mm: "
            "the same view would cover a box of another size in mm. Evaluate on a store of that spacing."
        )
    generated_store = VolumeStore.open(samples.path / drawn.store)
    view = info.view

    def read_real(name: str) -> Hu:
        if info.window.follows_scan:  # HU of the samples are nominal, and so must these be
            return info.window.to_hu(read_as_seen(store, name, view, info.window).numpy())
        return store.read_view(name, view.size, view.edge, view.centre)

    def read_generated(name: str) -> Hu:
        return generated_store.read_level(name).hu.astype(np.float32)

    total = 2 * (len(real_ids) + len(generated_ids))  # each is read for its features, then for the metrics on HU
    finished = 0

    def done(count: int) -> None:
        nonlocal finished
        finished += count
        progress(finished, total)

    cache = directory / SCRATCH / "features" / extractor.digest.removeprefix("sha256:")[:16]
    trained_on = load_provenance(input_ref(samples, "checkpoint")).inputs.get("split")
    setting = Setting(
        window=info.window,
        voxel_mm=info.voxel_mm,
        size=view.size,
        trained_on_split=trained_on is not None and trained_on.digest == split.digest,
        features=extractor.digest,
        random_features=extractor.kind == "random",
        num_bootstrap=config.num_bootstrap,
        seed=config.bootstrap_seed,
    )
    measure = partial(_measure, extractor, setting, batch_size=config.batch_size, device=device, done=done)
    train_ids = set(roles_of.role("train"))
    roles = tuple("train" if name in train_ids else "val" for name in real_ids)
    real = measure(real_ids, read_real, cache / "real", roles)
    generated = measure(generated_ids, read_generated, cache / "generated", ())
    compared = {name: each.compare(real, generated, setting) for name, each in metrics_by_name.items()}
    metrics = _report(compared, extractor, config, drawn, info, roles_of)
    metrics.save(directory)
    for sentence in metrics.warnings:
        logger.warning("%s", sentence)
    anatomy, nearest = metrics.details["anatomy"], metrics.details["copies"]["nearest_training"]
    shown_real = _spread(roles_of.role("val"), roles_of.role("train"), config.num_shown)
    shown = generated_ids[: config.num_shown]
    beside = {name: nearest[name] for name in shown if name in nearest}
    report = ReportInput(
        metrics=metrics,
        info=info,
        config=config.key_fields(),
        recipe=RECIPE,
        samples=samples,
        snapshot=snapshot,
        split=split,
        histograms=(histogram_of(real, info.window), histogram_of(generated, info.window)),
        real=[
            (f"{name} ({_role_of(roles_of, name)})" if setting.trained_on_split else name, read_real(name))
            for name in shown_real
        ],
        generated=[(_caption(name, anatomy), read_generated(name)) for name in shown],
        nearest=[
            (f"nearest to {name}: {near['volume_id']}, {near['distance_hu']:.0f} HU away", read_real(near["volume_id"]))
            for name, near in beside.items()
        ],
        repeat_command=repeat_command,
    )
    pictures = write_pictures(report, directory / "figures")
    write_text_atomic(directory / "report.html", render(report, pictures))


def _measure(
    extractor: Extractor,
    setting: Setting,
    ids: Sequence[str],
    read: Callable[[str], Hu],
    cache: Path,
    roles: tuple[str, ...],
    *,
    batch_size: int,
    device: torch.device,
    done: Callable[[int], None],
) -> Side:
    """Features of the volumes of one side, and what every metric keeps of them, both from values saturated to the window."""
    window = setting.window
    with out_of_memory_explained(device, partial(evaluation_advice, batch_size=batch_size)):
        features = volume_features(
            extractor,
            ids,
            lambda name: window.to_model(torch.from_numpy(read(name))).unsqueeze(0),
            cache,
            batch_size=batch_size,
            device=device,
            done=done,
        )
    seen: dict[str, list[Any]] = {name: [] for name in METRICS.names()}
    for name in ids:
        hu = np.clip(read(name), window.lower_hu, window.upper_hu)
        for metric, kept in seen.items():
            kept.append(METRICS[metric].of_volume(hu, setting))
        done(1)
    return Side(tuple(ids), features, seen, roles)


def _report(
    compared: dict[str, Comparison],
    extractor: Extractor,
    config: EvaluateConfig,
    samples: Samples,
    info: CheckpointInfo,
    split: Split,
) -> Report:
    """What was measured, with the number of volumes behind it and which figures that number rules out.

    Raises: InputError: two metrics give a figure of the same name.
    """
    figures: dict[str, Figure] = {}
    for name, comparison in compared.items():
        if doubled := sorted(figures.keys() & comparison.figures.keys()):
            raise InputError(
                f"The metric {name!r} gives {', '.join(doubled)}, which another metric gives too. Rename them."
            )
        for figure, found in comparison.figures.items():
            if found.value is not None and not np.isfinite(found.value):
                raise InputError(
                    f"The metric {name!r} gives {figure} as {found.value}; expected a finite number, or None with a note that says "
                    "why there is none."
                )
        figures |= comparison.figures
    num_held_out, notes = len(split.role("val")), []
    if num_held_out < MIN_VOLUMES:
        notes.append(
            f"No held-out figures: the split holds out {num_held_out} volume(s), and a distance needs {MIN_VOLUMES}."
        )
    return Report(
        figures={name: FigureRecord(**figure.to_json()) for name, figure in figures.items()},
        warnings=[sentence for comparison in compared.values() for sentence in comparison.warnings],
        details={name: comparison.details for name, comparison in compared.items()},
        features=Features(
            network="MedicalNet 3D ResNet-50",
            weights=extractor.kind,
            seed=config.feature_seed if extractor.kind == "random" else None,
            digest=extractor.digest,
            statement=extractor.statement,
        ),
        protocol=PROTOCOL,
        volume_size=info.view.size,
        voxel_mm=info.voxel_mm,
        sampler=samples.sampler,
        clipped_fraction_mean=float(np.mean(samples.clipped_fraction)),
        outside_window_fraction_mean=float(np.mean(samples.outside_window_fraction)),
        notes=notes,
        n_real=len(split.volume_ids),
        n_held_out=num_held_out,
        n_generated=len(samples.volume_ids),
    )


def _role_of(split: Split, name: str) -> str:
    return "held out" if name in split.role("val") else "training"


def _caption(name: str, anatomy: dict[str, Any]) -> str:
    """A generated volume's name and, where anatomy is measured, whether it is inside the limits."""
    if anatomy["left_out"]:
        return name
    outside = ", ".join(LIMITS[figure].title for figure in anatomy["generated"][name]["failed"])
    return f"{name}: outside the limits of {outside}" if outside else f"{name}: inside all limits"


def _spread(first: Sequence[str], second: Sequence[str], count: int) -> list[str]:
    """`count` entries of two lists, half from each where both have enough."""
    from_first = min(len(first), max(count // 2, count - len(second)))
    return [*first[:from_first], *second[: count - from_first]]
