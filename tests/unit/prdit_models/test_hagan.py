"""HA-GAN as a family: losses against closed forms, what each turn trains, draws, validation, drawing, two modes learned."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prdit_models.conditions import Conditions
from prdit_models.diffusion.sampler import Sampler
from prdit_models.families.family import FAMILIES, Batch, Given, HeldOut, Request, Training
from prdit_models.families.hagan import FAMILY, HAGANSettings, energy_scores
from prdit_models.networks.hagan import HAGAN, Generator, Shape, slices, spectrally_normalised
from prdit_models.plan import Planned, Work, count_flops, count_parameters, memory_of
from prdit_models.tracing import MemoryTrace

SMALL = HAGANSettings(width_divisor=16)


def made(settings: HAGANSettings = SMALL, size: int = 32, seed: int = 1) -> tuple[HAGAN, Training, dict[str, Any]]:
    torch.manual_seed(seed)
    description = FAMILY.describe(settings, Given(size, 8.0, None))
    module = FAMILY.build(description)
    assert isinstance(module, HAGAN)
    return module, Training(settings, None, lr=1e-3), description


def volumes(number: int, size: int = 32, seed: int = 2) -> Tensor:
    return torch.randn(number, 1, size, size, size, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def drawn(turn: str, description: Any, training: Training, seeds: Sequence[int]) -> dict[str, Tensor]:
    each = [FAMILY.draw(turn, description, training, (), torch.Generator().manual_seed(seed)) for seed in seeds]
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


class LinearCritic(nn.Module):
    """Logit a · mean(slab) + b · mean(low) + c · position."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([2.0, -1.5, 0.7]))

    def forward(self, slab: Tensor, low: Tensor, start: Tensor) -> Tensor:
        seen = torch.stack([slab.mean((1, 2, 3, 4)), low.mean((1, 2, 3, 4)), start / 28], 1)
        return seen @ self.weights


def toy() -> tuple[HAGAN, Training, dict[str, Any], float, float]:
    """A module with a linear critic and a generator that makes tanh(0.3) at full and tanh(-0.4) at low resolution everywhere."""
    module, training, description = made()
    module.critic = LinearCritic()  # type: ignore[assignment]
    with torch.no_grad():
        for last, value in ((module.generator.to_high[3], 0.3), (module.generator.to_low[2], -0.4)):
            last.weight.zero_()  # type: ignore[operator, union-attr]
            last.bias.fill_(value)  # type: ignore[operator, union-attr]
    return module, training, description, math.tanh(0.3), math.tanh(-0.4)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_losses_of_a_linear_critic_and_their_gradients_are_the_closed_form() -> None:
    module, training, description, high, low = toy()
    x, draws = volumes(3), drawn("critic", description, training, (4, 5, 6))
    starts = draws["start"].tolist()
    losses = FAMILY.losses("critic", module, Batch(x, draws), training)
    assert losses is not None
    losses["loss"].backward()
    loss, gradient = {"real": 0.0, "generated": 0.0}, [0.0, 0.0, 0.0]
    for volume, start in zip(x[:, 0].double(), starts, strict=True):
        real = [float(volume[start : start + 4].mean()), float(volume[::4, ::4, ::4].mean()), start / 28]
        for seen, sign, name in ((real, 1, "real"), ([high, low, start / 28], -1, "generated")):
            logit = sign * (2.0 * seen[0] - 1.5 * seen[1] + 0.7 * seen[2])
            loss[name] += math.log1p(math.exp(-logit)) / 3  # -log σ(logit), and of the generated ones -log(1 - σ)
            gradient = [
                so_far - sign * sigmoid(-logit) * value / 3 for so_far, value in zip(gradient, seen, strict=True)
            ]
    assert float(losses["loss"].detach()) == pytest.approx(loss["real"] + loss["generated"], rel=1e-5)
    assert float(losses["loss_real"].detach()) == pytest.approx(loss["real"], rel=1e-5)
    assert float(losses["loss_generated"].detach()) == pytest.approx(loss["generated"], rel=1e-5)
    assert module.critic.weights.grad.tolist() == pytest.approx(gradient, rel=1e-4)  # type: ignore[union-attr]


def test_the_generator_minimises_what_does_not_saturate() -> None:
    module, training, description, high, low = toy()
    draws = drawn("generator", description, training, (7, 8))
    losses = FAMILY.losses("generator", module, Batch(volumes(2), draws), training)
    assert losses is not None
    losses["loss"].backward()
    logits = [2.0 * high - 1.5 * low + 0.7 * start / 28 for start in draws["start"].tolist()]
    assert float(losses["loss"].detach()) == pytest.approx(
        sum(math.log1p(math.exp(-logit)) for logit in logits) / 2, rel=1e-5
    )
    share = sum(sigmoid(-logit) for logit in logits) / 2
    of_high = module.generator.to_high[3].bias.grad  # type: ignore[union-attr]
    of_low = module.generator.to_low[2].bias.grad  # type: ignore[union-attr]
    assert float(of_high) == pytest.approx(-share * 2.0 * (1 - high**2), rel=1e-4)  # type: ignore[arg-type]
    assert float(of_low) == pytest.approx(share * 1.5 * (1 - low**2), rel=1e-4)  # type: ignore[arg-type]


def test_reconstruction_errors_of_a_constant_generator_are_the_closed_form() -> None:
    module, training, description, high, low = toy()
    x, draws = volumes(2), drawn("slab_encoder", description, training, (9, 11))
    found = {}
    for turn in ("slab_encoder", "code_encoder"):
        losses = FAMILY.losses(turn, module, Batch(x, draws), training)
        assert losses is not None
        found[turn] = float(losses["loss"].detach())
    slab = float((slices(x, draws["start"], 4) - high).abs().double().mean())
    whole = float((x[..., ::4, ::4, ::4] - low).abs().double().mean())
    assert found == pytest.approx({"slab_encoder": slab, "code_encoder": 0.5 * (slab + whole)}, rel=1e-5)


def test_the_code_is_of_the_features_of_eight_slabs_in_order() -> None:
    """An encoder that passes slabs on, and a code that is the mean of each slab, show which goes where."""
    module, training, description = made()
    module.slab_encoder = nn.Identity()  # type: ignore[assignment]
    seen = []

    class Means(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            seen.append(features)
            return torch.zeros(len(features), 64)

    module.code_encoder = Means()  # type: ignore[assignment]
    x = volumes(2)
    FAMILY.losses("code_encoder", module, Batch(x, drawn("code_encoder", description, training, (1, 2))), training)
    assert torch.equal(seen[0], x)


@pytest.mark.parametrize("turn", FAMILY.turns)
def test_a_turn_gives_gradients_to_its_own_part_and_moves_nothing_else(turn: str) -> None:
    module, training, description = made()
    optimizers = FAMILY.optimizers(module, training)
    before = {name: value.clone() for name, value in module.named_parameters()}
    losses = FAMILY.losses(turn, module, Batch(volumes(2), drawn(turn, description, training, (3, 4))), training)
    assert losses is not None
    losses["loss"].backward()
    with_gradient = {name.split(".")[0] for name, value in module.named_parameters() if value.grad is not None}
    assert with_gradient == {turn}
    optimizers[turn].step()
    moved = {name.split(".")[0] for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {turn}
    assert all(parameter.requires_grad for parameter in module.parameters())  # for the other turns
    if turn != "generator":  # all of a part is trained, of the generator by both of its outputs
        assert all(value.grad is not None for name, value in module.named_parameters() if name.startswith(turn))


def test_the_whole_generator_is_trained_by_its_turn() -> None:
    module, training, description = made()
    losses = FAMILY.losses(
        "generator", module, Batch(volumes(2), drawn("generator", description, training, (3, 4))), training
    )
    assert losses is not None
    losses["loss"].backward()
    without = [name for name, value in module.generator.named_parameters() if not value.grad.abs().sum() > 0]  # type: ignore[union-attr]
    assert without == []


def test_optimisers_are_those_published() -> None:
    settings = HAGANSettings(width_divisor=16, critic_lr=4e-4, encoder_lr=1e-4)
    module, _, _ = made(settings)
    optimizers = FAMILY.optimizers(module, Training(settings, None, lr=2e-4))
    assert tuple(optimizers) == FAMILY.turns == ("critic", "generator", "slab_encoder", "code_encoder")
    found = {turn: optimizer.param_groups[0] for turn, optimizer in optimizers.items()}
    assert [found[turn]["lr"] for turn in FAMILY.turns] == [4e-4, 2e-4, 1e-4, 1e-4]
    assert {(group["betas"], group["eps"], group["weight_decay"]) for group in found.values()} == {
        ((0.0, 0.999), 1e-8, 0.0)
    }
    assert HAGANSettings() == HAGANSettings(4e-4, 1e-4, True, False, 1)
    stepped = [parameter for group in found.values() for parameter in group["params"]]
    assert len(stepped) == len({id(p) for p in stepped}) == len(list(module.parameters()))


def test_without_encoders_there_are_none_and_their_turns_make_no_step() -> None:
    settings = HAGANSettings(width_divisor=16, encoders=False)
    module, training, description = made(settings)
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"generator", "critic"}
    batch = Batch(volumes(1), drawn("slab_encoder", description, training, (1,)))
    assert [FAMILY.losses(turn, module, batch, training) for turn in ("slab_encoder", "code_encoder")] == [None, None]
    assert FAMILY.optimizers(module, training)["code_encoder"].param_groups[0]["params"] == []
    assert set(FAMILY.validate(module.eval(), HeldOut(volumes(1), (0,)), training, 1)) == {
        "loss",
        "critic",
        "generator",
    }


@pytest.mark.parametrize(("any_start", "starts"), [(False, list(range(0, 29, 4))), (True, list(range(29)))])
def test_slabs_start_where_they_may_and_everywhere_there(any_start: bool, starts: list[int]) -> None:
    settings = HAGANSettings(width_divisor=16, any_start=any_start)
    _, training, description = made(settings)
    found = drawn("critic", description, training, range(800))["start"]
    numbers = torch.bincount(found, minlength=29)
    assert numbers.nonzero()[:, 0].tolist() == starts
    expected = 800 / len(starts)
    assert float(((numbers[starts] - expected) ** 2 / expected).sum()) < 60  # χ²; 7 or 28 degrees of freedom


def test_draws_are_of_the_generator_alone() -> None:
    _, training, description = made()
    found = {turn: drawn(turn, description, training, (5, 6)) for turn in FAMILY.turns}
    assert [set(draws) for draws in found.values()] == [{"start", "code"}] * 2 + [{"start"}] * 2
    again = drawn("generator", description, training, (6,))
    assert torch.equal(found["generator"]["code"][1], again["code"][0])
    code = drawn("critic", description, training, range(200))["code"]
    assert code.shape == (200, 64)
    assert float(code.std()) == pytest.approx(1.0, abs=0.02)


# -- validation ---


def test_energy_scores_are_the_formula_and_lowest_for_the_true_weights() -> None:
    one, drawn_ones = (
        torch.full((1, 1, 2, 2, 2), 0.5),
        torch.tensor([0.0, 1.0, 3.0]).view(3, 1, 1, 1, 1).expand(-1, 1, 2, 2, 2),
    )
    # mean |0.5 - {0, 1, 3}| and half the mean distance of different ones, {1, 3, 2}
    assert float(energy_scores(one, drawn_ones)) == pytest.approx(3.5 / 3 - 0.5 * 2.0)
    real = torch.tensor([-0.5] * 3 + [0.5] * 7).view(-1, 1, 1, 1, 1)
    scores = {}
    for up in range(0, 101, 10):
        generated = torch.tensor([-0.5] * (10 - up // 10) + [0.5] * (up // 10)).view(-1, 1, 1, 1, 1)
        scores[up] = float(energy_scores(real, generated).mean())
    assert min(scores, key=lambda up: scores[up]) == 70
    middle = torch.full((10, 1, 1, 1, 1), 0.2)  # the mean of the real ones, again and again
    assert float(energy_scores(real, middle).mean()) > scores[70] + 0.1


def test_equal_weights_validate_to_equal_numbers() -> None:
    module, training, _ = made()
    module.train()
    batch = Batch(volumes(2), {"start": torch.tensor([0, 4]), "code": torch.randn(2, 64)})
    FAMILY.losses("critic", module, batch, training)  # the vectors are somewhere on their way
    module.eval()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    x, places = volumes(5, seed=3), (4, 0, 2**40, 3, 1)
    found = FAMILY.validate(module, HeldOut(x, places), training, 2)
    assert list(found) == ["loss", "critic", "generator", "slab_encoder", "code_encoder"]
    assert FAMILY.validate(module, HeldOut(x, places), training, 2) == found
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert FAMILY.validate(module, HeldOut(x, places), training, 5) == pytest.approx(found, rel=1e-5)
    parts = [
        FAMILY.validate(module, HeldOut(x[part], places[part]), training, 5) for part in (slice(0, 2), slice(2, 5))
    ]
    assert {name: (2 * parts[0][name] + 3 * parts[1][name]) / 5 for name in found} == pytest.approx(found, rel=1e-5)
    with torch.no_grad():
        next(module.generator.parameters()).mul_(1.5)
    assert FAMILY.validate(module, HeldOut(x, places), training, 2)["loss"] != found["loss"]


# -- drawing ---


def test_a_volume_is_that_of_its_generator_in_one_evaluation() -> None:
    module, _, description = made()
    module.eval()
    request, calls = Request(Sampler()), []
    FAMILY.check(description, None, request)
    assert FAMILY.evaluations(None, request) == 1
    with torch.no_grad():
        together = FAMILY.generate(
            module,
            None,
            request,
            [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)],
            lambda done, total, image: calls.append((done, total, tuple(image.shape))),
        )
        alone = FAMILY.generate(module, None, request, [torch.Generator().manual_seed(2)])
        code = torch.randn(64, generator=torch.Generator().manual_seed(2))
        expected = module.generator(code[None])
    assert calls == [(1, 1, (3, 1, 32, 32, 32))]
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone, expected, rtol=0, atol=0)
    assert float((together[0] - together[1]).abs().max()) > 1e-3
    assert float(together.abs().max()) < 1


# -- what is said and refused ---


def test_deviations_are_those_of_the_settings_and_of_the_model() -> None:
    def found(settings: HAGANSettings, size: int) -> str:
        return "\n".join(FAMILY.deviations(FAMILY.describe(settings, Given(size, 8.0, None)), settings))

    published, small = (
        found(HAGANSettings(any_start=True), 128),
        found(HAGANSettings(encoders=False, width_divisor=4), 32),
    )
    assert published.splitlines() == [
        "Each volume has a slab of its own in each update (published: one position for a batch and its four updates).",
        "Volumes are shuffled in every epoch (published: a fixed order).",
    ]
    for words in ("Adapted to 32³", "divided by 4", "without the two encoders", "every fourth slice"):
        assert words in small
        assert words not in published


def test_what_is_refused() -> None:
    assert FAMILIES["hagan"] is FAMILY
    with pytest.raises(ValueError, match="edge of 48 voxels; HA-GAN has layers for 32, 64, 128, 256"):
        FAMILY.describe(HAGANSettings(), Given(48, 8.0, None))
    with pytest.raises(ValueError, match="label_column is set; HA-GAN takes no labels"):
        FAMILY.describe(HAGANSettings(), Given(32, 8.0, None, num_classes=2))
    with pytest.raises(ValueError, match=r"label was asked for .* of HA-GAN"):
        FAMILY.check({}, None, Request(Sampler(), conditions=Conditions(labels=torch.tensor([0]))))
    for settings, message in (
        ({"critic_lr": 0.0}, "critic_lr is 0.0; expected above 0"),
        ({"encoder_lr": -1.0}, "encoder_lr is"),
    ):
        with pytest.raises(ValueError, match=message):
            HAGANSettings(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="width_divisor is 5"):
        HAGANSettings(width_divisor=5)


def test_a_plan_counts_it() -> None:
    settings = HAGANSettings()
    planned = Planned(FAMILY, FAMILY.describe(settings, Given(128, 2.0, None)), Training(settings, None), 128)
    assert count_parameters(planned) == {"all": 79_583_972, "trainable": 79_583_972}
    settings = HAGANSettings(width_divisor=16)
    planned = Planned(FAMILY, FAMILY.describe(settings, Given(32, 8.0, None)), Training(settings, None), 32)
    assert count_flops(planned, 2, training=True) == 2 * count_flops(planned, 1, training=True) > 0


def test_planned_memory_is_that_of_real_turns_one_after_the_other() -> None:
    settings = HAGANSettings(width_divisor=16)
    module, training, description = made(settings)
    planned = memory_of(Work("hagan", "train"), Planned(FAMILY, description, training, 32), 8)
    memory = MemoryTrace()
    memory.hold([*module.parameters(), *module.buffers()])
    with memory:
        average = [parameter.detach().clone() for parameter in module.parameters()]
        optimizers = FAMILY.optimizers(module, training)
        for _ in range(2):
            x = volumes(8)
            for turn in FAMILY.turns:
                losses = FAMILY.losses(turn, module, Batch(x, drawn(turn, description, training, range(8))), training)
                assert losses is not None
                module.zero_grad(set_to_none=True)
                losses["loss"].backward()
                optimizers[turn].step()
                del losses
    assert len(average) == len(list(module.parameters()))
    assert planned.total - planned.allocator == pytest.approx(memory.peak_bytes, rel=0.05)


# -- learning ---


class Brightness(Generator):
    """Codes to volumes of one brightness; cut and decoded like the published generator's features."""

    def __init__(self, shape: Shape) -> None:
        nn.Module.__init__(self)
        self.shape = shape
        layers = (nn.Linear(shape.code, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
        self.of_code = nn.Sequential(*layers)
        self.to_low, self.to_high = nn.Sequential(nn.Tanh()), nn.Sequential(nn.Upsample(scale_factor=4), nn.Tanh())

    def features(self, code: Tensor) -> Tensor:
        return self.of_code(code).view(-1, 1, 1, 1, 1).expand(-1, 1, 8, 8, 8)


class SmallCritic(nn.Module):
    """Three spectrally normalised layers on what a linear critic sees."""

    def __init__(self) -> None:
        super().__init__()
        first, second = (spectrally_normalised(nn.Linear(inputs, 32)) for inputs in (3, 32))
        self.layers = nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def forward(self, slab: Tensor, low: Tensor, start: Tensor) -> Tensor:
        seen = torch.stack([slab.mean((1, 2, 3, 4)), low.mean((1, 2, 3, 4)), start / 28], 1)
        logits: Tensor = self.layers(seen)
        return logits[:, 0]


def test_turns_learn_both_modes_of_a_distribution_and_their_weights() -> None:
    """Seven of ten volumes are bright and three dark. Turns, losses, draws, cuts and optimisers are the family's, networks small.

    The published networks at a sixteenth of their widths find one of two such modes within as many steps: a GAN drops modes.
    """
    settings = HAGANSettings(critic_lr=4e-3, encoders=False, width_divisor=16)
    module, training, description = made(settings, seed=0)
    module.generator, module.critic = Brightness(module.shape), SmallCritic()  # type: ignore[assignment]
    optimizers = FAMILY.optimizers(module, training)
    generator, steps = torch.Generator().manual_seed(0), 300

    def real(number: int) -> Tensor:
        bright = torch.rand(number, 1, 1, 1, 1, generator=generator) < 0.7
        noise = 0.05 * torch.randn(number, 1, 1, 1, 1, generator=generator)
        return (torch.where(bright, 0.5, -0.5) + noise).expand(-1, 1, 32, 32, 32)

    held_out = HeldOut(real(64), range(64))
    before = FAMILY.validate(module.eval(), held_out, training, 64)["loss"]
    module.train()
    for step in range(steps):
        x = real(32)
        for turn in ("critic", "generator"):
            for group in optimizers[turn].param_groups:
                group["lr"] = {"critic": 4e-3, "generator": 1e-3}[turn] * min(1.0, 2 * (1 - step / steps))
            each = [FAMILY.draw(turn, description, training, (), generator) for _ in range(32)]
            draws = {name: torch.stack([one[name] for one in each]) for name in each[0]}
            module.zero_grad(set_to_none=True)
            losses = FAMILY.losses(turn, module, Batch(x, draws), training)
            assert losses is not None
            losses["loss"].backward()
            optimizers[turn].step()
    module.eval()
    with torch.no_grad():
        drawn_ones = module(torch.randn(500, 64, generator=generator))[:, 0, 0, 0, 0]
    bright = drawn_ones > 0
    assert float(bright.float().mean()) == pytest.approx(0.7, abs=0.15)
    assert float(drawn_ones[bright].mean()) == pytest.approx(0.5, abs=0.1)
    assert float(drawn_ones[~bright].mean()) == pytest.approx(-0.5, abs=0.15)
    assert float((drawn_ones.abs() < 0.25).float().mean()) < 0.2
    assert FAMILY.validate(module, held_out, training, 64)["loss"] < before - 0.1
