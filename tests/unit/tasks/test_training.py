"""The training loop: resume, skipping, EMA, frozen branch, validation, refusals."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from storage.artifacts import Ref
from storage.checkpoints import load_tensors
from tasks.sample.config import SampleConfig
from tasks.sample.run import sample
from tasks.train.__main__ import _commit
from tasks.train.check import check_training
from tasks.train.loop import Stopped, Training
from tasks.train.ranks import Ranks
from tasks.train.setup import Assembly, assemble
from tasks.train.spec import TrainSpec
from tasks.train.speed import Speed
from tests.factories import global_config, local_config, make_data, make_split, make_store, small_config, train_spec


def run(spec: TrainSpec, stop_after: int | None = None) -> Training:
    training = Training(assemble(spec), spec)
    training.run(lambda: stop_after is not None and training.progress.step >= stop_after)
    return training


def validated(assembly: Assembly) -> dict[str, float]:
    return assembly.family.validate(assembly.module, assembly.held_out, assembly.training, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def local(data: tuple[Ref, Ref], tmp_path_factory: pytest.TempPathFactory) -> Ref:
    """What transformers continue."""
    spec = train_spec(local_config(steps=2, val_every=2), *data, tmp_path_factory.mktemp("local"))
    run(spec)
    return _commit(spec)


@pytest.fixture(scope="module")
def small(data: tuple[Ref, Ref], tmp_path_factory: pytest.TempPathFactory) -> Ref:
    spec = train_spec(small_config(), *data, tmp_path_factory.mktemp("small"))
    run(spec)
    return _commit(spec)


def test_resumed_training_gives_the_uninterrupted_weights(data: tuple[Ref, Ref], small: Ref, tmp_path: Path) -> None:
    spec = train_spec(small_config(), *data, tmp_path / "resumed")
    with pytest.raises(Stopped, match="step 3 of 6"):
        run(spec, stop_after=3)
    run(spec)
    for name in ("model", "ema"):
        whole, resumed = (load_tensors(folder / f"{name}.safetensors") for folder in (small.path, spec.directory))
        assert whole.keys() == resumed.keys()
        for key in whole:
            np.testing.assert_array_equal(whole[key], resumed[key], err_msg=f"{name} {key}")
    assert _commit(spec).digest == small.digest  # metrics too: a training repeated is the same artifact


def test_a_decaying_rate_reaches_the_optimiser_and_survives_a_resume(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    config = small_config(lr_decay=0.5)
    whole = train_spec(config, *data, tmp_path / "whole")
    training = Training(assemble(whole), whole)
    rates = []
    training.run(lambda: rates.append(training.stepper.optimizers["main"].param_groups[0]["lr"]))  # of the step before
    rates.append(training.stepper.optimizers["main"].param_groups[0]["lr"])
    assert rates[1:] == pytest.approx([1e-3, 1e-3, 1e-3, 1e-3, 1e-3 * 2 / 3, 1e-3 / 3])
    resumed = train_spec(config, *data, tmp_path / "resumed")
    with pytest.raises(Stopped):
        run(resumed, stop_after=4)
    run(resumed)
    ours, theirs = (load_tensors(spec.directory / "model.safetensors") for spec in (whole, resumed))
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_every_rank_loads_the_state_that_the_first_one_found(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec(small_config(), *data, tmp_path / "behind")
    with pytest.raises(Stopped):
        run(spec, stop_after=5)
    asked = []
    monkeypatch.setattr(Ranks, "from_first", lambda self, step: asked.append(step) or 4)
    training = Training(assemble(spec), spec)
    training.restore()
    assert (asked, training.progress.step) == ([5], 4)


def test_a_damaged_resume_state_is_passed_over(data: tuple[Ref, Ref], small: Ref, tmp_path: Path) -> None:
    spec = train_spec(small_config(), *data, tmp_path / "damaged")
    with pytest.raises(Stopped):
        run(spec, stop_after=5)
    newest = sorted((spec.directory / "work" / "checkpoints").glob("step-*"))[-1] / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    training = Training(assemble(spec), spec)
    training.restore()
    assert training.progress.step == 4
    training.run(lambda: False)
    whole, resumed = load_tensors(small.path / "model.safetensors"), load_tensors(spec.directory / "model.safetensors")
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
    spec = train_spec(small_config(), *data, tmp_path / "closed")
    assembly = assemble(spec)
    losses = validated(assembly)
    x0 = assembly.held_out.volumes[0]
    assert losses.pop("loss") == pytest.approx(sum(losses.values()) / 6)
    for t, loss in ((int(name[1:]), loss) for name, loss in losses.items()):
        eps = 0.5 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(20_260 + t))
        assert loss == pytest.approx(float((eps.double() ** 2).mean() + (x0.double() ** 2).mean()), rel=1e-5)


def test_ema_warm_up_makes_a_short_runs_average_usable(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    """After 300 steps the EMA is as good as the weights; with the published constant it is still near its zero start."""
    losses = {}
    for warmup in (True, False):
        config = small_config(steps=300, val_every=300, checkpoint_every=1000, log_every=100, ema_warmup=warmup)
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
    spec = train_spec(small_config(steps=1), *data, tmp_path / "nan")
    assembly = assemble(spec)
    training = Training(assembly, spec)
    before = {key: value.clone() for key, value in assembly.module.state_dict().items()}
    monkeypatch.setattr(assembly.data, "get", lambda *_: torch.full((1, 16, 16, 16), float("nan")))
    training.train_step()
    assert training.progress.updates == 0
    assert all(torch.equal(before[key], value) for key, value in assembly.module.state_dict().items())
    assert not training.stepper.optimizers["main"].state


def test_training_that_never_gets_a_finite_loss_ends_with_a_remedy(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec(small_config(steps=200, val_every=1000), *data, tmp_path / "diverged")
    training = Training(assemble(spec), spec)
    monkeypatch.setattr(training.assembly.data, "get", lambda *_: torch.full((1, 16, 16, 16), float("inf")))
    with pytest.raises(RuntimeError, match="Lower lr"):
        training.run(lambda: False)


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


def test_failing_steps_leave_the_state_to_go_back_to(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States are due twice while twenty steps fail, and two are kept."""
    spec = train_spec(small_config(steps=30, val_every=30, checkpoint_every=8), *data, tmp_path / "fails")
    training = Training(assemble(spec), spec)
    get = training.assembly.data.get
    monkeypatch.setattr(
        training.assembly.data,
        "get",
        lambda *given: (
            get(*given) * (float("nan") if training.progress.step >= 9 and not training.progress.rewinds else 1)
        ),
    )
    training.run(lambda: False)
    assert (training.progress.step, training.progress.rewinds, training.progress.updates) == (30, 1, 30)


@pytest.mark.parametrize("role", ["train", "val"])
def test_an_empty_role_is_refused(data: tuple[Ref, Ref], tmp_path: Path, role: str) -> None:
    roles = {"train": ["v0"], "val": ["v1"]} | {role: []}
    split = make_split(tmp_path / "split", data[0], roles["train"], roles["val"])
    with pytest.raises(ValueError, match=rf"no volume in role '{role}'.*ingest more"):
        check_training(data[0], split, None, small_config())


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


def test_accumulating_k_batches_is_one_batch_k_times_as_large(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    gradients, losses = [], []
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        config = small_config(batch_size=batch_size, accumulation=accumulation, clip_norm=1e9, max_shift=8)
        spec = train_spec(config, *data, tmp_path / str(batch_size))
        training = Training(assemble(spec), spec)
        losses.append(training.train_step()["loss"])
        gradients.append({name: p.grad for name, p in training.arrays.parameters.items() if p.grad is not None})
    largest = max(float(value.abs().max()) for value in gradients[0].values())
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        assert all(float((other[name] - value).abs().max()) < 1e-6 * largest for name, value in gradients[0].items())
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-6)


def test_a_resume_in_the_middle_of_accumulation_and_of_a_logged_window(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    config = small_config(batch_size=1, accumulation=2, log_every=4, steps=7)
    whole, parts = (train_spec(config, *data, tmp_path / name) for name in ("whole", "parts"))
    run(whole)
    for stop_after in (3, 5):
        with pytest.raises(Stopped):
            run(parts, stop_after)
    run(parts)
    assert _commit(parts).digest == _commit(whole).digest  # metrics too
    steps = [json.loads(line)["step"] for line in (whole.directory / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 3, 4, 6, 7, 7]


def test_rates_are_of_the_steps_since_a_resume(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec(small_config(), *data, tmp_path / "run")
    now = 100.0
    monkeypatch.setattr("tasks.train.speed.time", SimpleNamespace(monotonic=lambda: now))
    speed = Speed(assemble(spec), spec.config, Ranks(), 5)
    now += 2.0
    assert speed.values(9, 0.5)["speed/steps_per_s"] == 2.0
    now += 2.0
    found = speed.values(10, 1.5)
    assert (found["speed/steps_per_s"], found["speed/data_stall_share"]) == (0.5, 0.5)


def test_warm_up_and_cosine_decay_reach_the_optimiser(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    spec = train_spec(small_config(lr_warmup=2, lr_decay=0.5, lr_shape="cosine"), *data, tmp_path / "run")
    training = Training(assemble(spec), spec)
    rates = []
    for _ in range(6):
        training.train_step()
        rates.append(training.stepper.optimizers["main"].param_groups[0]["lr"])
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 7.5e-4, 2.5e-4])


def test_a_step_with_a_loss_far_above_the_last_ones_is_skipped(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec(small_config(spike_factor=5.0), *data, tmp_path / "run")
    training = Training(assemble(spec), spec)
    training.progress.recent.extend([0.01] * 50)  # the loss is about 0.7
    assert training.train_step() == {"skipped": 1.0}
    training.progress.recent.extend([0.5] * 50)
    assert training.train_step()["loss"] < 2.0
    assert (training.progress.step, training.progress.updates, training.progress.skipped) == (2, 1, 1)
    training.progress.recent.extend([-0.01] * 50)
    assert "loss" in training.train_step()


@pytest.mark.parametrize("patience", [3, 7], ids=["within an interval of states", "over several"])
def test_a_training_that_diverges_goes_back_and_on_with_other_data(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    """Every loss from step 6 on is not finite, until the training has gone back to its state of step 4."""
    spec = train_spec(small_config(steps=12, val_every=100), *data, tmp_path / "run")
    training = Training(assemble(spec), spec)
    evaluate = training.stepper.evaluate
    monkeypatch.setattr("tasks.train.loop._SKIPPED_UNTIL_REWIND", patience)
    seen: list[tuple[int, int]] = []

    def poisoned(number: int, part: int, turn: str, loaded: Any) -> Any:
        seen.append((training.progress.rewinds, number))
        losses = evaluate(number, part, turn, loaded)
        assert losses is not None
        finite = training.progress.rewinds or number < 6
        return losses if finite else {name: value * float("nan") for name, value in losses.items()}

    monkeypatch.setattr(training.stepper, "evaluate", poisoned)
    training.run(lambda: False)
    assert seen == [(0, number) for number in range(1, 6 + patience)] + [(1, number) for number in range(5, 13)]
    assert (training.progress.rewinds, training.progress.skipped, training.progress.updates) == (1, 0, 12)
    logged = [json.loads(line) for line in (spec.directory / "work" / "metrics.jsonl").read_text().splitlines()]
    assert sum(point.get("train/skipped", 0) for point in logged) == patience - 1  # the last made it go back
    assert [point["step"] for point in logged if point.get("rewinds")] == [*range(5, 13), 12]
    kept = [json.loads(line) for line in (spec.directory / "metrics.jsonl").read_text().splitlines()]
    assert [point["step"] for point in kept] == [0, *range(1, 13), 12]
    assert all("rewinds" not in point for point in kept)


def test_flow_matching_trains_in_both_stages(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    """The loss falls, stage 2 inherits the process, and what it makes is sampled by Euler's method."""
    long = {"steps": 150, "val_every": 150, "checkpoint_every": 150, "log_every": 50}
    spec = train_spec(small_config(process="flow", **long), *data, tmp_path / "small")
    run(spec)
    points = [json.loads(line) for line in (spec.directory / "metrics.jsonl").read_text().splitlines()]
    losses = [point["val/loss"] for point in points if "val/loss" in point]
    assert losses[-1] < 0.8 * losses[0]
    spec = train_spec(local_config(process="flow", steps=1), *data, tmp_path / "local")
    run(spec)
    spec = train_spec(global_config(steps=1), *data, tmp_path / "global", start=_commit(spec))
    run(spec)
    made = _commit(spec)
    info = json.loads((made.path / "checkpoint.json").read_text())
    assert info["process"] == {"name": "flow", "noise_std": 1.0, "num_steps": 1000, "prediction": "velocity"}
    assert info["model"]["out_channels"] == 1
    drawing = SampleConfig(num_volumes=1, num_steps=2, sampler="euler", nifti=False, device="cpu", num_threads=1)
    sample(made, drawing, tmp_path / "samples", lambda done, total: None)
    assert json.loads((tmp_path / "samples" / "samples.json").read_text())["sampler"]["evaluations"] == 2
