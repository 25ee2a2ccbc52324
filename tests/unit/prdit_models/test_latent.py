"""Latent diffusion (LDM, MONAI): published shapes, its losses, the scale of its latents, sampling, and that it learns two modes."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prdit_models.conditions import Conditions
from prdit_models.diffusion.ddpm import DDPMProcess
from prdit_models.diffusion.sampler import Sampler
from prdit_models.diffusion.sampling import sample
from prdit_models.families.family import FAMILIES, Batch, Given, HeldOut, Request, Training
from prdit_models.families.latent import PUBLISHED_PROCESS
from prdit_models.plan import Planned, Work, _works, count_parameters, memory_of

MISSING = [name for name in ("monai", "einops") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the extra `baselines` is not installed: {MISSING}")

SMALL_CODEC: dict[str, Any] = {
    "channels": (8, 8),
    "latent_channels": 2,
    "res_blocks": 1,
    "groups": 4,
    "critic_channels": 4,
    "critic_layers": 1,
}
SMALL: dict[str, Any] = {
    "channels": (16, 16),
    "attention": (False, True),
    "head_channels": 8,
    "res_blocks": 1,
    "groups": 8,
}
TINY = Sampler("ddim", 4)


def below(size: int = 8, **changes: Any) -> tuple[dict[str, Any], Any]:
    """Description and settings of an autoencoder."""
    family = FAMILIES["autoencoder-kl"]
    settings = family.settings(**{**SMALL_CODEC, **changes})
    return family.describe(settings, Given(size, 2.0, None)), settings


def made(size: int = 8, **changes: Any) -> tuple[Any, Any, Training, dict[str, Any]]:
    """A small one on a random autoencoder: family, module (its zero convolutions filled), training, description."""
    family, (start, _) = FAMILIES["latent-diffusion"], below(size)
    settings = family.settings(**{**SMALL, **changes})
    description = family.describe(settings, Given(size, 2.0, PUBLISHED_PROCESS, start=start))
    torch.manual_seed(3)
    lower, module = FAMILIES["autoencoder-kl"].build(start), family.build(description)
    family.begin(module, settings, lower.state_dict())
    family.freeze(module, settings)
    with torch.no_grad():
        for parameter in module.denoiser.parameters():  # type: ignore[union-attr]
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return family, module, Training(settings, PUBLISHED_PROCESS, lr=1e-3), description


def drawn(family: Any, description: Any, training: Training, seeds: range) -> dict[str, Tensor]:
    shape = (1, *(description["codec"]["size"],) * 3)
    each = [family.draw("main", description, training, shape, torch.Generator().manual_seed(seed)) for seed in seeds]
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


def some_volumes(count: int, size: int = 8) -> Tensor:
    return torch.rand(count, 1, size, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("size", "codec", "changes", "parameters"),
    [
        (128, {}, {}, 191_230_472),
        (32, {}, {}, 191_230_472),
        (
            32,
            {"channels": (32, 64, 64), "res_blocks": 1, "groups": 16},
            {"channels": (64, 128, 256), "res_blocks": 1},
            28_983_112,
        ),
        (
            96,
            {"channels": (32, 64, 64), "latent_channels": 3, "res_blocks": 1, "groups": 16, "attention": True},
            {"channels": (32, 64, 64), "res_blocks": 1},
            2_974_051,
        ),
    ],
)
def test_published_shapes(size: int, codec: dict[str, Any], changes: dict[str, Any], parameters: int) -> None:
    family = FAMILIES["latent-diffusion"]
    first = FAMILIES["autoencoder-kl"]
    start = first.describe(first.settings(**codec), Given(size, 1.0, None))
    chosen = family.settings(**changes)
    chosen = family.settings(**{**changes, "head_channels": 32 if 32 in chosen.channels else 64})
    description = family.describe(chosen, Given(size, 1.0, PUBLISHED_PROCESS, start=start))
    with torch.device("meta"):
        module: Any = family.build(description)
        shape = (2, start["codec"]["latent_channels"], *(size // 4,) * 3)
        found = module(torch.empty(shape), torch.zeros(2, dtype=torch.int64))
        volumes = module.decode(found)
    assert count(module.denoiser) == parameters
    assert count(module) == parameters + count(module.codec)
    assert (found.shape, volumes.shape) == (shape, (2, 1, size, size, size))
    assert family.encoded_shape(description) == (2 * shape[1], *shape[2:])
    assert family.deviations(description, PUBLISHED_PROCESS)  # type: ignore[attr-defined]


def test_its_loss_is_that_of_the_noise_on_scaled_draws_of_the_latents() -> None:
    """Against the formulas of Ho et al. 2020 and Kingma & Welling 2014, in float64."""
    family, module, training, description = made()
    module.scale.fill_(1.7)
    volumes, draws = some_volumes(3), drawn(family, description, training, range(3))
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "t": (3,),
        "eps": (3, 2, 4, 4, 4),
        "latent_eps": (3, 2, 4, 4, 4),
    }
    both = torch.stack([draws["eps"], draws["latent_eps"]]).flatten(2).transpose(0, 1).flatten(0, 1)
    assert torch.corrcoef(both).fill_diagonal_(0).abs().max() < 0.4  # six independent streams of unit noise
    assert both.std(1) == pytest.approx(torch.ones(6), abs=0.25)
    found = family.losses("main", module, Batch(volumes, draws), training)
    mean, std = (part.detach().double() for part in module.codec.network.encode(volumes))
    latents = 1.7 * (mean + std * draws["latent_eps"].double())
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    alpha_bars = torch.from_numpy(np.cumprod(1 - betas))[draws["t"]].view(3, 1, 1, 1, 1)
    assert np.cumprod(1 - betas)[-1] == pytest.approx(1.42e-4, rel=5e-3)
    x_t = alpha_bars.sqrt() * latents + (1 - alpha_bars).sqrt() * draws["eps"].double()
    with torch.no_grad():
        predicted = module.denoiser(x_t.float(), draws["t"])
    expected = (predicted.double() - draws["eps"].double()).square().mean()
    assert float(found["loss"].detach()) == pytest.approx(float(expected), rel=1e-5)
    stored = family.losses("main", module, Batch(family.encode(module, volumes), draws), training)
    assert float(stored["loss"].detach()) == float(found["loss"].detach())
    found["loss"].backward()
    assert all(parameter.grad is None for parameter in module.codec.parameters())
    assert all(parameter.grad is not None for parameter in module.denoiser.parameters())


def test_a_fresh_network_predicts_no_noise_and_validates_alike() -> None:
    family, filled, training, description = made()
    module = family.build(description)
    family.begin(module, training.settings, filled.state_dict())
    volumes, draws = some_volumes(2), drawn(family, description, training, range(2))
    found = family.losses("main", module, Batch(volumes, draws), training)
    assert float(found["loss"].detach()) == pytest.approx(float(draws["eps"].double().square().mean()), rel=1e-6)
    held_out = HeldOut(volumes, (0, 1))
    once = family.validate(filled, held_out, training, 1)
    stored = family.validate(filled, HeldOut(family.encode(filled, volumes), (0, 1)), training, 2)
    assert once == pytest.approx(stored, rel=1e-6)
    assert family.validate(filled, held_out, training, 1) == once
    swapped = family.validate(filled, HeldOut(volumes.flip(0), (1, 0)), training, 1)
    assert swapped == pytest.approx(once, rel=1e-6)  # noise belongs to the place, not to the position


def test_the_scale_is_one_over_the_deviation_of_drawn_latents() -> None:
    family, module, training, _ = made(scale_volumes=5)
    moments = family.encode(module, some_volumes(6))
    family.prepare(module, training.settings, iter(moments))
    mean, std = moments[:5].chunk(2, 1)[0].double(), (0.5 * moments[:5].chunk(2, 1)[1].double()).exp()
    draws = torch.randn(2000, *mean.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert float(module.scale) == pytest.approx(1 / float((mean + std * draws).std()), rel=2e-3)
    first = module.scale.clone()
    family.prepare(module, training.settings, iter(moments[:5]))
    assert torch.equal(module.scale, first)  # the sixth was not among them
    family.prepare(module, training.settings, iter(moments[:2]))  # fewer than asked for: all there are
    assert not torch.equal(module.scale, first)
    assert "scale" in module.state_dict()
    flat = torch.cat([torch.ones(2, 4, 4, 4), torch.full((2, 4, 4, 4), -torch.inf)])
    with pytest.raises(ValueError, match="the autoencoder makes the same of all of them"):
        family.prepare(module, training.settings, [flat])


def test_it_begins_with_the_autoencoder_and_without_its_critic() -> None:
    family, module, training, _ = made()
    start, _ = below()
    lower: Any = FAMILIES["autoencoder-kl"].build(start)
    family.begin(module, training.settings, lower.state_dict())
    assert all(torch.equal(value, lower.codec.state_dict()[name]) for name, value in module.codec.state_dict().items())
    assert not any("critic" in name for name in module.state_dict())
    trained = {name.split(".")[0] for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained == {"denoiser"}
    with pytest.raises(ValueError, match="must be those of the autoencoder"):
        family.begin(module, training.settings, {"codec.network.x": torch.zeros(1)})


@pytest.mark.parametrize("sampler", [TINY, Sampler("ancestral", 5)])
def test_a_volume_is_the_decoded_sample_and_depends_on_its_own_generator(sampler: Sampler) -> None:
    family, module, _, description = made()
    module.eval()
    module.scale.fill_(2.0)
    request = Request(sampler)
    together = family.generate(module, PUBLISHED_PROCESS, request, [torch.Generator().manual_seed(s) for s in (1, 2)])
    alone = family.generate(module, PUBLISHED_PROCESS, request, [torch.Generator().manual_seed(2)])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)
    latents = sample(
        module,
        PUBLISHED_PROCESS,
        sampler,
        volume_size=4,
        generators=[torch.Generator().manual_seed(2)],
        in_channels=2,
    )
    with torch.no_grad():
        expected = module.codec.network.decode(latents.x / 2.0)
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)
    assert float(alone.std()) > 0
    family.check(description, PUBLISHED_PROCESS, request)
    assert family.evaluations(PUBLISHED_PROCESS, request) == sampler.num_steps


def test_checkpointing_and_plain_attention_change_nothing() -> None:
    family, module, training, description = made()
    batch = Batch(some_volumes(2), drawn(family, description, training, range(2)))
    found = {}
    for options in ({}, {"checkpointing": True}, {"attention": "plain"}):
        other = family.build(description, **options)
        other.load_state_dict(module.state_dict())
        family.freeze(other, training.settings)
        loss = family.losses("main", other, batch, training)["loss"]
        loss.backward()
        found[str(options)] = (loss.detach(), *(p.grad for p in other.denoiser.parameters()))
    for others in list(found.values())[1:]:
        torch.testing.assert_close(others, found["{}"], rtol=1e-3, atol=1e-6)


def test_training_is_planned_on_latents_and_sampling_with_the_decoder() -> None:
    family, module, training, description = made(32)
    planned = Planned(family, description, training, 32)
    assert count_parameters(planned) == {"all": count(module), "trainable": count(module.denoiser)}
    assert planned.shown(3).shape == (3, 4, 16, 16, 16)
    few, more = (memory_of(Work("", "train"), planned, batch) for batch in (2, 4))
    assert (few.weights, few.moments) == (4 * count(module), 8 * count(module.denoiser))
    assert more.activations > few.activations
    assert [work.what for work in _works("latent", planned)] == ["train"] * 4 + ["sample"] * 2
    drawn = memory_of(Work("", "sample"), planned, 2)
    assert drawn.activations > 2 * 8 * 32**3 * 4  # the decoder's eight channels at the full edge


def test_what_it_refuses() -> None:
    family, (start, _) = FAMILIES["latent-diffusion"], below()
    given = Given(8, 2.0, PUBLISHED_PROCESS, start=start)
    for changes, message in (
        (
            {"channels": (16,) * 4, "attention": (False,) * 4},
            r"divide the edge by 8, .* the 4 of the latents .* multiple of 16",
        ),
        ({"attention": (True,)}, "attention has 1 entries for 2 levels"),
        ({"head_channels": 7}, r"head_channels is 7, which does not divide the widths \[16\]"),
        ({"groups": 3}, r"groups is 3, which does not divide every width of channels \[16, 16\]"),
    ):
        with pytest.raises(ValueError, match=message):
            family.describe(family.settings(**{**SMALL, **changes}), given)
    with pytest.raises(ValueError, match="scale_volumes is 0"):
        family.settings(scale_volumes=0)
    with pytest.raises(ValueError, match="label_column is set"):
        family.describe(family.settings(**SMALL), Given(8, 2.0, PUBLISHED_PROCESS, 2, start))
    with pytest.raises(ValueError, match="A label was asked for"):
        family.check({}, PUBLISHED_PROCESS, Request(TINY, conditions=Conditions(labels=torch.tensor([1]))))


def test_what_a_row_of_a_table_says_of_it() -> None:
    family, _, _, description = made()
    said = family.deviations(description, DDPMProcess(clip=True))
    assert any("No perceptual term" in sentence for sentence in said)
    assert "Process: schedule linear (published: scaled-linear)." in said
    assert not any("not clipped" in sentence for sentence in said)
    published = family.deviations(description, PUBLISHED_PROCESS)
    assert any("not clipped" in sentence for sentence in published)
    assert not any(sentence.startswith("Process") for sentence in published)
    shape = (
        "Autoencoder of another shape: channels 8, 8 (published: 64, 128, 256); latent channels 2 (published: 8); res blocks 1 "
        "(published: 2); groups 4 (published: 32)."
    )
    assert shape in published


def minimise(
    family: Any, trained: tuple[Any, Training, Any], volumes: Tensor, batch: int, steps: int
) -> dict[str, Tensor]:
    """Batches drawn with replacement; returns the average of the parameters (a decay of 0.98, with a start)."""
    module, training, description = trained
    optimizers = family.optimizers(module, training)
    shape = tuple(volumes.shape[1:])
    average = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(volumes), (batch,), generator=generator)
        for turn, optimizer in optimizers.items():
            each = [family.draw(turn, description, training, shape, generator) for _ in range(batch)]
            draws = {name: torch.stack([one[name] for one in each]) for name in each[0]}
            losses = family.losses(turn, module, Batch(volumes[chosen], draws), training)
            if losses is not None:
                module.zero_grad()
                losses["loss"].backward()
                optimizer.step()
        for name, parameter in module.named_parameters():
            average[name].lerp_(parameter.detach(), max(0.02, 1 / (1 + step)))
    return average


def test_it_learns_two_modes_and_their_weights() -> None:
    """A step along the first axis, up in 3 of 4 volumes and down in 1 of 4, with a little noise: stage A, stage B, sampling."""
    step = torch.cat([torch.full((4, 8, 8), -0.6), torch.full((4, 8, 8), 0.6)])
    noise = 0.05 * torch.randn(64, 1, 8, 8, 8, generator=torch.Generator().manual_seed(2))
    volumes = torch.stack([step if index % 4 else -step for index in range(64)]).unsqueeze(1) + noise
    start, settings = below(channels=(8, 8, 8), latent_channels=1, critic_start=60, adversarial_weight=1e-3)
    lower, family = FAMILIES["autoencoder-kl"], FAMILIES["latent-diffusion"]
    torch.manual_seed(0)
    codec = lower.build(start)
    minimise(lower, (codec, Training(settings, None, lr=5e-3), start), volumes, 16, 80)
    chosen = family.settings(channels=(32,), attention=(True,), head_channels=16, res_blocks=1, groups=8)
    description = family.describe(chosen, Given(8, 2.0, PUBLISHED_PROCESS, start=start))
    module: Any = family.build(description)
    family.begin(module, chosen, codec.state_dict())
    family.freeze(module, chosen)
    encoded = family.encode(module, volumes)  # type: ignore[attr-defined]
    family.prepare(module, chosen, encoded)  # type: ignore[attr-defined]
    training = Training(chosen, PUBLISHED_PROCESS, lr=1e-3)
    module.load_state_dict(minimise(family, (module, training, description), encoded, 64, 200), strict=False)
    generators = [torch.Generator().manual_seed(seed) for seed in range(128)]
    found = family.generate(module.eval(), PUBLISHED_PROCESS, Request(Sampler("ddim", 25)), generators).detach()
    along = (found * step).mean((1, 2, 3, 4)) / 0.36  # 1: up, -1: down
    up = along > 0
    assert float(up.float().mean()) == pytest.approx(0.75, abs=0.1)
    for mode, sign in ((along[up], 1.0), (along[~up], -1.0)):
        assert float(mode.mean()) == pytest.approx(sign, abs=0.1)
        assert float((mode - sign).abs().quantile(0.9)) < 0.15  # volumes of a mode, not of the middle
    nearest = torch.where(up.view(-1, 1, 1, 1, 1), step, -step)
    assert float((found - nearest).abs().mean()) < 0.08
