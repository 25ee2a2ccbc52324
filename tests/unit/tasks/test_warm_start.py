"""A training that begins with the weights of an earlier one: where it begins, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from storage.artifacts import Ref, load_provenance
from storage.checkpoints import load_tensors
from storage.errors import InputError
from tasks.run.stage import RunContext
from tasks.train.check import check_training
from tasks.train.loop import Training
from tasks.train.setup import assemble
from tasks.train.spec import TrainSpec
from tasks.train.stage import train
from tests.factories import global_config, local_config, make_data, make_split, small_config, train_spec, trained


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def local(data: tuple[Ref, Ref], tmp_path_factory: pytest.TempPathFactory) -> Ref:
    return trained(train_spec(local_config(steps=2, val_every=2), *data, tmp_path_factory.mktemp("local")))


@pytest.fixture(scope="module")
def small(data: tuple[Ref, Ref], tmp_path_factory: pytest.TempPathFactory) -> Ref:
    return trained(train_spec(small_config(), *data, tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def champion(data: tuple[Ref, Ref], local: Ref, tmp_path_factory: pytest.TempPathFactory) -> Ref:
    return trained(
        train_spec(global_config(steps=2, val_every=2), *data, tmp_path_factory.mktemp("global"), start=local)
    )


def warm(spec: TrainSpec, initial: Ref) -> TrainSpec:
    return spec.model_copy(update={"initial": initial})


def points(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_the_first_validation_is_the_last_of_the_checkpoint_it_begins_with(
    data: tuple[Ref, Ref], small: Ref, tmp_path: Path
) -> None:
    spec = warm(train_spec(small_config(steps=2), *data, tmp_path / "warm"), small)
    trained(spec)
    last, first, cold = points(small.path)[-1], points(spec.directory)[0], points(small.path)[0]
    assert first["step"] == 0
    assert first["val/loss"] == first["val/loss_ema"] == pytest.approx(last["val/loss_ema"], rel=1e-6)
    assert abs(first["val/loss"] - cold["val/loss"]) > 1e-3


def test_only_trained_weights_are_taken_over(data: tuple[Ref, Ref], local: Ref, champion: Ref, tmp_path: Path) -> None:
    """The frozen local branch is that of the new local training, as the record of the checkpoint says."""
    other = trained(train_spec(local_config(seed=7, steps=1), *data, tmp_path / "other"))
    spec = warm(train_spec(global_config(), *data, tmp_path / "warm", start=other), champion)
    state = assemble(spec).module.state_dict()
    below, before = load_tensors(other.path / "ema.safetensors"), load_tensors(champion.path / "ema.safetensors")
    for name, value in below.items():
        np.testing.assert_array_equal(state[name].numpy(), value, err_msg=name)
    own = [name for name in state if name not in below]
    assert own
    for name in own:
        np.testing.assert_array_equal(state[name].numpy(), before[name], err_msg=name)
    same = assemble(warm(train_spec(global_config(), *data, tmp_path / "same", start=local), champion)).module
    for name, value in same.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)


def test_a_resumed_warm_start_is_not_begun_again(data: tuple[Ref, Ref], small: Ref, tmp_path: Path) -> None:
    whole = warm(train_spec(small_config(), *data, tmp_path / "whole"), small)
    digest = trained(whole).digest
    spec = warm(train_spec(small_config(), *data, tmp_path / "resumed"), small)
    stopped = Training(assemble(spec), spec)
    with pytest.raises(Exception, match="stopped at step 3"):
        stopped.run(lambda: stopped.progress.step >= 3)
    assert trained(spec).digest == digest


def test_the_weights_it_begins_with_are_part_of_the_cache_key(
    data: tuple[Ref, Ref], small: Ref, tmp_path: Path
) -> None:
    context, inputs = RunContext(workdir=tmp_path), {"snapshot": data[0], "split": data[1]}
    config = small_config(steps=2)
    cold = train("local", inputs, config, context, lambda *_: None)
    first = train("local", inputs | {"initial": small}, config, context, lambda *_: None)
    again = train("local", inputs | {"initial": small}, config, context, lambda *_: None)
    assert (cold.cached, first.cached, again.cached) == (False, False, True)
    assert len({cold.directory, first.directory}) == 2
    assert first.ref == again.ref
    assert load_provenance(first.ref).inputs["initial"] == small
    assert "initial" not in load_provenance(cold.ref).inputs


def test_what_it_cannot_begin_with_is_refused_by_name(
    data: tuple[Ref, Ref], local: Ref, champion: Ref, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"process.name: cosine there, flow here\n(.|\n)*start: scratch"):
        check_training(*data, None, local_config(process="flow"), local)
    with pytest.raises(InputError, match="family: global there, local here"):
        check_training(*data, None, local_config(), champion)
    with pytest.raises(InputError, match=r"view\.size: 16 there, 8 here"):
        check_training(*data, None, small_config(view={"size": 8, "edge": 16}), local)
    with pytest.raises(InputError, match="got a split"):
        check_training(*data, None, local_config(), make_split(tmp_path, data[0], ["v0"], ["v1"]))
