"""The training loop: resume, skipping, EMA, frozen branch, validation, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prdit_models.intensity import HounsfieldWindow
from storage.artifacts import Ref
from storage.checkpoints import load_tensors
from storage.volume_store import VolumeStore
from tasks.model.view import ViewConfig
from tasks.sample.config import SampleConfig
from tasks.sample.run import sample
from tasks.train.__main__ import _commit
from tasks.train.check import check_training
from tasks.train.data import ViewDataset, batch_indices, batch_shifts
from tasks.train.loop import Stopped, Training
from tasks.train.setup import Assembly, assemble
from tasks.train.spec import TrainSpec
from tests.factories import global_config, local_config, make_data, make_split, make_store, train_spec


def run(spec: TrainSpec, stop_after: int | None = None) -> Training:
    training = Training(assemble(spec), spec)
    training.run(lambda: stop_after is not None and training.step >= stop_after)
    return training


def validated(assembly: Assembly) -> dict[str, float]:
    return assembly.family.validate(assembly.module, assembly.validation.volumes, None, assembly.training, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def local(data: tuple[Ref, Ref], tmp_path_factory: pytest.TempPathFactory) -> Ref:
    spec = train_spec(local_config(), *data, tmp_path_factory.mktemp("local"))
    run(spec)
    return _commit(spec)


def test_resumed_training_gives_the_uninterrupted_weights(data: tuple[Ref, Ref], local: Ref, tmp_path: Path) -> None:
    spec = train_spec(local_config(), *data, tmp_path / "resumed")
    with pytest.raises(Stopped, match="step 3 of 6"):
        run(spec, stop_after=3)
    run(spec)
    for name in ("model", "ema"):
        whole, resumed = (load_tensors(folder / f"{name}.safetensors") for folder in (local.path, spec.directory))
        assert whole.keys() == resumed.keys()
        for key in whole:
            np.testing.assert_array_equal(whole[key], resumed[key], err_msg=f"{name} {key}")
    assert _commit(spec).digest == local.digest  # metrics too: a training repeated is the same artifact


def test_a_decaying_rate_reaches_the_optimiser_and_survives_a_resume(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    config = local_config(lr_decay=0.5)
    whole = train_spec(config, *data, tmp_path / "whole")
    training = Training(assemble(whole), whole)
    rates = []
    training.run(lambda: rates.append(training.optimizers["main"].param_groups[0]["lr"]))  # of the step before
    rates.append(training.optimizers["main"].param_groups[0]["lr"])
    assert rates[1:] == pytest.approx([1e-3, 1e-3, 1e-3, 1e-3, 1e-3 * 2 / 3, 1e-3 / 3])
    resumed = train_spec(config, *data, tmp_path / "resumed")
    with pytest.raises(Stopped):
        run(resumed, stop_after=4)
    run(resumed)
    ours, theirs = (load_tensors(spec.directory / "model.safetensors") for spec in (whole, resumed))
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_a_damaged_resume_state_is_passed_over(data: tuple[Ref, Ref], local: Ref, tmp_path: Path) -> None:
    spec = train_spec(local_config(), *data, tmp_path / "damaged")
    with pytest.raises(Stopped):
        run(spec, stop_after=5)
    newest = sorted((spec.directory / "work" / "checkpoints").glob("step-*"))[-1] / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    training = Training(assemble(spec), spec)
    training.restore()
    assert training.step == 4
    training.run(lambda: False)
    whole, resumed = load_tensors(local.path / "model.safetensors"), load_tensors(spec.directory / "model.safetensors")
    assert all(np.array_equal(whole[key], resumed[key]) for key in whole)


def test_stage_two_trains_only_the_refiner_and_starts_from_the_ema(
    data: tuple[Ref, Ref], local: Ref, tmp_path: Path
) -> None:
    spec = train_spec(global_config(), *data, tmp_path / "global", start=local)
    before = assemble(spec).module.state_dict()
    base = load_tensors(local.path / "ema.safetensors")
    run(spec)
    after = load_tensors(spec.directory / "model.safetensors")
    for key, value in base.items():
        np.testing.assert_array_equal(after[key], value, err_msg=f"frozen {key} moved")
    moved = [key for key in after if key not in base and not np.array_equal(after[key], before[key].numpy())]
    assert any(key.startswith("fine.blocks.0") for key in moved)
    first = json.loads((spec.directory / "metrics.jsonl").read_text().splitlines()[0])
    last = json.loads((local.path / "metrics.jsonl").read_text().splitlines()[-1])
    assert first["val/loss_ema"] == pytest.approx(
        last["val/loss_ema"], rel=1e-6
    )  # both branches start at the local one


def test_loss_at_initialisation_is_the_closed_form(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    """A fresh model outputs 0, so its loss is mean(eps²) + mean(x0²)."""
    spec = train_spec(local_config(), *data, tmp_path / "closed")
    assembly = assemble(spec)
    losses = validated(assembly)
    x0 = assembly.validation.volumes[0]
    assert losses.pop("loss") == pytest.approx(sum(losses.values()) / 6)
    for t, loss in ((int(name[1:]), loss) for name, loss in losses.items()):
        eps = 0.5 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(20_260 + t))
        assert loss == pytest.approx(float((eps.double() ** 2).mean() + (x0.double() ** 2).mean()), rel=1e-5)


def test_ema_warm_up_makes_a_short_runs_average_usable(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    """After 300 steps the EMA is as good as the weights; with the published constant it is still near its zero start."""
    losses = {}
    for warmup in (True, False):
        config = local_config(
            preset="XS/4/0", steps=300, val_every=300, checkpoint_every=1000, log_every=100, ema_warmup=warmup
        )
        spec = train_spec(config, *data, tmp_path / str(warmup))
        run(spec)
        points = [json.loads(line) for line in (spec.directory / "metrics.jsonl").read_text().splitlines()]
        losses[warmup] = (points[-1]["val/loss_ema"], points[-1]["val/loss"], points[0]["val/loss"])
    ema, raw, _ = losses[True]
    assert ema <= 1.1 * raw
    ema, raw, start = losses[False]
    assert ema > 0.9 * start > 1.5 * raw


def test_a_step_without_finite_loss_changes_nothing(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec(local_config(steps=1), *data, tmp_path / "nan")
    assembly = assemble(spec)
    training = Training(assembly, spec)
    before = {key: value.clone() for key, value in assembly.module.state_dict().items()}
    poison = torch.full((2, 1, 16, 16, 16), float("nan"))
    monkeypatch.setattr(assembly.data, "batch", lambda *_: poison)
    training._train_step()
    assert training.updates == 0
    assert all(torch.equal(before[key], value) for key, value in assembly.module.state_dict().items())
    assert not training.optimizers["main"].state


def test_training_that_never_gets_a_finite_loss_ends_with_a_remedy(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec(local_config(steps=200, val_every=1000), *data, tmp_path / "diverged")
    training = Training(assemble(spec), spec)
    monkeypatch.setattr(training.assembly.data, "batch", lambda *_: torch.full((2, 1, 16, 16, 16), float("inf")))
    with pytest.raises(RuntimeError, match="Lower lr"):
        training.run(lambda: False)


def test_batches_visit_every_volume_once_before_any_twice() -> None:
    places = [index for step in range(7) for index in batch_indices(5, 3, seed=1, place=step)]
    for epoch in range(4):
        assert sorted(places[5 * epoch : 5 * epoch + 5]) == [0, 1, 2, 3, 4]
    assert len({tuple(places[5 * epoch : 5 * epoch + 5]) for epoch in range(4)}) > 1  # shuffled anew
    assert batch_indices(2, 8, seed=1, place=0).count(0) == 4  # a store smaller than the batch


def test_the_best_validation_becomes_the_checkpoint(data: tuple[Ref, Ref], local: Ref, tmp_path: Path) -> None:
    """A learning rate that ruins the weights: `best` keeps the step before, also across a stop; `last` keeps the ruined weights."""
    refs = {}
    for select in ("last", "best"):
        config = global_config(select=select, steps=9, lr=0.3)
        spec = train_spec(config, *data, tmp_path / select, start=local)
        with pytest.raises(Stopped):
            run(spec, stop_after=5)
        run(spec)
        refs[select] = _commit(spec)
    info = {select: json.loads((ref.path / "checkpoint.json").read_text()) for select, ref in refs.items()}
    points = [json.loads(line) for line in (refs["best"].path / "metrics.jsonl").read_text().splitlines()]
    validations = {point["step"]: point["val/loss_ema"] for point in points if "val/loss_ema" in point}
    best = min(validations, key=lambda step: validations[step])
    assert best < 9
    assert (info["best"]["step"], info["last"]["step"]) == (best, 9)
    assert info["best"]["gates"]["val_loss_ema"] == pytest.approx(validations[best])
    spec = train_spec(global_config(), *data, tmp_path / "check", start=local)
    assembly = assemble(spec)
    for select, step in (("best", best), ("last", 9)):
        weights = load_tensors(refs[select].path / "ema.safetensors")
        assembly.module.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
        assert validated(assembly)["loss"] == pytest.approx(validations[step], rel=1e-5), select


def test_shifted_views_are_the_same_scan_moved(data: tuple[Ref, Ref]) -> None:
    """A box shifted by (z, y, x) = (0, 4, 4) voxels contains what the unshifted one has at that offset."""
    view = ViewConfig(size=8, edge=8)
    dataset = ViewDataset(VolumeStore.open(data[0].path), ["v0"], view, HounsfieldWindow(), cache_mb=1)
    still, moved = dataset.get(0), dataset.get(0, (0, 4, 4))
    assert torch.equal(moved[:, :, :4, :4], still[:, :, 4:, 4:])
    assert not torch.equal(moved, still)
    assert torch.equal(dataset.get(0), still)  # the cache keeps them apart
    shifts = [shift for step in range(200) for shift in batch_shifts(2, 9, seed=3, place=step)]
    assert {part for shift in shifts for part in shift} == {-8, -4, 0, 4, 8}
    assert len(set(shifts)) > 100
    assert set(batch_shifts(5, 0, seed=3, place=1)) == {(0, 0, 0)}


@pytest.mark.parametrize("role", ["train", "val"])
def test_an_empty_role_is_refused(data: tuple[Ref, Ref], tmp_path: Path, role: str) -> None:
    roles = {"train": ["v0"], "val": ["v1"]} | {role: []}
    split = make_split(tmp_path / "split", data[0], roles["train"], roles["val"])
    with pytest.raises(ValueError, match=rf"no volume in role '{role}'.*ingest more"):
        check_training(data[0], split, None, local_config())


def test_stage_two_refuses_another_patch_or_size(data: tuple[Ref, Ref], local: Ref) -> None:
    with pytest.raises(ValueError, match="does not continue the local denoiser"):
        check_training(*data, local, global_config(preset="XS/12/1"))
    with pytest.raises(ValueError, match="depth 0"):
        check_training(*data, local, global_config(preset="XS/10/0"))
    with pytest.raises(ValueError, match=r"starts from the checkpoint of 'local', got none.*prdit train local"):
        check_training(*data, None, global_config())


def test_processes_of_the_trainings_must_agree(data: tuple[Ref, Ref], local: Ref, tmp_path: Path) -> None:
    spec = train_spec(global_config(process={"name": "cosine", "noise_std": 1.0}), *data, tmp_path / "std", start=local)
    with pytest.raises(ValueError, match=r"'noise_std': 1\.0.*differs from.*'noise_std': 0\.5"):
        assemble(spec)


def test_a_store_of_another_spacing_is_refused(data: tuple[Ref, Ref], local: Ref, tmp_path: Path) -> None:
    finer = make_store(tmp_path / "finer", spacing_mm=4.0)
    split = make_split(tmp_path / "split", finer, ["v0"], ["v1"])
    with pytest.raises(ValueError, match=r"4\.0 mm voxels.*trained at 8\.0 mm.*ingest\.spacing_mm"):
        check_training(finer, split, local, global_config())


def test_accumulated_batches_make_the_mean_of_their_gradients(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    """One step of two batches of 1 against the two gradients taken one by one, and bit-equal resume in the middle."""
    config = local_config(batch_size=1, accumulation=2, clip_norm=1e9)
    spec = train_spec(config, *data, tmp_path / "together")
    training = Training(assemble(spec), spec)
    gradients: list[dict[str, torch.Tensor]] = []
    for place in (0, 1):
        losses = training._losses(0, "main", place)
        assert losses is not None
        training.assembly.module.zero_grad()
        losses["loss"].backward()
        gradients.append({name: p.grad.clone() for name, p in training.parameters.items() if p.grad is not None})
    training._train_step()
    for name, parameter in training.parameters.items():
        if name in gradients[0]:
            expected = (gradients[0][name] + gradients[1][name]) / 2
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-9)
    whole, parts = (train_spec(config, *data, tmp_path / name) for name in ("whole", "parts"))
    run(whole)
    with pytest.raises(Stopped):
        run(parts, stop_after=3)
    run(parts)
    ours, theirs = (load_tensors(made.directory / "model.safetensors") for made in (whole, parts))
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_flow_matching_trains_in_both_stages(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    """The loss falls, stage 2 inherits the process, and what it makes is sampled by Euler's method."""
    spec = train_spec(local_config(process="flow", steps=150, val_every=50), *data, tmp_path / "local")
    run(spec)
    local = _commit(spec)
    points = [json.loads(line) for line in (local.path / "metrics.jsonl").read_text().splitlines()]
    losses = [point["val/loss"] for point in points if "val/loss" in point]
    assert losses[-1] < 0.8 * losses[0]
    spec = train_spec(global_config(steps=3), *data, tmp_path / "global", start=local)
    run(spec)
    made = _commit(spec)
    info = json.loads((made.path / "checkpoint.json").read_text())
    assert info["process"] == {"name": "flow", "noise_std": 1.0, "num_steps": 1000, "prediction": "velocity"}
    assert info["model"]["out_channels"] == 1
    drawing = SampleConfig(num_volumes=1, num_steps=2, sampler="euler", nifti=False, device="cpu", num_threads=1)
    sample(made, drawing, tmp_path / "samples", lambda done, total: None)
    assert json.loads((tmp_path / "samples" / "samples.json").read_text())["sampler"]["evaluations"] == 2
