"""Features of volumes, each computed once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prdit_models.metrics.extractors.extractor import Extractor
from prdit_models.metrics.order import BLUR_VOXELS, NOISE_HU
from storage.errors import InputError, MissingArtifactError, as_input_error
from storage.files import sha256_json
from tasks.evaluate.cache import FeatureCache
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.sides import Volumes
from tasks.model.compute import pick_device
from tasks.model.memory import evaluation_advice, out_of_memory_explained
from tasks.run.fanout import Pool

_RECIPE = 1  # of what a volume looks like, beside its bytes, view, window and degradation
_DEGRADED = {"blur_voxels": BLUR_VOXELS, "noise_hu": NOISE_HU}


def load_extractor(config: EvaluateConfig) -> Extractor:
    """The configured feature network.

    Raises:
        MissingArtifactError: a file of it is missing.
        InputError: a file has another digest or content than configured, or a package is not installed.
    """
    try:
        with as_input_error():
            loaded: Extractor = config.extractor.load()
    except FileNotFoundError as error:
        raise MissingArtifactError(str(error)) from error
    return loaded


def extractor_of(config: EvaluateConfig) -> Extractor:
    """`load_extractor`, once for all volumes that a process measures."""
    if config.extractor not in _extractors:
        _extractors.clear()
        _extractors[config.extractor] = load_extractor(config)
    return _extractors[config.extractor]


_extractors: dict[object, Extractor] = {}


def forget_extractor() -> None:
    """Give its memory back."""
    _extractors.clear()


def volume_features(
    volumes: Volumes,
    names: Sequence[str],
    config: EvaluateConfig,
    folder: Path,
    pool: Pool,
    done: Callable[[int], None],
) -> NDArray[np.float32]:
    """Features of named volumes, from the cache where it has them.

    On the CPU each is computed by itself, so they depend on nothing but the volume and the extractor. On a GPU, where volumes are
    computed together, the last bits may depend on which.

    Args:
        volumes: of one side.
        names: volume ids.
        config: how to measure.
        folder: of the cache.
        pool: where they are computed.
        done: called with the number of volumes just finished.
    Returns: shape (n, width), in the order of `names`.
    Raises:
        InputError: a volume has voxels that are not finite, or the network does not fit the volumes.
        OutOfMemoryError: so many do not fit.
    """
    extractor = extractor_of(config)
    cache = FeatureCache(folder.resolve(), extractor.width)
    keys = {name: features_key(volumes, name, extractor.digest) for name in names}
    found = {name: row for name, key in keys.items() if (row := cache.load(name, key)) is not None}
    missing = [name for name in keys if name not in found]
    done(len(names) - len(missing))
    chunks = [tuple(missing[start : start + config.batch_size]) for start in range(0, len(missing), config.batch_size)]
    compute = partial(chunk_features, volumes, config, cache)
    for chunk, rows in pool.each(compute, chunks, lambda chunk: f"the features of {', '.join(chunk)}"):
        found |= dict(zip(chunk, rows, strict=True))
        done(len(chunk))
    return np.stack([found[name] for name in names])


def features_key(volumes: Volumes, name: str, extractor: str) -> str:
    """Hash of all that decides a volume's features: its bytes, how it is seen, and the extractor's digest."""
    record = volumes.store.commit_record(name)
    seen = {
        "recipe": _RECIPE,
        "volume": {level: array.sha256 for level, array in record.arrays.items()},
        "view": volumes.view.model_dump(mode="json") if volumes.view else None,
        "window": asdict(volumes.window),
        "how": {"name": volumes.how, "id": name, **_DEGRADED}
        if volumes.how != "real"
        else None,  # the id seeds the noise
        "extractor": extractor,
    }
    return sha256_json(seen)


def chunk_features(
    volumes: Volumes, config: EvaluateConfig, cache: FeatureCache, names: Sequence[str]
) -> NDArray[np.float32]:
    """Compute features of some volumes and put them into the cache, in this process or in a worker's.

    Args: as for `volume_features`.
    Returns: shape (b, width).
    Raises: as `volume_features`.
    """
    device = pick_device(config)
    extractor = extractor_of(config)
    together = 1 if device.type == "cpu" else len(names)
    resized = extractor.input_size is not None
    with out_of_memory_explained(device, partial(evaluation_advice, batch_size=together, resized=resized)):
        extractor.to(device)
        starts = range(0, len(names), together)
        parts = [_features(extractor, volumes, names[k : k + together], device) for k in starts]
    features = np.concatenate(parts)
    for name, row in zip(names, features, strict=True):
        cache.save(name, features_key(volumes, name, extractor.digest), row)
    return features


def _features(
    extractor: Extractor, volumes: Volumes, names: Sequence[str], device: torch.device
) -> NDArray[np.float32]:
    hu = torch.from_numpy(np.stack(list(_finite(volumes, names)))).to(device)
    with as_input_error():
        rows: NDArray[np.float32] = extractor.features(hu, volumes.window).cpu().numpy()
    if bad := [name for name, row in zip(names, rows, strict=True) if not np.isfinite(row).all()]:
        raise InputError(
            f"The features of volume {bad[0]} of {volumes.store.path} are not finite, its voxels are: the feature network "
            f"{extractor.title} overflows. Check its weights, or choose another (evaluate.extractor)."
        )
    return rows


def _finite(volumes: Volumes, names: Sequence[str]) -> Iterator[NDArray[np.float32]]:
    for name in names:
        hu = volumes.saturated(name)
        if not np.isfinite(hu).all():
            raise InputError(
                f"Volume {name} of {volumes.store.path} has {np.count_nonzero(~np.isfinite(hu))} of {hu.size} voxels that are not "
                "finite; no distance to it exists. Leave it out of the set, or make it again."
            )
        yield hu.astype(np.float32)
