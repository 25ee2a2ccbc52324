"""Both stages of LDM (MONAI) by the real loop: encoded volumes on disk, resume to the bit, two ranks, what is refused."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage.artifacts import Ref
from storage.checkpoints import load_tensors
from storage.encoded import forget_encoded
from storage.errors import InputError
from storage.volume_store import VolumeStore
from tasks.model.checkpoint import load_model
from tasks.run.launchers.config import LauncherConfig
from tasks.run.stage import StageRun
from tasks.train.config import TrainingConfig
from tasks.train.data import ViewDataset
from tasks.train.launch import launch
from tasks.train.loop import Stopped, Training
from tasks.train.setup import assemble
from tests.factories import make_data, train_spec, trained

pytestmark = pytest.mark.skipif(find_spec("monai") is None, reason="the extra `baselines` is not installed")
needs_einops = pytest.mark.skipif(find_spec("einops") is None, reason="MONAI's attention needs einops")
SHORT: dict[str, Any] = {
    "steps": 6,
    "batch_size": 2,
    "lr": 1e-3,
    "val_every": 3,
    "checkpoint_every": 2,
    "log_every": 1,
    "num_threads": 1,
    "device": "cpu",
}
CODEC = {
    "channels": (4, 4),
    "latent_channels": 1,
    "res_blocks": 1,
    "groups": 2,
    "critic_channels": 2,
    "critic_layers": 2,
}
DENOISER = {"channels": (8, 8), "attention": (False, False), "head_channels": 8, "res_blocks": 1, "groups": 4}
PROCESS = {"name": "ddpm", "schedule": "scaled-linear", "beta_start": 0.0015, "beta_end": 0.0195, "prediction": "noise"}


def codec_config(settings: dict[str, Any] | None = None, **changes: Any) -> TrainingConfig:
    values = {"family": "autoencoder-kl", "view": {"size": 16, "edge": 16}}
    own = {**CODEC, "critic_start": 3, **(settings or {})}
    return TrainingConfig.model_validate({**SHORT, **values, "settings": own, **changes})


def latent_config(settings: dict[str, Any] | None = None, **changes: Any) -> TrainingConfig:
    values = {"family": "latent-diffusion", "start": "codec", "start_weights": "raw", "process": PROCESS}
    return TrainingConfig.model_validate({**SHORT, **values, "settings": {**DENOISER, **(settings or {})}, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    return make_data(tmp_path_factory.mktemp("data"), 5)


@pytest.fixture(scope="module")
def codec(data: tuple[Ref, Ref], tmp_path_factory: pytest.TempPathFactory) -> Ref:
    return trained(train_spec(codec_config(), *data, tmp_path_factory.mktemp("codec")))


def stopped_and_resumed(config: TrainingConfig, data: tuple[Ref, Ref], directory: Path, start: Ref | None) -> Ref:
    spec = train_spec(config, *data, directory, start)
    training = Training(assemble(spec), spec)
    with pytest.raises(Stopped):
        training.run(lambda: training.progress.step >= 4)
    return trained(spec)


def origins(store: Path) -> list[Path]:
    return sorted(store.with_name(store.name + ".encoded").iterdir())


def test_an_autoencoder_that_is_resumed_has_the_same_bits(data: Any, codec: Ref, tmp_path: Path) -> None:
    """It is stopped after step 4; the critic starts with that step: both optimisers and the count are restored."""
    assert stopped_and_resumed(codec_config(), data, tmp_path / "parts", None).digest == codec.digest
    model, _ = load_model(codec, "raw", torch.device("cpu"))
    assert int(model.steps) == 6  # type: ignore[arg-type]
    points = [json.loads(line) for line in (codec.path / "metrics.jsonl").read_text().splitlines()]
    assert {"val/loss", "val/loss_psnr", "val/loss_kl"} <= points[-1].keys() | points[-2].keys()


def test_the_critic_counts_steps_and_not_batches(data: Any, tmp_path: Path) -> None:
    spec = train_spec(codec_config(accumulation=2), *data, tmp_path / "run")
    training = Training(assemble(spec), spec)
    heard = ["critic_loss" in training.train_step() for _ in range(5)]
    assert heard == [False, False, False, True, True]


def started(spec: Any, ranks: int) -> Ref:
    run = StageRun(spec.directory, None, "", {})
    return launch(spec, run, lambda *_: None, LauncherConfig(ranks_per_node=ranks))


def test_two_ranks_train_an_autoencoder_as_one_does(data: Any, codec: Ref, tmp_path: Path) -> None:
    together = started(train_spec(codec_config(), *data, tmp_path / "two"), 2)
    found, expected = (load_tensors(ref.path / "model.safetensors") for ref in (together, codec))
    assert int(found["steps"]) == 6
    for key in expected:  # only the order of sums differs
        np.testing.assert_allclose(found[key], expected[key], atol=2e-4, err_msg=key)


@needs_einops
def test_two_ranks_train_on_latents_as_one_does(data: Any, codec: Ref, tmp_path: Path) -> None:
    alone = trained(train_spec(latent_config(), *data, tmp_path / "one", codec))
    for folder in origins(data[0].path):
        shutil.rmtree(folder)  # the ranks encode, each its share
    together = started(train_spec(latent_config(), *data, tmp_path / "two", codec), 2)
    found, expected = (load_tensors(ref.path / "model.safetensors") for ref in (together, alone))
    np.testing.assert_array_equal(found["scale"], expected["scale"])
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], atol=2e-4, err_msg=key)


@needs_einops
def test_latents_are_encoded_once_and_a_resume_has_the_same_bits(
    data: Any, codec: Ref, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(train_spec(latent_config(), *data, tmp_path / "whole", codec))
    (folder,) = origins(data[0].path)
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [f"v{n}.safetensors" for n in range(5)]
    autoencoder: Any = load_model(codec, "raw", torch.device("cpu"))[0]
    model, info = load_model(whole, "ema", torch.device("cpu"))
    volume = ViewDataset(VolumeStore.open(data[0].path), ["v2"], info.view, info.window, 0).get(0).unsqueeze(0)
    mean, std = autoencoder.codec.network.encode(volume)
    kept = load_tensors(folder / "v2.safetensors")["encoded"]
    np.testing.assert_allclose(kept, torch.cat([mean, 2 * std.log()], 1)[0].numpy(), rtol=1e-5, atol=1e-6)
    every = np.stack([load_tensors(folder / f"v{n}.safetensors")["encoded"] for n in range(4)]).astype(np.float64)
    deviation = np.sqrt((every[:, 0] ** 2 + np.exp(every[:, 1])).mean() - every[:, 0].mean() ** 2)
    assert float(model.scale) == pytest.approx(1 / deviation, rel=1e-5)  # type: ignore[arg-type]

    def not_again(*_: Any) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr("prdit_models.networks.autoencoder.Codec.moments", not_again)
    assert stopped_and_resumed(latent_config(), data, tmp_path / "parts", codec).digest == whole.digest


@needs_einops
def test_other_weights_another_snapshot_and_damage_are_encoded_for_themselves(
    data: Any, codec: Ref, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec(latent_config(), *data, tmp_path / "one", codec)
    first = assemble(spec)
    known = set(origins(data[0].path))
    assemble(train_spec(latent_config(start_weights="ema"), *data, tmp_path / "two", codec))
    (folder,) = known
    assert len(set(origins(data[0].path)) - known) == 1
    path, expected = folder / "v1.safetensors", load_tensors(folder / "v1.safetensors")["encoded"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(
        OSError, match=r"What volume v1 was encoded to is missing in .* or damaged\. Start the training again"
    ):
        first.data.get(1)
    shutil.copy(folder / "v0.safetensors", folder / "v2.safetensors")  # sealed for another volume
    again = assemble(spec)
    np.testing.assert_array_equal(load_tensors(path)["encoded"], expected)
    assert not torch.equal(again.data.get(2), again.data.get(0))


@needs_einops
@pytest.mark.parametrize("part", ["snapshot", "encoder"])
def test_what_was_encoded_of_another_snapshot_or_autoencoder_is_refused_by_name(
    data: Any, codec: Ref, tmp_path: Path, part: str
) -> None:
    """A folder that was renamed to that of this training."""
    spec = train_spec(latent_config(), *data, tmp_path / "run", codec)
    assemble(spec)
    (folder,) = [at for at in origins(data[0].path) if json.loads((at / "origin.json").read_text())["weights"] == "raw"]
    described = json.loads((folder / "origin.json").read_text())
    right, wrong = described[part], "sha256:" + "1" * 64
    (folder / "origin.json").write_text(json.dumps({**described, part: wrong}))
    with pytest.raises(InputError, match=rf"not those of this training: {part} {wrong} instead of {right}.*remove the"):
        assemble(spec)
    shutil.rmtree(folder)


@needs_einops
def test_volumes_that_are_changed_are_encoded_at_every_step(data: Any, codec: Ref, tmp_path: Path) -> None:
    config = latent_config(augmentation={"flip": 1.0})
    training = Training(assemble(spec := train_spec(config, *data, tmp_path / "run", codec)), spec)
    assert training.assembly.data.shape == (1, 16, 16, 16)
    assert training.assembly.held_out.volumes.shape == (1, 2, 8, 8, 8)
    assert float(training.assembly.module.scale) != 1.0  # type: ignore[arg-type]
    assert np.isfinite(training.train_step()["loss"])


@needs_einops
def test_a_forgotten_patients_latents_are_deleted(data: Any, codec: Ref, tmp_path: Path) -> None:
    assemble(train_spec(latent_config(), *data, tmp_path / "run", codec))
    store = VolumeStore.open(data[0].path)
    forget_encoded(store, ["v1", "v3"])
    left = {path.name for folder in origins(store.path) for path in folder.glob("*.safetensors")}
    assert left == {"v0.safetensors", "v2.safetensors", "v4.safetensors"}
    with pytest.raises(ValueError, match=r"\.\."):
        forget_encoded(store, ["../v0"])


def test_a_size_that_the_levels_do_not_divide_is_refused_before_anything_runs(data: Any, tmp_path: Path) -> None:
    config = codec_config(settings={"channels": (4,) * 6})
    spec = train_spec(config, *data, tmp_path / "run")
    with pytest.raises(
        InputError, match=r"6 levels of channels divide the edge by 32, which does not divide the view's size 16"
    ):
        assemble(spec)
