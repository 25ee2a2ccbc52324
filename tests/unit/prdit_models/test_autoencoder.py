"""The autoencoder of LDM (MONAI): published shapes, its losses against literal formulas, its critic's start, what it learns."""

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prdit_models.diffusion.sampler import Sampler
from prdit_models.families.family import FAMILIES, Batch, Given, HeldOut, Request, Training
from prdit_models.networks.autoencoder import CodecConfig, latents_of
from prdit_models.plan import Planned, Work, _works, count_parameters, memory_of
from tests.phantoms import phantom_box

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("monai") is None, reason="the extra `baselines` is not installed"
)
needs_einops = pytest.mark.skipif(importlib.util.find_spec("einops") is None, reason="MONAI's attention needs einops")

SMALL: dict[str, Any] = {
    "channels": (8, 16),
    "latent_channels": 2,
    "res_blocks": 1,
    "groups": 4,
    "critic_channels": 4,
    "critic_layers": 2,
}


def settings(**changes: Any) -> Any:
    return FAMILIES["autoencoder-kl"].settings(**{**SMALL, **changes})


def made(size: int = 16, **changes: Any) -> tuple[Any, Any, Training, dict[str, Any]]:
    """A small one with its own initial weights: family, module, training, description."""
    family, chosen = FAMILIES["autoencoder-kl"], settings(**changes)
    description = family.describe(chosen, Given(size, 2.0, None))
    torch.manual_seed(3)
    return family, family.build(description), Training(chosen, None, lr=1e-3), description


def drawn(family: Any, turn: str, description: Any, training: Training, size: int, seeds: range) -> dict[str, Tensor]:
    each = [
        family.draw(turn, description, training, (1, size, size, size), torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("size", "changes", "parameters", "latent_edge"),
    [
        (128, {}, 21_000_353, 32),
        (32, {}, 21_000_353, 8),
        (256, {"channels": (64, 128, 256, 256)}, 38_701_729, 32),
        (32, {"channels": (32, 64, 64), "res_blocks": 1, "groups": 16}, 1_363_329, 8),
        pytest.param(
            96,
            {"channels": (32, 64, 64), "latent_channels": 3, "res_blocks": 1, "groups": 16, "attention": True},
            2_299_208,
            24,
            marks=needs_einops,
        ),
    ],
)
def test_published_shapes(size: int, changes: dict[str, Any], parameters: int, latent_edge: int) -> None:
    family = FAMILIES["autoencoder-kl"]
    chosen = family.settings(**changes)
    description = family.describe(chosen, Given(size, 1.0, None))
    with torch.device("meta"):
        module: Any = family.build(description)
        volumes = torch.empty(2, 1, size, size, size)
        moments = module.codec.moments(volumes)
        rebuilt = module.codec.decode(moments.chunk(2, 1)[0])
        values = module.judged(rebuilt)
    assert count(module.codec) == parameters
    assert count(module.critic) == 2_770_977
    assert moments.shape == (2, 2 * chosen.latent_channels, *(latent_edge,) * 3)
    assert rebuilt.shape == volumes.shape
    assert values.shape == (2, 1, *(size // 8 - 2,) * 3)
    if not changes:
        network = module.codec.network
        parts = (network.quant_conv_mu, network.quant_conv_log_sigma, network.post_quant_conv)
        assert [count(part) for part in (network.encoder, network.decoder, *parts)] == [
            8_840_904,
            12_159_233,
            72,
            72,
            72,
        ]


def test_the_autoencoders_loss_is_the_published_sum() -> None:
    weights = {"kl_weight": 3e-4, "adversarial_weight": 0.5, "critic_start": 0}
    family, module, training, description = made(**weights)
    volumes = torch.rand(3, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    draws = drawn(family, "autoencoder", description, training, 16, range(3))
    assert draws["eps"].shape == (3, 2, 8, 8, 8)
    found = family.losses("autoencoder", module, Batch(volumes, draws), training)
    with torch.no_grad():
        mean, std = (part.double().numpy() for part in module.codec.network.encode(volumes))
        latents = mean + std * draws["eps"].double().numpy()
        rebuilt = module.codec.network.decode(torch.from_numpy(latents).float())
        values = module.critic(rebuilt)[-1].double().numpy()
    divergence = (0.5 * (mean**2 + std**2 - np.log(std**2) - 1)).sum(axis=(1, 2, 3, 4)).mean()
    l1 = np.abs(rebuilt.double().numpy() - volumes.double().numpy()).mean()
    adversarial = ((np.where(values > 0, values, 0.05 * values) - 1) ** 2).mean()
    assert values.min() < 0 < divergence  # the leaky slope is seen
    expected = l1 + 3e-4 * divergence + 0.5 * adversarial
    parts = {"loss": expected, "loss_reconstruction": l1, "loss_kl": divergence, "loss_adversarial": adversarial}
    assert {name: float(value.detach()) for name, value in found.items()} == pytest.approx(parts, rel=1e-5)
    squared = family.losses("autoencoder", module, Batch(volumes, draws), Training(settings(reconstruction="l2"), None))
    l2 = ((rebuilt.double().numpy() - volumes.double().numpy()) ** 2).mean()
    assert float(squared["loss_reconstruction"].detach()) == pytest.approx(l2, rel=1e-5)


def test_the_critics_loss_is_least_squares_and_reaches_the_critic_alone() -> None:
    family, module, training, description = made(critic_start=0, adversarial_weight=0.5)
    module.steps += 1
    volumes = torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    draws = drawn(family, "critic", description, training, 16, range(2))
    found = family.losses("critic", module, Batch(volumes, draws), training)
    found["loss"].backward()
    with torch.no_grad():
        rebuilt = module.codec.decode(latents_of(module.codec.moments(volumes), draws["eps"]))
        fake, real = (module.critic(seen)[-1].double().numpy() for seen in (rebuilt, volumes))
    leaky = [np.where(values > 0, values, 0.05 * values) for values in (fake, real)]
    expected = 0.5 * 0.5 * ((leaky[0] ** 2).mean() + ((leaky[1] - 1) ** 2).mean())
    assert float(found["loss"].detach()) == pytest.approx(expected, rel=1e-5)
    assert all(parameter.grad is not None for parameter in module.critic.parameters())
    assert all(parameter.grad is None for parameter in module.codec.parameters())


def test_the_critic_starts_after_its_number_of_steps() -> None:
    family, module, training, description = made(critic_start=2)
    optimizers = family.optimizers(module, training)
    volumes = torch.zeros(1, 1, 16, 16, 16)
    heard = []
    for step in range(4):
        draws = drawn(family, "autoencoder", description, training, 16, range(step, step + 1))
        first = family.losses("autoencoder", module, Batch(volumes, draws), training)
        family.losses("autoencoder", module, Batch(volumes, draws), training)  # a second call makes no step
        first["loss"].backward()
        optimizers["autoencoder"].step()
        heard.append(
            ("loss_adversarial" in first, family.losses("critic", module, Batch(volumes, draws), training) is not None)
        )
    assert heard == [(False, False), (False, False), (True, True), (True, True)]
    assert int(module.state_dict()["steps"]) == 4


def test_crops_are_boxes_of_the_volumes_at_drawn_corners() -> None:
    family, module, training, description = made(size=32, crop=16)
    draws = drawn(family, "autoencoder", description, training, 32, range(40))
    assert draws["eps"].shape == (40, 2, 8, 8, 8)
    assert (int(draws["corner"].min()), int(draws["corner"].max())) == (0, 16)
    volumes = torch.rand(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    draws = {"eps": draws["eps"][:2], "corner": torch.tensor([[0, 5, 16], [16, 3, 2]])}
    found = family.losses("autoencoder", module, Batch(volumes, draws), training)
    boxes = torch.stack([volumes[0, :, 0:16, 5:21, 16:32], volumes[1, :, 16:32, 3:19, 2:18]])
    whole = Training(settings(), None)
    expected = family.losses("autoencoder", module, Batch(boxes, {"eps": draws["eps"]}), whole)
    assert float(found["loss"].detach()) == float(expected["loss"].detach())


def test_the_psnr_of_phantoms_rises_over_a_training() -> None:
    """Twelve phantoms of 16³, two of them held out; also what a validation says is PSNR and L1 of the mean's reconstruction."""
    family, module, training, description = made(critic_start=30)
    volumes = torch.stack([torch.from_numpy(phantom_box(patient, 16) / 1000).unsqueeze(0) for patient in range(12)])
    held_out = HeldOut(volumes[10:], (0, 1))
    before = family.validate(module, held_out, training, 1)
    with torch.no_grad():
        rebuilt = module.codec.network.reconstruct(held_out.volumes)
    error = (rebuilt - held_out.volumes).double().numpy()
    psnr = np.mean([10 * np.log10(4 / (one**2).mean()) for one in error])
    assert (before["loss"], before["psnr"]) == pytest.approx((np.abs(error).mean(), psnr), rel=1e-5)
    optimizers = family.optimizers(module, training)
    for step in range(60):
        for turn, optimizer in optimizers.items():
            chosen = volumes[[(2 * step) % 10, (2 * step + 1) % 10]]
            draws = drawn(family, turn, description, training, 16, range(2 * step, 2 * step + 2))
            losses = family.losses(turn, module, Batch(chosen, draws), training)
            if losses is not None:
                module.zero_grad()
                losses["loss"].backward()
                optimizer.step()
    after = family.validate(module, held_out, training, 2)
    assert after["psnr"] > before["psnr"] + 6  # half of the error's size is 6 dB
    assert after["loss"] < before["loss"] / 2


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES["autoencoder-kl"]
    given = Given(16, 2.0, None)
    for changes, size, message in (
        (
            {"channels": (8, 16, 16)},
            18,
            r"3 levels of channels divide the edge by 4, which does not divide the view's size 18",
        ),
        ({"channels": (8, 12)}, 16, r"groups is 8, which does not divide every width of channels \[8, 12\]"),
        ({"crop": 15}, 16, r"crop is 15; expected a multiple of 2 .* at most the view's size 16"),
        ({"crop": 32}, 16, r"crop is 32"),
        ({"critic_layers": 3}, 16, r"halves the edge 3 times leaves 2 of 16 voxels, and needs 3"),
    ):
        chosen = settings(**({"groups": 8} | changes if "12" in message else changes))
        with pytest.raises(ValueError, match=message):
            family.describe(chosen, Given(size, 2.0, None))
    for changes, message in (({"kl_weight": -1.0}, "kl_weight is -1"), ({"critic_layers": 0}, "critic_layers is 0")):
        with pytest.raises(ValueError, match=message):
            settings(**changes)
    with pytest.raises(ValueError, match="label_column is set"):
        family.describe(settings(), Given(16, 2.0, None, num_classes=2))
    with pytest.raises(ValueError, match="Train a latent-diffusion on it"):
        family.check({}, None, Request(Sampler()))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need monai of the extra `baselines`: pip install 'prdit\[baselines\]'\.$"):
        family.describe(settings(), given)
    with pytest.raises(ValueError, match="need monai and einops of the extra"):
        family.describe(settings(attention=True), given)


@pytest.mark.parametrize("changes", [{}, {"crop": 16}])
def test_a_training_is_planned_with_its_critic(changes: dict[str, Any]) -> None:
    """In bytes: weights, two moments and an average of each; activations grow with the batch, and shrink with a crop."""
    family, module, training, description = made(32, critic_start=100, **changes)
    planned = Planned(family, description, training, 32)
    assert count_parameters(planned) == {"all": count(module), "trainable": count(module)}
    few, more = (memory_of(Work("", "train"), planned, batch) for batch in (2, 4))
    assert (few.weights, few.moments, few.ema) == (4 * count(module), 8 * count(module), 4 * count(module))
    volume = 4 * (changes.get("crop", 32)) ** 3
    assert (
        more.activations - few.activations > 2 * 8 * 10 * volume
    )  # eight channels at the full edge, ten times at least
    assert more.activations - few.activations < 2 * 8 * 60 * volume
    assert [work.what for work in _works("codec", planned)] == ["train"] * 4


def test_a_shape_survives_json() -> None:
    config = CodecConfig(size=32, channels=(8, 16), groups=4, attention=True)
    assert CodecConfig.from_dict(config.to_dict()) == config
    assert (config.factor, config.latent_edge) == (2, 16)
