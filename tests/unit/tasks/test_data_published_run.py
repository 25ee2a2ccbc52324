"""A published mapping through all stages: recorded by training, inherited, sampled in nominal HU, evaluated like with like."""

from pathlib import Path

import numpy as np
import pytest
import torch

from storage.artifacts import commit_artifact
from storage.files import read_json
from storage.volume_store import VolumeStore
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.run import evaluate
from tasks.sample.config import SampleConfig
from tasks.sample.run import sample
from tasks.train.__main__ import _commit
from tasks.train.loop import Training
from tasks.train.setup import assemble
from tests.factories import global_config, local_config, make_split, make_store, train_spec


def silent(done: int, total: int) -> None:
    pass


@pytest.mark.parametrize(("mapping", "lower"), [("published-lidc", -1.0), ("published-rad", 0.0)])
def test_from_training_to_report(mapping: str, lower: float, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", edge=32)
    split = make_split(tmp_path / "split", store, ["v0", "v1"], ["v2"])
    intensity = {"mapping": mapping, "upper_hu": 1200.0}
    view = {"size": 16, "edge": 32}
    changes = {"steps": 2, "val_every": 2, "view": view}
    below = None
    for config in (
        local_config(**changes, intensity=intensity),
        global_config(steps=2, val_every=2),
    ):
        spec = train_spec(config, store, split, tmp_path / config.family, below)
        training = Training(assemble(spec), spec)
        training.run(lambda: False)
        below = _commit(spec)
        recorded = read_json(below.path / "checkpoint.json")["intensity"]
        assert recorded["mapping"] == mapping
        assert (recorded["model_lower"], recorded["model_upper"], recorded["upper_hu"]) == (lower, 1.0, 1200.0)
        seen = training.assembly.data.batch([0, 1])
        assert float(seen.min()) == lower
        assert lower < float(seen.mean()) < 1.0
    assert below is not None

    config_ = SampleConfig(num_volumes=2, num_steps=2, num_threads=1, device="cpu", nifti=False)
    samples = tmp_path / "samples"
    sample(below, config_, samples, silent)
    drawn = commit_artifact(samples, "samples", stage="sample", recipe=1, inputs={"checkpoint": below}, config={})
    record = read_json(samples / "samples.json")
    assert record["intensity"]["mapping"] == mapping
    evaluate(
        drawn,
        store,
        split,
        EvaluateConfig(extractor="random", num_threads=1, device="cpu", num_subsamples=0),
        tmp_path / "report",
        silent,
    )
    figures = read_json(tmp_path / "report" / "metrics.json")["figures"]
    # the real side as the model saw it, in nominal HU: x = lower is -1000, x = 1 is 1200
    views = [unit_view(VolumeStore.open(store.path).read_view(f"v{k}", 32, 32), mapping) for k in range(3)]
    expected = np.stack(views) * 2200.0 - 1000.0
    assert figures["hu_std_real"]["value"] == pytest.approx(expected.std(), rel=1e-4)


def unit_view(hu: np.ndarray, mapping: str) -> np.ndarray:
    """The published mapping to [0, 1], by hand, 32³ to 16³."""
    hu = hu.astype(np.float64)
    if mapping == "published-lidc":
        hu = np.maximum(hu, -1000)
        hu = np.minimum(hu, np.quantile(hu, 0.999))
        return ((hu - hu.min()) / (hu.max() - hu.min())).reshape(16, 2, 16, 2, 16, 2).mean(axis=(1, 3, 5))
    hu = np.clip(hu, -1000, 1200)
    wide = torch.from_numpy(hu)[None, None]
    hu = torch.nn.functional.interpolate(wide, size=(16,) * 3, mode="trilinear", align_corners=True)[0, 0].numpy()
    hu = np.minimum(hu, np.quantile(hu, 0.995))
    return (hu - hu.min()) / (hu.max() - hu.min())
