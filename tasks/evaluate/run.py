"""Evaluation: samples, store and split -> `metrics.json`, `report.html` and `figures/`."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prdit_models.metrics.anatomy import LIMITS
from storage.artifacts import SCRATCH, Ref, input_ref, load_provenance
from storage.files import read_json, write_json_atomic, write_text_atomic
from storage.volume_store import VolumeStore
from tasks.evaluate.anatomy import (
    Anatomy,
    anatomy_figures,
    copies_warning,
    nearest_figures,
    nearest_training,
    spread_figures,
    why_left_out,
)
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.features import Extractor, load_extractor, volume_features
from tasks.evaluate.measures import RANDOM_SUFFIX, Figure, HistogramSum, distance_figures, hu_figures
from tasks.evaluate.report import ReportInput, render, write_pictures
from tasks.model.checkpoint import CheckpointInfo, load_info
from tasks.model.compute import pick_device
from tasks.model.view import read_as_seen
from tasks.run.progress import Advance
from tasks.sample.run import STORE_NAME

__all__ = ["RECIPE", "check", "evaluate"]

RECIPE = 2
FORMAT_VERSION = 2
MIN_VOLUMES = 2
logger = logging.getLogger("prdit.evaluate")
Hu = NDArray[np.float32]
PROTOCOL = (
    "Real side: every volume of the split, training and validation together (the published protocol); figures ending in "
    "_val use held-out volumes only. Both sides are saturated to the checkpoint's Hounsfield window and mapped to the model's "
    "range."
)


def check(samples: Ref, store: Ref, split: Ref) -> None:
    """Refuse what cannot be compared, before any work.

    Raises:
        ValueError: fewer than two volumes on a side, a split of other volumes than the store's, or another kind of artifact.
        StorageError: an artifact is not there.
    """
    for ref, kind in ((samples, "samples"), (store, "store"), (split, "split")):
        if ref.kind != kind:
            raise ValueError(f"evaluate expected a reference of kind {kind!r}, got {ref.kind!r} at {ref.uri}.")
    num_generated = len(read_json(samples.path / "samples.json")["volume_ids"])
    if num_generated < MIN_VOLUMES:
        raise ValueError(
            f"The samples at {samples.uri} hold {num_generated} volume; a distance between sets needs at least "
            f"{MIN_VOLUMES}. Sample more (sample.num_volumes)."
        )
    real = _real_ids(split)
    if len(real) < MIN_VOLUMES:
        raise ValueError(
            f"The split at {split.uri} names {len(real)} real volume; a distance between sets needs at least "
            f"{MIN_VOLUMES}. Ingest more scans."
        )
    missing = sorted(set(real) - set(VolumeStore.open(store.path).volume_ids()))
    if missing:
        raise ValueError(
            f"The split at {split.uri} names {len(missing)} volumes that the store at {store.uri} does not have (first: "
            f"{missing[0]}). Split this store again."
        )


def evaluate(
    samples: Ref,
    store: Ref,
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
        store: volume store with the real volumes.
        split: roles of them.
        config: how to measure.
        directory: of the artifact.
        progress: called with (volumes read and measured, of all).
        repeat_command: the command that repeats the run, for the report.
    Raises:
        ValueError: fewer than two volumes on a side, or unusable feature weights.
        StorageError: an artifact is missing or damaged.
    """
    check(samples, store, split)
    device = pick_device(config)
    extractor = load_extractor(config)
    info = load_info(input_ref(samples, "checkpoint"))
    record = read_json(samples.path / "samples.json")
    real_ids, generated_ids = _real_ids(split), list(record["volume_ids"])
    opened = VolumeStore.open(store.path)
    if abs(opened.spacing_mm - info.spacing_mm) > 1e-6:
        raise ValueError(
            f"The store at {store.uri} has {opened.spacing_mm} mm voxels, the checkpoint was trained at {info.spacing_mm} mm: "
            "its view would show another size of body. Evaluate on a store of that spacing."
        )
    generated_store = VolumeStore.open(samples.path / STORE_NAME)
    view = info.view

    def read_real(name: str) -> Hu:
        if info.window.follows_scan:  # HU of the samples are nominal, and so must these be
            return info.window.to_hu(read_as_seen(opened, name, view, info.window).numpy())
        return opened.read_view(name, view.size, view.edge, view.centre)

    def read_generated(name: str) -> Hu:
        return generated_store.read_level(name).hu.astype(np.float32)

    total, finished = 2 * (len(real_ids) + len(generated_ids)), 0  # features, then what is seen in Hounsfield units

    def done(count: int) -> None:
        nonlocal finished
        finished += count
        progress(finished, total)

    cache = directory / SCRATCH / "features" / extractor.digest.removeprefix("sha256:")[:16]
    measure = partial(_measure, extractor, info, batch_size=config.batch_size, device=device, done=done)
    real = measure(real_ids, read_real, cache / "real")
    generated = measure(generated_ids, read_generated, cache / "generated")
    checkpoint = load_provenance(input_ref(samples, "checkpoint"))
    trained_on_split = checkpoint["inputs"].get("split", {}).get("digest") == split.digest
    figures, anatomy = _anatomy(real, generated, split, info.voxel_mm * view.size, trained_on_split=trained_on_split)
    figures |= _distances(real, generated, _role(split, "val"), extractor, config)
    figures |= hu_figures(real.histogram, generated.histogram)
    metrics = _metrics(figures, extractor, config, record, info)
    metrics |= {"anatomy": anatomy} | _sizes(split, generated_ids)
    write_json_atomic(directory / "metrics.json", metrics)
    for sentence in filter(None, (anatomy["left_out"], anatomy["copies"])):
        logger.warning("%s", sentence)
    shown_real = _spread(_role(split, "val"), _role(split, "train"), config.num_shown)
    shown = generated_ids[: config.num_shown]
    beside = {name: anatomy["nearest_training"][name] for name in shown if name in anatomy["nearest_training"]}
    report = ReportInput(
        metrics=metrics,
        info=info,
        config=config.key_fields(),
        recipe=RECIPE,
        samples=samples,
        store=store,
        split=split,
        histograms=(real.histogram, generated.histogram),
        real=[
            (f"{name} ({_role_of(split, name)})" if trained_on_split else name, read_real(name)) for name in shown_real
        ],
        generated=[(_caption(name, generated.anatomy[name], anatomy), read_generated(name)) for name in shown],
        nearest=[
            (f"nearest to {name}: {near['volume_id']}, {near['distance_hu']:.0f} HU away", read_real(near["volume_id"]))
            for name, near in beside.items()
        ],
        repeat_command=repeat_command,
    )
    pictures = write_pictures(report, directory / "figures")
    write_text_atomic(directory / "report.html", render(report, pictures))


@dataclass(frozen=True)
class Side:
    """What is measured of one side: features (n, 2048) in the order of its ids, its HU histogram, anatomy by id."""

    features: NDArray[np.float32]
    histogram: HistogramSum
    anatomy: dict[str, Anatomy]


def _measure(
    extractor: Extractor,
    info: CheckpointInfo,
    ids: Sequence[str],
    read: Callable[[str], Hu],
    cache: Path,
    *,
    batch_size: int,
    device: torch.device,
    done: Callable[[int], None],
) -> Side:
    """Features, HU histogram and anatomy of the volumes of one side, all of them saturated to the window."""
    window = info.window
    features = volume_features(
        extractor,
        ids,
        lambda name: window.to_model(torch.from_numpy(read(name))).unsqueeze(0),
        cache,
        batch_size=batch_size,
        device=device,
        done=done,
    )
    histogram, anatomy = HistogramSum(window), {}
    for name in ids:
        hu = np.clip(read(name), window.lower_hu, window.upper_hu)
        histogram.add(hu)
        anatomy[name] = Anatomy.of(hu, info.voxel_mm)
        done(1)
    return Side(features, histogram, anatomy)


def _anatomy(
    real: Side, generated: Side, split: Ref, box_mm: float, *, trained_on_split: bool
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Figures of anatomy, of nearest training volumes where the real side has them, and what stands behind them by volume."""
    sides = {"real": list(real.anatomy.values()), "generated": list(generated.anatomy.values())}
    left_out = why_left_out(sides["real"])
    section: dict[str, Any] = {"left_out": left_out, "copies": "", "nearest_training": {}}
    figures = {} if left_out else anatomy_figures(**sides)
    if trained_on_split:
        training = {name: real.anatomy[name] for name in _role(split, "train")}
        held_out = [real.anatomy[name] for name in _role(split, "val")]
        near = nearest_training(sides["generated"], training, box_mm)
        figures |= nearest_figures(near, nearest_training(held_out, training, box_mm), len(training))
        section["copies"] = copies_warning(figures)
        section["nearest_training"] = {name: asdict(found) for name, found in zip(generated.anatomy, near, strict=True)}
    figures |= spread_figures(**sides)
    if not left_out:
        section["limits"] = {name: asdict(limit) for name, limit in LIMITS.items()}
        section |= {
            side: {name: {"figures": seen.figures, "failed": seen.failed} for name, seen in volumes.items()}
            for side, volumes in (("real", real.anatomy), ("generated", generated.anatomy))
        }
    return figures, section


def _distances(
    real: Side, generated: Side, val_ids: list[str], extractor: Extractor, config: EvaluateConfig
) -> dict[str, Figure]:
    """FID and MMD, held-out volumes by themselves too where there are enough; on random features their names say so."""
    options: dict[str, int] = {"num_bootstrap": config.num_bootstrap, "seed": config.bootstrap_seed}
    figures = distance_figures(real.features, generated.features, extractor.digest, **options)
    held_out = [list(real.anatomy).index(name) for name in val_ids]
    if len(held_out) >= MIN_VOLUMES:
        beside = distance_figures(real.features[held_out], generated.features, extractor.digest, **options)
        figures |= {f"{name}_val": figure for name, figure in beside.items()}
    suffix = RANDOM_SUFFIX if extractor.kind == "random" else ""
    return {name + suffix: figure for name, figure in figures.items()}


def _metrics(
    figures: dict[str, Figure],
    extractor: Extractor,
    config: EvaluateConfig,
    record: dict[str, Any],
    info: CheckpointInfo,
) -> dict[str, Any]:
    """Content of `metrics.json`, but for what `_anatomy` and `_sizes` add."""
    return {
        "format_version": FORMAT_VERSION,
        "figures": {name: figure.to_json() for name, figure in figures.items()},
        "features": {
            "network": "MedicalNet 3D ResNet-50",
            "weights": extractor.kind,
            "seed": config.feature_seed if extractor.kind == "random" else None,
            "digest": extractor.digest,
            "statement": extractor.statement,
        },
        "protocol": PROTOCOL,
        "volume_size": info.view.size,
        "voxel_mm": info.voxel_mm,
        "sampler": record["sampler"],
        "clipped_fraction_mean": float(np.mean(record["clipped_fraction"])),
        "outside_window_fraction_mean": float(np.mean(record["outside_window_fraction"])),
    }


def _sizes(split: Ref, generated_ids: list[str]) -> dict[str, Any]:
    """How many volumes stand behind the figures, and what their number rules out."""
    num_held_out, notes = len(_role(split, "val")), []
    if num_held_out < MIN_VOLUMES:
        notes.append(
            f"No held-out figures: the split holds out {num_held_out} volume(s), and a distance needs {MIN_VOLUMES}."
        )
    return {
        "notes": notes,
        "n_real": len(_real_ids(split)),
        "n_held_out": num_held_out,
        "n_generated": len(generated_ids),
    }


def _role(split: Ref, role: str) -> list[str]:
    names: list[str] = read_json(split.path / "split.json")["roles"].get(role, [])
    return sorted(names)


def _real_ids(split: Ref) -> list[str]:
    return sorted({*_role(split, "train"), *_role(split, "val")})


def _role_of(split: Ref, name: str) -> str:
    return "held out" if name in _role(split, "val") else "training"


def _caption(name: str, seen: Anatomy, section: dict[str, Any]) -> str:
    """A generated volume's name and, where anatomy is judged, how it fares."""
    if section["left_out"]:
        return name
    outside = ", ".join(LIMITS[figure].title for figure in seen.failed)
    return f"{name}: outside the limits of {outside}" if outside else f"{name}: inside all limits"


def _spread(first: Sequence[str], second: Sequence[str], count: int) -> list[str]:
    """Some of two lists, half from each where both have enough."""
    from_first = min(len(first), max(count // 2, count - len(second)))
    return [*first[:from_first], *second[: count - from_first]]
