"""Several optimisers in turn, buffers, and a start of another family: the toy families of another package, in this process."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prdit_models.families.family import FAMILIES
from storage.artifacts import Ref
from storage.checkpoints import load_tensors
from tasks.model.checkpoint import load_model
from tasks.train.__main__ import _commit
from tasks.train.config import TrainingConfig
from tasks.train.loop import Stopped, Training
from tasks.train.setup import assemble
from tests.factories import make_data, train_spec

OUTSIDER = Path(__file__).resolve().parents[2] / "integration" / "outsider"
SHORT: dict[str, Any] = {"steps": 8, "batch_size": 2, "lr": 1e-2, "val_every": 4, "checkpoint_every": 3, "log_every": 1}


@pytest.fixture(scope="module", autouse=True)
def toy() -> Any:
    """The package's families under their names, as its entry points would give them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(OUTSIDER)
        from toy_ct import codec, latent

        patch.setitem(FAMILIES._found, "toy-codec", codec.FAMILY)
        patch.setitem(FAMILIES._found, "toy-latent", latent.FAMILY)
        yield latent
    for name in [name for name in sys.modules if name.startswith("toy_ct")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def codec(data: tuple[Ref, Ref], toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Ref:
    config = TrainingConfig.model_validate({**SHORT, "family": "toy-codec", "view": {"size": 16, "edge": 16}})
    spec = train_spec(config, *data, tmp_path_factory.mktemp("codec"))
    Training(assemble(spec), spec).run(lambda: False)
    return _commit(spec)


def latent_config(**changes: Any) -> TrainingConfig:
    values = {"family": "toy-latent", "start": "codec", "process": {"prediction": "image"}}
    return TrainingConfig.model_validate({**SHORT, **values, **changes})


def test_a_resume_has_the_same_bits_in_parameters_and_buffers(data: Any, codec: Ref, tmp_path: Path) -> None:
    whole, parts = (train_spec(latent_config(), *data, tmp_path / name, codec) for name in ("whole", "parts"))
    Training(assemble(whole), whole).run(lambda: False)
    training = Training(assemble(parts), parts)
    with pytest.raises(Stopped):
        training.run(lambda: training.progress.step >= 5)
    Training(assemble(parts), parts).run(lambda: False)
    assert _commit(parts).digest == _commit(whole).digest
    weights = load_tensors(whole.directory / "model.safetensors")
    assert (weights["turns"].shape, weights["turns"].dtype, float(weights["turns"])) == ((), np.float64, 8.0)
    model, _ = load_model(_commit(whole), "ema", torch.device("cpu"))
    assert float(model.turns) == 8.0  # type: ignore[arg-type]


def test_every_optimiser_moves_its_own_part(data: Any, codec: Ref, tmp_path: Path) -> None:
    config = latent_config(settings={"critic_every": 3, "critic_lr": 0.1})
    spec = train_spec(config, *data, tmp_path / "run", codec)
    training = Training(assemble(spec), spec)
    before = {name: value.detach().clone() for name, value in training.arrays.parameters.items()}
    moved = []
    for _ in range(3):
        training.train_step()
        moved.append(
            {name.split(".")[0] for name, p in training.arrays.parameters.items() if not torch.equal(p, before[name])}
        )
        before = {name: value.detach().clone() for name, value in training.arrays.parameters.items()}
    assert moved == [{"denoiser"}, {"denoiser"}, {"denoiser", "critic"}]
    assert not any(name.startswith("codec.") for name in before)


def test_a_turn_without_finite_loss_does_not_undo_the_others(
    data: Any, codec: Ref, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The critic is skipped; the denoiser has stepped, so averages and counts follow it."""
    losses = toy.LatentFamily.losses

    def broken(self: Any, turn: str, *arguments: Any) -> Any:
        found = losses(self, turn, *arguments)
        return {"loss": found["loss"] * float("nan")} if turn == "critic" else found

    monkeypatch.setattr(toy.LatentFamily, "losses", broken)
    spec = train_spec(latent_config(ema_decay=0.0), *data, tmp_path / "run", codec)
    training = Training(assemble(spec), spec)
    values = [training.train_step() for _ in range(3)]
    assert (training.progress.step, training.progress.updates) == (3, 3)
    assert all(np.isfinite(point["loss"]) and point["critic_skipped"] == 1.0 for point in values)
    assert all("critic_loss" not in point for point in values)
    torch.testing.assert_close(
        training.arrays.ema["denoiser.weight"], training.arrays.parameters["denoiser.weight"].detach()
    )
    spec = train_spec(latent_config(steps=200), *data, tmp_path / "long", codec)
    training = Training(assemble(spec), spec)
    with pytest.raises(RuntimeError, match="20 steps in a row"):
        training.run(lambda: False)


def test_a_first_turn_without_a_step_lends_its_name_to_no_other(
    data: tuple[Ref, Ref], codec: Ref, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = toy.LatentFamily.losses
    monkeypatch.setattr(
        toy.LatentFamily, "losses", lambda self, turn, *rest: None if turn == "denoiser" else losses(self, turn, *rest)
    )
    spec = train_spec(latent_config(), *data, tmp_path / "run", codec)
    training = Training(assemble(spec), spec)
    assert set(training.train_step()) == {"critic_loss", "critic_grad_norm"}
    assert (training.progress.updates, training.progress.last_loss) == (
        1,
        None,
    )  # the spike guard's mean is the first turn's


def test_a_turn_that_steps_with_a_part_of_its_batches_is_refused(
    data: tuple[Ref, Ref], codec: Ref, tmp_path: Path
) -> None:
    spec = train_spec(latent_config(accumulation=2, settings={"critic_every": 2}), *data, tmp_path / "run", codec)
    training = Training(assemble(spec), spec)
    training.train_step()
    with pytest.raises(ValueError, match=r"no step of its turn 'critic' with part 2 .*Set accumulation: 1"):
        training.train_step()  # the toy counts calls


def test_the_best_weights_come_with_their_buffers(data: Any, codec: Ref, tmp_path: Path) -> None:
    spec = train_spec(latent_config(select="best", lr=0.5), *data, tmp_path / "run", codec)
    Training(assemble(spec), spec).run(lambda: False)
    step = json.loads((spec.directory / "checkpoint.json").read_text())["step"]
    assert step < 8  # a rate that ruins the weights
    for name in ("model", "ema"):
        assert float(load_tensors(spec.directory / f"{name}.safetensors")["turns"]) == step


@pytest.mark.parametrize(
    ("method", "result", "message"),
    [
        (
            "losses",
            {"critic": 1.0},
            r"'toy-latent' gave \['critic'\] for its turn 'denoiser'; what it minimises must be",
        ),
        ("validate", {"mse": 1.0}, r"'toy-latent' validates to \['mse'\]; expected 'loss'"),
        ("optimizers", {"denoiser": None}, r"gave optimisers \['denoiser'\] for its turns \['critic', 'denoiser'\]"),
        ("describe", {"weight": torch.zeros(1)}, "describes its model by something that is no JSON object"),
        ("describe", ["codec"], r"no JSON object \(got list\)"),
    ],
)
def test_a_family_that_breaks_its_promise_is_named(
    data: Any,
    codec: Ref,
    toy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    result: Any,
    message: str,
) -> None:
    monkeypatch.setattr(toy.LatentFamily, method, lambda *_, **__: result)
    spec = train_spec(latent_config(), *data, tmp_path / "run", codec)

    def train() -> None:
        Training(assemble(spec), spec).run(lambda: False)

    with pytest.raises(ValueError, match=message):
        train()


def test_a_parameter_in_two_optimisers_is_refused(
    data: Any, codec: Ref, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = lambda _, module, __: dict.fromkeys(("denoiser", "critic"), torch.optim.SGD(module.critic.parameters(), 0.1))  # noqa: E731
    monkeypatch.setattr(toy.LatentFamily, "optimizers", both)
    spec = train_spec(latent_config(), *data, tmp_path / "run", codec)
    with pytest.raises(ValueError, match="share a parameter, or have one that is not trained"):
        Training(assemble(spec), spec)
