"""Options of the trainings: what they put into the checkpoint and into the gradient; labels; the refiner's own loop."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prdit_models.conditions import Conditions
from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.networks.cascade import CascadeParts
from prdit_models.networks.config import network_config
from prdit_models.networks.prdit import PRDiT
from storage.artifacts import Ref
from storage.checkpoints import load_tensors
from storage.errors import InputError
from storage.snapshots import load_snapshot
from storage.volume_store import VolumeStore
from tasks.model.checkpoint import load_info, load_model
from tasks.sample.config import SampleConfig
from tasks.sample.run import sample
from tasks.train.__main__ import _commit
from tasks.train.config import TrainingConfig
from tasks.train.labels import label_values, labels_of
from tasks.train.loop import Stopped, Training
from tasks.train.setup import assemble
from tests import factories
from tests.factories import list_volumes, make_data, make_split, make_store, train_spec

FEW = {"steps": 2, "val_every": 2, "checkpoint_every": 100}
local_config, global_config, refiner_config = (
    partial(of_family, **FEW)
    for of_family in (factories.local_config, factories.global_config, factories.refiner_config)
)
VIEW_8 = {"size": 8, "edge": 16}
CPU = torch.device("cpu")
Train = Callable[..., Ref]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    return make_data(tmp_path_factory.mktemp("data"), num_volumes=4)


@pytest.fixture(scope="module")
def train(data: tuple[Ref, Ref], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Run a training to its end and commit it."""

    def run(config: TrainingConfig, below: Ref | None = None) -> Ref:
        spec = train_spec(config, *data, tmp_path_factory.mktemp("stage"), start=below)
        Training(assemble(spec), spec).run(lambda: False)
        return _commit(spec)

    return run


def started(config: TrainingConfig, data: tuple[Ref, Ref], directory: Path, below: Ref | None = None) -> Training:
    spec = train_spec(config, *data, directory, start=below)
    return Training(assemble(spec), spec)


@pytest.fixture(scope="module")
def stage_1(train: Train) -> Ref:
    return train(local_config(view=VIEW_8, norm="rms"))


@pytest.fixture(scope="module")
def stage_2(train: Train, stage_1: Ref) -> Ref:
    return train(global_config(), stage_1)


@pytest.fixture(scope="module")
def refined(train: Train, stage_2: Ref) -> Ref:
    return train(refiner_config(), stage_2)


@pytest.fixture(scope="module")
def finest(train: Train) -> Ref:
    """A model of the finest level of the store, with options of its networks."""
    local = train(local_config(norm="rms", process={"name": "cosine", "prediction": "image"}))
    return train(global_config(qk_norm=True, position="rotary"), local)


def test_network_options_of_stage_1_carry_on(finest: Ref) -> None:
    info = load_info(finest)
    assert isinstance(info.process, CosineProcess)
    assert info.process.prediction == "image"
    wanted = {"norm": "rms", "out_channels": 1, "qk_norm": True, "position": "rotary", "voxel_mm": 8.0, "depth": 1}
    assert {key: info.model[key] for key in wanted} == wanted


def test_tf_arithmetic_is_recorded(train: Train) -> None:
    info = load_info(train(local_config(arithmetic="tf", process={"noise_std": 1.0})))
    assert (info.model["arithmetic"], info.process) == ("tf", CosineProcess(noise_std=1.0))


def test_size_l_trains_with_rotary_positions_only(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    spec = train_spec(local_config(preset="L/10/0", steps=1), *data, tmp_path / "local")
    Training(assemble(spec), spec).run(lambda: False)
    local = _commit(spec)
    with pytest.raises(ValueError, match=r'1024.*position="rotary"'):
        started(global_config(preset="L/10/1"), data, tmp_path / "table", local)
    model = started(global_config(preset="L/10/1", position="rotary"), data, tmp_path / "rotary", local).assembly.module
    assert isinstance(model, PRDiT)
    assert model.config.hidden_size == 1024


def test_a_joint_local_branch_moves_and_a_frozen_one_does_not(train: Train, stage_1: Ref, stage_2: Ref) -> None:
    start = load_tensors(stage_1.path / "ema.safetensors")
    frozen = load_tensors(stage_2.path / "model.safetensors")
    joint = load_tensors(train(global_config(joint_local=True), stage_1).path / "model.safetensors")
    for key, value in start.items():
        np.testing.assert_array_equal(frozen[key], value, err_msg=key)
    still = [key for key, value in start.items() if np.array_equal(joint[key], value)]
    assert still == []


def test_logit_normal_steps_crowd_the_middle() -> None:
    draws = CosineProcess().draw_times(20_000, torch.Generator().manual_seed(1), distribution="logit-normal", std=0.5)
    inside = float(((draws >= 378) & (draws < 622)).float().mean())
    assert inside == pytest.approx(0.683, abs=0.015)  # sigmoid(±0.5) = 0.378, 0.622: one standard deviation


def test_the_time_distribution_reaches_the_training(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    training = started(
        local_config(time_distribution="logit-normal", logit_mean=-20.0), data, tmp_path / "run"
    )  # all steps at t = 0
    seen: list[torch.Tensor] = []
    training.stepper.losses.network = lambda x, t: (seen.append(t), training.assembly.module(x, t))[1]
    training.train_step()
    assert seen[0].tolist() == [0, 0]


def test_a_training_that_cannot_be_compiled_goes_on_without(
    train: Train, stage_1: Ref, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(network: torch.nn.Module) -> None:
        raise RuntimeError("no C++ compiler here")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with caplog.at_level("WARNING"):
        ref = train(local_config(view=VIEW_8, norm="rms", compile=True))
    assert "no C++ compiler here" in caplog.text
    weights, expected = (load_tensors(path / "model.safetensors") for path in (ref.path, stage_1.path))
    assert all(np.array_equal(weights[key], expected[key]) for key in expected)


# -- labels ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    """Five volumes: kernels B, L, B, none, and one that training never sees."""
    root = tmp_path_factory.mktemp("labelled")
    store = VolumeStore.open(make_store(root / "store", num_volumes=5).path)
    kernels = zip(store.volume_ids(), ("B", "L", "B", None, "Z"), strict=True)
    labels = {name: {"kernel": kernel} for name, kernel in kernels if kernel}
    snapshot = list_volumes(store, {name: name for name in store.volume_ids()}, labels)
    return snapshot, make_split(root / "split", snapshot, ["v0", "v1", "v2", "v3"], ["v4"])


def test_labels_are_places_of_the_training_values(labelled: tuple[Ref, Ref]) -> None:
    snapshot = load_snapshot(labelled[0])
    names = ["v0", "v1", "v2", "v3"]
    values = label_values(snapshot, "kernel", names)
    assert values == ("B", "L")
    assert labels_of(snapshot, "kernel", values, [*names, "v4"]) == [0, 1, 0, 2, 2]
    with pytest.raises(InputError, match=r"'nodule' is not a column.*kernel"):
        label_values(snapshot, "nodule", names)
    with pytest.raises(InputError, match="1 distinct values"):
        label_values(snapshot, "kernel", ["v0", "v2"])


def test_a_labelled_model_trains_drops_labels_and_is_sampled_by_label(
    labelled: tuple[Ref, Ref], tmp_path: Path
) -> None:
    spec = train_spec(local_config(), *labelled, tmp_path / "local")
    Training(assemble(spec), spec).run(lambda: False)
    config = global_config(label_column="kernel", label_dropout=0.5, batch_size=4, steps=24, val_every=24)
    spec = train_spec(config, *labelled, tmp_path / "global", start=_commit(spec))
    training = Training(assemble(spec), spec)
    seen: list[int] = []
    inner = training.stepper.losses.network

    def network(x: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        assert conditions.labels is not None
        seen.extend(conditions.labels.tolist())
        return inner(x, t, conditions)

    training.stepper.losses.network = network
    training.run(lambda: False)
    model, info = load_model(_commit(spec), "raw", CPU)
    assert (info.label_column, info.label_values) == ("kernel", ("B", "L"))
    assert info.label_index("L") == 1
    # each epoch shows labels 0, 1, 0 and one unlabelled volume; half of the others are dropped
    assert len(seen) == 96
    assert (seen.count(0), seen.count(1)) == (pytest.approx(24, abs=9), pytest.approx(12, abs=7))
    x = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    outputs = [model(x, 300, Conditions(torch.tensor([label]))) for label in (0, 1, 2)]
    assert float((outputs[0] - outputs[1]).abs().max()) > 1e-6
    assert torch.equal(outputs[2], model(x, 300))


# -- stage 3 ----------------------------------------------------------------------------------------------------------


def test_the_refiner_freezes_its_base_and_refines_the_view(refined: Ref, stage_2: Ref) -> None:
    model, info = load_model(refined, "ema", CPU)
    assert (refined.kind, info.family, info.view.size, info.voxel_mm) == ("checkpoint", "refiner", 16, 8.0)
    for key, value in load_tensors(stage_2.path / "ema.safetensors").items():
        assert torch.equal(model.state_dict()[f"base.{key}"], torch.from_numpy(value)), key


def test_refinements_chain_and_are_sampled(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", num_volumes=3, edge=32)
    data = store, make_split(tmp_path / "split", store, ["v0", "v1"], ["v2"])
    below: Ref | None = None
    chain: tuple[TrainingConfig, ...] = (
        local_config(view={"size": 8, "edge": 32}, steps=1),
        global_config(steps=1),
        refiner_config(steps=1),
        refiner_config(steps=1),
    )
    for place, config in enumerate(chain):
        spec = train_spec(config, *data, tmp_path / str(place), start=below)
        Training(assemble(spec), spec).run(lambda: False)
        below = _commit(spec)
    assert below is not None
    info = load_info(below)
    assert [part.volume_size for part in network_config(info.model).chain] == [32, 16, 8]
    assert info.view.size == 32
    sample(below, SampleConfig(num_volumes=1, num_steps=2, nifti=False), tmp_path / "samples", lambda done, total: None)
    drawn = VolumeStore.open(tmp_path / "samples" / "samples.zarr").read_level("generated-00000")
    assert drawn.hu.shape == (32, 32, 32)
    assert drawn.spacing_mm == (8.0, 8.0, 8.0)


def test_a_refiner_needs_a_model_with_a_transformer_below(stage_1: Ref, data: tuple[Ref, Ref], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="starts from a denoiser, got a local denoiser"):
        started(refiner_config(), data, tmp_path / "wrong", stage_1)


def test_the_refiner_resumes_bit_by_bit(train: Train, data: tuple[Ref, Ref], stage_2: Ref, tmp_path: Path) -> None:
    whole = train(refiner_config(fine_tune_lr=1e-4), stage_2)
    spec = train_spec(refiner_config(fine_tune_lr=1e-4), *data, tmp_path / "resumed", start=stage_2)
    training = Training(assemble(spec), spec)
    with pytest.raises(Stopped):
        training.run(lambda: training.progress.step >= 1)
    Training(assemble(spec), spec).run(lambda: False)
    assert _commit(spec).digest == whole.digest


def test_a_fine_tuned_base_learns_at_its_own_rate(data: tuple[Ref, Ref], stage_2: Ref, tmp_path: Path) -> None:
    training = started(refiner_config(fine_tune_lr=1e-5, lr=1e-3), data, tmp_path / "joint", stage_2)
    before = {name: value.detach().clone() for name, value in training.arrays.parameters.items()}
    training.train_step()
    # Adam's first step moves each weight with a gradient by its learning rate
    moved = {
        name: float((value.detach() - before[name]).abs().max()) for name, value in training.arrays.parameters.items()
    }
    for name, distance in moved.items():
        expected = 1e-5 if name.startswith("base.") else 1e-3
        assert 0.5 * expected < distance < 1.01 * expected or distance == 0.0, name
    assert any(name.startswith("base.") and distance > 0 for name, distance in moved.items())


def test_the_low_frequency_weight_enters_the_loss(data: tuple[Ref, Ref], stage_2: Ref, tmp_path: Path) -> None:
    values = {}
    for weight in (0.0, 2.0):
        training = started(refiner_config(low_frequency_weight=weight), data, tmp_path / str(weight), stage_2)
        values[weight] = training.train_step()
    assert values[0.0]["loss_low_frequency"] == values[2.0]["loss_low_frequency"] > 0
    difference = values[2.0]["loss"] - values[0.0]["loss"]
    assert difference == pytest.approx(2.0 * values[0.0]["loss_low_frequency"], rel=1e-4)


def test_the_low_frequency_term_is_of_the_image_alone(data: tuple[Ref, Ref], stage_2: Ref, tmp_path: Path) -> None:
    training = started(refiner_config(), data, tmp_path / "image", stage_2)
    base, other = torch.zeros(2, 2, 8, 8, 8), torch.zeros(2, 2, 16, 16, 16)
    other[:, 0] = 9.0  # the noise channel
    other[:, 1] = 0.5
    training.stepper.losses.network = lambda x, t, parts: CascadeParts(base, other, torch.zeros_like(other))
    losses = training.stepper.evaluate(1, 0, "main", training.next_batches()[0])
    assert losses is not None
    assert float(losses["loss_low_frequency"]) == pytest.approx(0.25)


def test_checkpointing_recomputes_the_local_branch_too(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = torch.utils.checkpoint.checkpoint

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr("prdit_models.networks.local.checkpoint", counted)
    weights = []
    for checkpointing in (False, True):
        training = started(local_config(checkpointing=checkpointing), data, tmp_path / str(checkpointing))
        training.train_step()
        weights.append({name: value.detach().clone() for name, value in training.arrays.parameters.items()})
    assert len(calls) == 2  # one an MLP
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_refining_head_takes_the_norms_of_the_model_below(refined: Ref) -> None:
    assert load_info(refined).model["head"]["norm"] == "rms"


def test_a_label_for_a_refined_model_is_refused(refined: Ref, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of a refined model.*belong to the model below"):
        sample(refined, SampleConfig(label="B", num_steps=2), tmp_path / "out", lambda done, total: None)


def test_there_is_no_level_above_the_finest(data: tuple[Ref, Ref], finest: Ref, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finer level"):
        started(refiner_config(), data, tmp_path / "above", finest)
