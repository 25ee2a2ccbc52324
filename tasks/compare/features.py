"""Features of the volumes that two runs were measured on, from where their evaluations left them, else computed again."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from storage.errors import StorageError, UserError
from storage.snapshots import open_snapshot
from storage.volume_store import VolumeStore
from tasks.compare.runs import Run
from tasks.evaluate.cache import FeatureCache, features_of_samples, features_of_store
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.features import extractor_of, features_key, volume_features
from tasks.evaluate.sides import Volumes
from tasks.model.checkpoint import load_info
from tasks.run.fanout import Pool

REAL, GENERATED = "real", "generated"
logger = logging.getLogger("prdit.compare")


def features_of(run: Run, side: str, names: Sequence[str]) -> NDArray[np.float32] | None:
    """Features of named volumes of one side, in their order; None where they are gone and cannot be computed again.

    Args:
        run: whose.
        side: `generated` or `real`.
        names: volume ids.
    """
    try:
        volumes = _volumes(run, side)
        folder = (
            features_of_store(volumes.store.path, run.ref.path)
            if side == REAL
            else features_of_samples(run.samples_ref.path, run.ref.path)
        )
        kept, digest = FeatureCache(folder, run.report.features.width), run.report.features.digest
        rows = [kept.load(name, features_key(volumes, name, digest)) for name in names]
        known = [row for row in rows if row is not None]
        if len(known) == len(rows):
            return np.stack(known)
        config = EvaluateConfig.model_validate({"extractor": run.provenance.config["extractor"]})
        if extractor_of(config).digest != digest:
            logger.warning("features of run %s cannot be computed again: its feature network is not here", run.name)
            return None
        logger.info("computing features of %d volumes of run %s again", len(rows) - len(known), run.name)
        with Pool(one_thread=False) as pool:
            return volume_features(volumes, names, config, folder, pool, lambda _: None)
    except (UserError, ValidationError, KeyError) as error:
        logger.warning("features of run %s cannot be had: %s", run.name, error)
        return None


def _volumes(run: Run, side: str) -> Volumes:
    """The volumes of a side, as its evaluation read them. Raises: StorageError, InputError."""
    checkpoints = [node.ref for node in run.nodes if node.ref.kind == "checkpoint"]
    if not checkpoints:
        raise StorageError(f"the record of the samples of run {run.name} names no checkpoint")
    info = load_info(checkpoints[0])
    if side == REAL:
        return Volumes(VolumeStore.open(open_snapshot(run.snapshot)[0].path), info.window, info.view)
    return Volumes(VolumeStore.open(run.samples_ref.path / run.samples.store), info.window, None)
