"""Sampling: refusals, seeds, batches, resuming, and the way back to Hounsfield units."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.sampling import sample as draw
from prdit_models.families.denoiser import Denoiser
from prdit_models.intensity import HounsfieldWindow
from storage.artifacts import Ref, artifact_files
from storage.files import read_json
from storage.volume_store import VolumeStore
from tasks.model.checkpoint import load_model
from tasks.sample import run as stage
from tasks.sample.config import SampleConfig
from tests.factories import make_split, make_store
from tests.unit.tasks.checkpoints import TINY, commit_checkpoint, commit_pair, tiny_model


def config(**changes: object) -> SampleConfig:
    values = {"num_volumes": 3, "num_steps": 5, "batch_size": 2, "num_threads": 1, "device": "cpu"}
    return SampleConfig.model_validate(values | changes)


def silent(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    root = tmp_path_factory.mktemp("checkpoints")
    store = make_store(root / "store")
    return commit_pair(root, store, make_split(root / "split", store, ["v0", "v1"], ["v2"]))


def hu_of(directory: Path) -> dict[str, np.ndarray]:
    store = VolumeStore.open(directory / "samples.zarr")
    return {name: store.read_level(name).hu for name in store.volume_ids()}


def test_a_local_only_checkpoint_is_refused_before_any_work(checkpoints: tuple[Ref, Ref], tmp_path: Path) -> None:
    local, _ = checkpoints
    with pytest.raises(
        ValueError, match=r"needs a model of the whole volume, got a local denoiser.*prdit train global"
    ):
        stage.check(local, config())
    with pytest.raises(ValueError, match="needs a checkpoint, got a split"):
        stage.check(local.model_copy(update={"kind": "split"}), config())
    with pytest.raises(ValueError, match="local denoiser"):
        stage.sample(local, config(), tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("output", ["image", "state"])
def test_samples_are_the_samplers_output_in_rounded_hu(
    checkpoints: tuple[Ref, Ref], tmp_path: Path, output: str
) -> None:
    stage.sample(checkpoints[1], config(num_volumes=1, output=output), tmp_path, silent)
    generator = torch.Generator().manual_seed(stage.volume_seed(42, 0))
    drawn = draw(tiny_model(), CosineProcess(), config().as_sampler(), volume_size=8, generators=[generator])
    expected, other = (drawn.x0, drawn.x) if output == "image" else (drawn.x, drawn.x0)
    assert (expected - other).abs().max() > 0.01
    assert read_json(tmp_path / "samples.json")["sampler"]["output"] == output
    by_hand = np.rint(expected[0, 0].double().numpy() * 1000.0)  # window [-1000, 1000]: HU = 1000·x
    found = hu_of(tmp_path)["generated-00000"]
    assert np.abs(found - by_hand).max() <= 1  # float32 halves may round the other way
    assert (found == by_hand).mean() > 0.99
    volume = VolumeStore.open(tmp_path / "samples.zarr").read_level("generated-00000")
    assert volume.spacing_mm == (16.0,) * 3  # 16 voxels of 8 mm seen as 8
    assert volume.origin_mm == (-56.0,) * 3  # -(8 - 1)/2 · 16
    image = nibabel.load(tmp_path / "nifti" / "0.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), found)
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], [56.0, 56.0, -56.0, 1])


def test_every_volume_has_its_own_seed_whatever_the_batch(checkpoints: tuple[Ref, Ref], tmp_path: Path) -> None:
    for batch_size in (1, 3):
        stage.sample(checkpoints[1], config(batch_size=batch_size), tmp_path / str(batch_size), silent)
    alone, together = hu_of(tmp_path / "1"), hu_of(tmp_path / "3")
    for name, hu in alone.items():
        assert np.abs(hu.astype(int) - together[name]).max() <= 1  # matrix products of other sizes round otherwise
    first, second = alone["generated-00000"], alone["generated-00001"]
    assert np.abs(first.astype(int) - second).max() > 100
    more = tmp_path / "more"
    stage.sample(checkpoints[1], config(num_volumes=4, batch_size=1), more, silent)
    np.testing.assert_array_equal(hu_of(more)["generated-00000"], first)
    assert len(set(read_json(more / "samples.json")["seeds"])) == 4
    assert stage.volume_seed(42, 1) != stage.volume_seed(43, 0)


def test_a_killed_run_keeps_its_finished_volumes(
    checkpoints: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.sample(checkpoints[1], config(batch_size=1), tmp_path / "whole", silent)
    real_draw, calls = Denoiser.generate, []

    def dies_at_the_third(*arguments: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real_draw(*arguments, **named)

    monkeypatch.setattr(Denoiser, "generate", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        stage.sample(checkpoints[1], config(batch_size=1), tmp_path / "killed", silent)
    assert sorted(hu_of(tmp_path / "killed")) == ["generated-00000", "generated-00001"]
    seen: list[tuple[int, int]] = []
    stage.sample(checkpoints[1], config(batch_size=1), tmp_path / "killed", lambda d, t: seen.append((d, t)))
    assert len(calls) == 4  # only the third volume was drawn again
    assert seen[0] == (10, 15)
    assert seen[-1] == (15, 15)
    assert artifact_files(tmp_path / "killed") == artifact_files(tmp_path / "whole")


def test_values_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    model, store = tiny_model(), make_store(tmp_path / "store")
    model.fine.final_layer.linear.weight.fill_(3e38)  # finite itself; what comes of it is not
    broken = commit_checkpoint(tmp_path / "global", "global", {"snapshot": store}, model=model)
    with pytest.raises(RuntimeError, match=r"Volume 0 \(seed \d+\).*not finite"):
        stage.sample(broken, config(num_volumes=1), tmp_path / "out", silent)
    model.fine.final_layer.linear.bias[0] = float("nan")
    broken = commit_checkpoint(tmp_path / "nan", "global", {"snapshot": store}, model=model)
    with pytest.raises(ValueError, match=r"not finite in \['fine.final_layer.linear.bias'\].*ema.safetensors"):
        stage.sample(broken, config(num_volumes=1), tmp_path / "out", silent)
    assert hu_of(tmp_path / "out") == {}


def test_clamping_to_int16_is_counted_and_the_share_outside_the_window_too(
    checkpoints: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.zeros((1, 8, 8, 8), dtype=np.float32)
    x[0, 0, 0, 0] = 50.0  # 50 000 HU
    x[0, 0, 0, 1] = -50.0
    x[0, 0, 0, 2] = 1.5  # 1500 HU: outside the window, not clamped
    monkeypatch.setattr(stage, "_draw_batch", lambda *_: x)
    stage.sample(checkpoints[1], config(num_volumes=1), tmp_path, silent)
    hu = hu_of(tmp_path)["generated-00000"]
    assert hu[0, 0, :4].tolist() == [32767, -32768, 1500, 0]
    record = read_json(tmp_path / "samples.json")
    assert record["clipped_fraction"] == [2 / 512]
    assert record["outside_window_fraction"] == [3 / 512]


def test_raw_and_ema_weights_are_told_apart_and_keys_are_strict(checkpoints: tuple[Ref, Ref], tmp_path: Path) -> None:
    ema, info = load_model(checkpoints[1], "ema", torch.device("cpu"))
    raw, _ = load_model(checkpoints[1], "raw", torch.device("cpu"))
    for first, second in zip(ema.parameters(), raw.parameters(), strict=True):
        torch.testing.assert_close(second, 0.5 * first)
    assert (info.model, info.window, info.voxel_mm) == (TINY.to_dict(), HounsfieldWindow(), 16.0)
    from storage.checkpoints import load_tensors, save_tensors

    path = commit_checkpoint(tmp_path / "c", "global", {}).path / "ema.safetensors"
    tensors = load_tensors(path)
    tensors["surplus"] = tensors.pop("fine.final_layer.linear.bias")
    save_tensors(path, tensors)
    with pytest.raises(ValueError, match=r"(?s)fine\.final_layer\.linear\.bias.*surplus"):
        load_model(Ref(kind="checkpoint", uri=str(tmp_path / "c"), digest=""), "ema", torch.device("cpu"))


def test_only_settings_that_change_results_enter_the_key() -> None:
    assert config(batch_size=1).key_fields() == config(batch_size=4).key_fields()
    assert config(seed=1).key_fields() != config(seed=2).key_fields()


def test_bf16_draws_nearly_the_same_volumes(checkpoints: tuple[Ref, Ref], tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        stage.sample(checkpoints[1], config(num_volumes=1, precision=precision), tmp_path / precision, silent)
    full, half = (hu_of(tmp_path / name)["generated-00000"].astype(np.float64) for name in ("fp32", "bf16"))
    difference = np.abs(full - half)
    assert 0.0 < difference.mean() < 0.02 * np.abs(full).mean()  # bfloat16 keeps 8 bits of a product's factors
    assert read_json(tmp_path / "bf16" / "samples.json")["sampler"]["precision"] == "bf16"


def test_a_sampler_that_does_not_fit_the_models_process_is_refused_before_any_work(
    checkpoints: tuple[Ref, Ref], tmp_path: Path
) -> None:
    directory = tmp_path / "flow"
    inputs = {"local": checkpoints[0]}
    flow = commit_checkpoint(directory, "global", inputs, process={"name": "flow"})
    with pytest.raises(
        ValueError, match=r"'predictor-corrector' works with cosine, not .* 'flow', which is sampled by: euler, heun"
    ):
        stage.sample(flow, config(), tmp_path / "out", silent)
    with pytest.raises(ValueError, match=r"got parametrization 'image'; use 'velocity'"):
        stage.check(flow, config(sampler="euler", parametrization="image"))
    stage.check(flow, config(sampler="euler"))
    with pytest.raises(
        ValueError,
        match=r"sample\.label\) of a global transformer that was trained without labels",
    ):
        stage.check(checkpoints[1], config(label="B"))
    assert not (tmp_path / "out").exists()
