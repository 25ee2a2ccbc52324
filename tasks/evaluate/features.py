"""Volumes of both sides in model range, and their MedicalNet features, cached per volume."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prdit_models.metrics.medicalnet import MedicalNet, load_medicalnet, random_medicalnet, weights_digest
from storage.checkpoints import load_tensors, save_tensors
from storage.errors import MissingArtifactError, StorageError, as_input_error
from tasks.evaluate.config import EvaluateConfig

RANDOM_STATEMENT = (
    "the feature network has seeded random weights, so FID and MMD compare runs with each other only, not with papers."
)


@dataclass(frozen=True)
class Extractor:
    """The feature network and the statement that goes with its numbers wherever they appear.

    Attributes:
        network: MedicalNet ResNet-50.
        kind: `random` or `medicalnet`.
        digest: `sha256:<hex>` of its weights.
        statement: one sentence for report and metrics.
    """

    network: MedicalNet
    kind: str
    digest: str
    statement: str


def load_extractor(config: EvaluateConfig) -> Extractor:
    """The configured feature network.

    Raises:
        MissingArtifactError: no file at `feature_weights`.
        InputError: the file has another SHA-256 than configured, or holds other weights.
    """
    if config.feature_weights is None or config.feature_weights_sha256 is None:
        network = random_medicalnet(config.feature_seed)
        return Extractor(network, "random", weights_digest(network), RANDOM_STATEMENT)
    path = Path(config.feature_weights)
    if not path.is_file():
        raise MissingArtifactError(
            f"evaluate.feature_weights is {path}, and there is no such file. Correct the path, or leave it and its SHA-256 "
            "out to use seeded random features."
        )
    with as_input_error():
        network = load_medicalnet(path, config.feature_weights_sha256)
    statement = f"ResNet-50 weights from {path.name}, the file's SHA-256 checked."
    return Extractor(network, "medicalnet", weights_digest(network), statement)


def volume_features(
    extractor: Extractor,
    names: Sequence[str],
    read: Callable[[str], torch.Tensor],
    cache: Path,
    *,
    batch_size: int,
    device: torch.device,
    done: Callable[[int], None],
) -> NDArray[np.float32]:
    """Features of named volumes, from the cache where it has them.

    Args:
        extractor: feature network.
        names: volume ids, the cache's file names.
        read: volume id -> model range [-1, 1], shape (1, D, H, W).
        cache: folder of this side and extractor.
        batch_size: volumes in memory together.
        device: where the network runs.
        done: called with the number of volumes just finished.
    Returns: shape (n, 2048), in the order of `names`.
    """
    found = {name: _cached(cache / f"{name}.safetensors") for name in names}
    missing = [name for name in names if found[name] is None]
    done(len(names) - len(missing))
    network = extractor.network.to(device)
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        with torch.no_grad():
            features = network(torch.stack([read(name) for name in batch]).to(device)).cpu().numpy()
        for name, row in zip(batch, features, strict=True):
            save_tensors(cache / f"{name}.safetensors", {"features": row})
            found[name] = row
        done(len(batch))
    return np.stack([row for row in (found[name] for name in names) if row is not None])


def _cached(path: Path) -> NDArray[np.float32] | None:
    try:
        row: NDArray[np.float32] = load_tensors(path)["features"]
    except (StorageError, KeyError):
        return None  # not made yet, or damaged: computed (again)
    return row
