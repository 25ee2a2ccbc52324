"""WDM-3D in the training loop and the stage that samples: resume, ranks, pictures, volumes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.artifacts import Ref
from storage.checkpoints import load_tensors
from storage.errors import InputError
from tasks.run.launchers.config import LauncherConfig
from tasks.run.stage import StageRun
from tasks.sample.config import SampleConfig
from tasks.sample.run import sample
from tasks.train.__main__ import _commit
from tasks.train.check import check_training
from tasks.train.config import TrainingConfig
from tasks.train.launch import launch
from tasks.train.loop import Stopped, Training
from tasks.train.setup import assemble
from tests.factories import make_data, train_spec, trained

pytest.importorskip("ptwt")


def wdm_config(**changes: Any) -> TrainingConfig:
    """A training of seconds: 8³, one level of the U-Net."""
    values: dict[str, Any] = {
        "family": "wdm",
        "settings": {"base_width": 8, "groups": 4},
        "process": {"name": "ddpm", "prediction": "image", "variance": "large"},
        "view": {"size": 8, "edge": 16},
        "steps": 6,
        "batch_size": 2,
        "lr": 1e-3,
        "val_every": 3,
        "checkpoint_every": 2,
        "log_every": 1,
        "num_threads": 1,
        "device": "cpu",
    }
    return TrainingConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    return make_data(tmp_path_factory.mktemp("data"))


def test_a_resume_has_the_same_bits_and_the_checkpoint_is_sampled(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    config = wdm_config(sample_every=6)
    whole, parts = (train_spec(config, *data, tmp_path / name) for name in ("whole", "parts"))
    checkpoint = trained(whole)
    training = Training(assemble(parts), parts)
    with pytest.raises(Stopped):
        training.run(lambda: training.progress.step >= 3)
    Training(assemble(parts), parts).run(lambda: False)
    assert _commit(parts).digest == checkpoint.digest
    weights = load_tensors(checkpoint.path / "model.safetensors")
    assert np.any(weights["last.weight"])  # zero at first
    assert len(list(whole.directory.rglob("step-00000006.png"))) == 1

    drawing = SampleConfig(num_volumes=2, sampler="ancestral", num_steps=4, nifti=False, device="cpu", num_threads=1)
    sample(checkpoint, drawing, tmp_path / "samples", lambda done, total: None)
    samples = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert samples["sampler"]["evaluations"] == 4
    assert samples["sampler"]["process"]["variance"] == "large"
    assert samples["outside_window_fraction"] == [0.0, 0.0]  # clamped


def test_two_ranks_take_the_same_steps_as_one(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    config = wdm_config(steps=10, batch_size=4, val_every=5)
    alone = trained(train_spec(config, *data, tmp_path / "alone"))
    spec = train_spec(config, *data, tmp_path / "two")
    run = StageRun(spec.directory, None, "", {})
    together = launch(spec, run, lambda done, total: None, LauncherConfig(ranks_per_node=2))
    found, expected = (load_tensors(ref.path / "model.safetensors") for ref in (together, alone))
    for key in expected:  # only the order of sums differs
        np.testing.assert_allclose(found[key], expected[key], atol=2e-4, err_msg=key)


def test_what_does_not_fit_is_refused_before_anything_runs(data: tuple[Ref, Ref]) -> None:
    with pytest.raises(InputError, match=r"size is 18; .* Use a view.size of 16 or 20"):
        check_training(*data, None, wdm_config(view={"size": 18, "edge": 36}))
    with pytest.raises(InputError, match=r"Set process: \{name: ddpm, prediction: image"):
        check_training(*data, None, wdm_config(process="ddpm"))
