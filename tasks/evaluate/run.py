"""Evaluation: samples, store and split -> `metrics.json`, `report.html` and `figures/`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prdit_models.intensity import HounsfieldWindow
from storage.artifacts import SCRATCH, Ref, input_ref
from storage.files import read_json, write_json_atomic, write_text_atomic
from storage.volume_store import VolumeStore
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.features import Extractor, load_extractor, volume_features
from tasks.evaluate.measures import Figure, HistogramSum, distance_figures, hu_figures
from tasks.evaluate.report import ReportInput, render, write_pictures
from tasks.progress import Advance
from tasks.sample.checkpoint import CheckpointInfo, load_info
from tasks.sample.run import STORE_NAME
from tasks.train.data import read_as_seen
from tasks.train.setup import pick_device

__all__ = ["RECIPE", "check", "evaluate"]

RECIPE = 1
FORMAT_VERSION = 1
MIN_VOLUMES = 2
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

    total, finished = len(real_ids) + len(generated_ids), 0

    def done(count: int) -> None:
        nonlocal finished
        finished += count
        progress(finished, total)

    cache = directory / SCRATCH / "features" / extractor.digest.removeprefix("sha256:")[:16]
    measure = partial(_measure, extractor, info.window, batch_size=config.batch_size, device=device, done=done)
    real = measure(real_ids, read_real, cache / "real")
    generated = measure(generated_ids, read_generated, cache / "generated")
    held_out = [real_ids.index(name) for name in _role(split, "val")]
    figures = _figures(real, generated, held_out, extractor, config)
    metrics = _metrics(figures, extractor, config, record, info, len(real_ids), len(held_out))
    write_json_atomic(directory / "metrics.json", metrics)
    shown_real = _spread(_role(split, "val"), _role(split, "train"), config.num_shown)
    report = ReportInput(
        metrics=metrics,
        info=info,
        config=config.key_fields(),
        recipe=RECIPE,
        samples=samples,
        store=store,
        split=split,
        histograms=(real.histogram, generated.histogram),
        real=[(f"{name} ({_role_of(split, name)})", read_real(name)) for name in shown_real],
        generated=[(name, read_generated(name)) for name in generated_ids[: config.num_shown]],
        repeat_command=repeat_command,
    )
    pictures = write_pictures(report, directory / "figures")
    write_text_atomic(directory / "report.html", render(report, pictures))


@dataclass(frozen=True)
class Side:
    """What is measured of one side: features (n, 2048) in the order of its ids, and its HU histogram."""

    features: NDArray[np.float32]
    histogram: HistogramSum


def _measure(
    extractor: Extractor,
    window: HounsfieldWindow,
    ids: Sequence[str],
    read: Callable[[str], Hu],
    cache: Path,
    *,
    batch_size: int,
    device: torch.device,
    done: Callable[[int], None],
) -> Side:
    """Features and HU histogram of the volumes of one side; both see values saturated to the window."""
    features = volume_features(
        extractor,
        ids,
        lambda name: window.to_model(torch.from_numpy(read(name))).unsqueeze(0),
        cache,
        batch_size=batch_size,
        device=device,
        done=done,
    )
    histogram = HistogramSum(window)
    for name in ids:
        histogram.add(read(name))
    return Side(features, histogram)


def _figures(
    real: Side,
    generated: Side,
    held_out: list[int],
    extractor: Extractor,
    config: EvaluateConfig,
) -> dict[str, Figure]:
    options: dict[str, int] = {"num_bootstrap": config.num_bootstrap, "seed": config.bootstrap_seed}
    figures = distance_figures(real.features, generated.features, extractor.digest, **options)
    if len(held_out) >= MIN_VOLUMES:
        beside = distance_figures(real.features[held_out], generated.features, extractor.digest, **options)
        figures |= {f"{name}_val": figure for name, figure in beside.items()}
    return figures | hu_figures(real.histogram, generated.histogram)


def _metrics(
    figures: dict[str, Figure],
    extractor: Extractor,
    config: EvaluateConfig,
    record: dict[str, Any],
    info: CheckpointInfo,
    num_real: int,
    num_held_out: int,
) -> dict[str, Any]:
    """Content of `metrics.json`."""
    notes = []
    if num_held_out < MIN_VOLUMES:
        notes.append(
            f"No held-out figures: the split holds out {num_held_out} volume(s), and a distance needs {MIN_VOLUMES}."
        )
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
        "notes": notes,
        "n_real": num_real,
        "n_held_out": num_held_out,
        "n_generated": len(record["volume_ids"]),
        "volume_size": info.view.size,
        "voxel_mm": info.voxel_mm,
        "sampler": record["sampler"],
        "clipped_fraction_mean": float(np.mean(record["clipped_fraction"])),
        "outside_window_fraction_mean": float(np.mean(record["outside_window_fraction"])),
    }


def _role(split: Ref, role: str) -> list[str]:
    names: list[str] = read_json(split.path / "split.json")["roles"].get(role, [])
    return sorted(names)


def _real_ids(split: Ref) -> list[str]:
    return sorted({*_role(split, "train"), *_role(split, "val")})


def _role_of(split: Ref, name: str) -> str:
    return "held out" if name in _role(split, "val") else "training"


def _spread(first: Sequence[str], second: Sequence[str], count: int) -> list[str]:
    """Some of two lists, half from each where both have enough."""
    from_first = min(len(first), max(count // 2, count - len(second)))
    return [*first[:from_first], *second[: count - from_first]]
