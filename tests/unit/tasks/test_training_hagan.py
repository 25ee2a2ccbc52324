"""HA-GAN in the real training loop: resume, ranks, which axis slabs are cut along, sampling of its checkpoint, refusals."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prdit_models.families.hagan import FAMILY
from storage.artifacts import SCRATCH, Ref
from storage.checkpoints import ResumeStates, load_tensors
from storage.documents.samples import Samples
from storage.errors import InputError
from storage.geometry import Volume
from storage.volume_store import VolumeStore
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
from tasks.train.spec import RESUME_STATES, TrainSpec
from tests.factories import in_the_ranks, list_volumes, make_split, make_store, train_spec

SHORT: dict[str, Any] = {
    "family": "hagan",
    "settings": {"width_divisor": 16, "critic_lr": 4e-3, "encoder_lr": 1e-3},
    "view": {"size": 32, "edge": 32},
    "steps": 4,
    "batch_size": 2,
    "lr": 1e-3,
    "clip_norm": 1e9,
    "val_every": 2,
    "checkpoint_every": 2,
    "log_every": 1,
    "num_threads": 1,
    "device": "cpu",
}


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({**SHORT, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    root = tmp_path_factory.mktemp("data")
    snapshot = make_store(root / "store", edge=32, spacing_mm=8.0)
    return snapshot, make_split(root / "split", snapshot, ["v0", "v1"], ["v2"])


@pytest.fixture(scope="module")
def whole(data: tuple[Ref, Ref], tmp_path_factory: pytest.TempPathFactory) -> Ref:
    spec = train_spec(config(), *data, tmp_path_factory.mktemp("whole"))
    Training(assemble(spec), spec).run(lambda: False)
    return _commit(spec)


def test_a_resume_has_the_same_bits_in_weights_vectors_and_curves(
    data: tuple[Ref, Ref], whole: Ref, tmp_path: Path
) -> None:
    spec = train_spec(config(), *data, tmp_path / "parts")
    training = Training(assemble(spec), spec)
    with pytest.raises(Stopped):
        training.run(lambda: training.progress.step >= 2)
    Training(assemble(spec), spec).run(lambda: False)
    one, other = (load_tensors(folder / "model.safetensors") for folder in (whole.path, spec.directory))
    assert any(name.endswith(".left") for name in one)
    for name in one:
        np.testing.assert_array_equal(other[name], one[name], err_msg=name)
    assert _commit(spec).digest == whole.digest  # averages and points too


def test_every_optimiser_steps_and_vectors_move(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    spec = train_spec(config(), *data, tmp_path / "run")
    training = Training(assemble(spec), spec)
    before = {name: value.detach().clone() for name, value in training.assembly.module.state_dict().items()}
    values = training.train_step()
    after = training.assembly.module.state_dict()
    still = {name for name, value in before.items() if torch.equal(value, after[name])}
    # A layer with one output has a left vector of one number, which is 1; all else moves.
    assert {name for name in still if name.endswith(("weight", "original", "left"))} == {
        f"critic.{layer}.parametrizations.weight.0.left" for layer in ("of_low.2", "head.2")
    }
    expected = {"loss", "loss_real", "loss_generated", "grad_norm"}
    expected |= {f"{turn}_{name}" for turn in FAMILY.turns[1:] for name in ("loss", "grad_norm")}
    assert set(values) == expected
    assert values["loss"] == pytest.approx(values["loss_real"] + values["loss_generated"])


SAME_VECTORS = """
    import torch
    from tasks.train.loop import Training

    save = Training.save

    def checked(self):
        vectors = {name: value for name, value in self.arrays.buffers.items() if name.endswith(".left")}
        assert len(vectors) == 8
        self.ranks.check_equal(vectors, "before they are shared")
        with open(os.path.join(MARK, f"{self.ranks.rank}-{self.progress.step}"), "w") as file:
            file.write(str(self.ranks.world))
        save(self)

    Training.save = checked
"""


def gradients(spec: TrainSpec) -> dict[str, np.ndarray]:
    """Sizes of the gradients of the first step, by turn and parameter, from Adam's second moments: 0.001 g² then."""
    found = ResumeStates(spec.directory / SCRATCH / RESUME_STATES).newest_good(lambda position: position.step == 1)
    assert found is not None
    moments = found[1]["optimizer"]
    return {key: np.sqrt(value / 1e-3) for key, value in moments.items() if ":exp_avg_sq:" in key}


def test_two_ranks_step_like_one_and_have_the_same_vectors(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are compared, not weights: a first step of Adam has the size of its rate wherever a gradient is only rounding."""
    one, two = (train_spec(config(steps=1), *data, tmp_path / name) for name in ("one", "two"))
    Training(assemble(one), one).run(lambda: False)
    marks = tmp_path / "marks"
    marks.mkdir()
    in_the_ranks(SAME_VECTORS.replace("MARK", repr(os.fspath(marks))), tmp_path, monkeypatch)
    launch(two, StageRun(two.directory, None, "", {}), lambda done, total: None, LauncherConfig(ranks_per_node=2))
    assert {path.name: path.read_text() for path in marks.iterdir()} == {"0-1": "2", "1-1": "2"}
    expected, found = gradients(one), gradients(two)
    assert {key.split(":")[0] for key in expected} == set(FAMILY.turns)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=2e-6 + 1e-3 * float(value.max()), err_msg=key)
        assert value.max() > 1e-4 or ".bias" in key  # a bias before a norm of its channel alone has no gradient


def test_a_training_without_encoders_draws_volumes_from_its_checkpoint(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    settings = {**SHORT["settings"], "encoders": False}
    spec = train_spec(config(settings=settings, steps=2, ema_decay=0.0), *data, tmp_path / "run")
    training = Training(assemble(spec), spec)
    training.run(lambda: False)
    checkpoint = _commit(spec)
    assert not [name for name in load_tensors(spec.directory / "model.safetensors") if "encoder" in name]
    wanted = SampleConfig(num_volumes=3, seed=5, nifti=False, device="cpu")
    sample(checkpoint, wanted, tmp_path / "samples", lambda done, total: None)
    found = Samples.load(tmp_path / "samples")
    assert (found.sampler.evaluations, found.sampler.process, len(found.volume_ids)) == (1, None, 3)
    store = VolumeStore.open(tmp_path / "samples" / found.store)
    codes = torch.stack([torch.randn(64, generator=torch.Generator().manual_seed(seed)) for seed in found.seeds])
    with torch.no_grad():
        volumes = training.assembly.module.eval()(codes)[:, 0].numpy()
    for name, volume in zip(found.volume_ids, volumes, strict=True):
        expected = training.assembly.info.window.to_hu(volume)
        np.testing.assert_allclose(store.read_level(name).hu, expected, atol=0.51)


def test_slabs_are_cut_along_the_axial_axis_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes whose HU say the slice: the critic is shown those of its slab, and told where it starts."""
    store = VolumeStore.create(tmp_path / "store", spacing_mm=8.0, num_levels=1, interpolation="linear")
    slices = np.broadcast_to(20 * np.arange(32, dtype=np.int16)[:, None, None], (32, 32, 32))  # (z, y, x)
    for name in ("v0", "v1", "v2"):
        store.write(Volume(slices.copy(), (8.0,) * 3, (0.0,) * 3), volume_id=name, attributes={})
    snapshot = list_volumes(store, {"v0": "p0", "v1": "p1", "v2": "p2"})
    spec = train_spec(
        config(), snapshot, make_split(tmp_path / "split", snapshot, ["v0", "v1"], ["v2"]), tmp_path / "run"
    )
    training = Training(assemble(spec), spec)
    shown = []
    module: Any = training.assembly.module
    handle = module.critic.register_forward_pre_hook(lambda _, inputs: shown.append(inputs))
    training.train_step()
    handle.remove()
    slab, low, start = shown[0]  # the real volumes of the critic's turn
    to_hu = training.assembly.info.window.to_hu
    for row in range(2):
        first = int(start[row])
        expected = 20.0 * np.arange(first, first + 4)[:, None, None]
        np.testing.assert_allclose(to_hu(slab[row, 0].numpy()), np.broadcast_to(expected, (4, 32, 32)), atol=0.1)
    np.testing.assert_allclose(to_hu(low[0, 0, :, 3, 5].numpy()), 80.0 * np.arange(8), atol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"view": {"size": 16, "edge": 32}}, "edge of 16 voxels; HA-GAN has layers for 32, 64, 128, 256"),
        ({"process": "cosine"}, "process 'cosine' does not fit family 'hagan', which works with: none"),
        ({"start": "local"}, "family 'hagan' is trained from scratch"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_runs(
    data: tuple[Ref, Ref], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((InputError, ValueError), match=message):
        check_training(*data, None, config(**changes))
