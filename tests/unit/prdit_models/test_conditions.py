"""Conditions of a network: the struct, numbers and categories in the refiner, guidance, and samples that follow them."""

import numpy as np
import pytest
import torch

from prdit_models.conditions import Conditions, takes_conditions
from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.guidance import Guided
from prdit_models.diffusion.sampler import Sampler
from prdit_models.families.denoiser import Denoiser
from prdit_models.families.family import FAMILIES, Batch, Given, HeldOut, Request, Training
from prdit_models.networks.config import ModelConfig
from prdit_models.networks.prdit import PRDiT

CPU = torch.device("cpu")
ALL = Conditions(torch.tensor([0, 1, 2]), torch.arange(6.0).view(3, 2) + 1, torch.ones(3, 1, 2, 2, 2))


def tiny(**options: int) -> PRDiT:
    torch.manual_seed(0)
    return PRDiT(ModelConfig(8, 4, 2, 1, 48, 4, 1, **options))


def shaken(model: PRDiT) -> PRDiT:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


def test_all_conditions_of_a_volume_are_dropped_together() -> None:
    found = ALL.dropped(torch.tensor([False, True, False]), no_label=5)
    assert found.labels is not None
    assert found.values is not None
    assert found.mask is not None
    assert found.labels.tolist() == [0, 5, 2]
    assert found.values.tolist() == [[1, 2], [0, 0], [5, 6]]
    assert found.mask.flatten(1).sum(1).tolist() == [8, 0, 8]
    assert ALL.nothing(5).values.eq(0).all()  # type: ignore[union-attr]
    assert Conditions(values=ALL.values).dropped(torch.tensor([True] * 3), 5).labels is None


def test_rows_repetition_and_joining_keep_every_part_in_order() -> None:
    chosen = ALL.rows(torch.tensor([2, 0]))
    assert chosen.labels.tolist() == [2, 0]  # type: ignore[union-attr]
    assert chosen.values.tolist() == [[5, 6], [1, 2]]  # type: ignore[union-attr]
    repeated = ALL.rows([1]).repeated(3)
    assert repeated.values.tolist() == [[3, 4]] * 3  # type: ignore[union-attr]
    assert repeated.mask.shape == (3, 1, 2, 2, 2)  # type: ignore[union-attr]
    joined = chosen.joined(chosen.nothing(9))
    assert joined.labels.tolist() == [2, 0, 9, 9]  # type: ignore[union-attr]
    assert joined.to(CPU).values.tolist() == [[5, 6], [1, 2], [0, 0], [0, 0]]  # type: ignore[union-attr]


def test_a_fresh_network_with_values_computes_what_one_without_does_to_the_bit() -> None:
    with_values, without = tiny(num_values=3), tiny()
    assert without.load_state_dict(with_values.state_dict(), strict=False).unexpected_keys == [
        f"value_embedder.{layer}.{name}" for layer in (0, 2) for name in ("weight", "bias")
    ]
    for model in (with_values, without):  # modulations that are not zero, so that a condition would be seen
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith("value_embedder"):
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    x, values = torch.randn(2, 1, 8, 8, 8), torch.randn(2, 3)
    assert torch.equal(with_values(x, 5), without(x, 5))
    assert torch.equal(
        with_values(x, torch.tensor([5, 5]), Conditions(values=values)), without(x, torch.tensor([5, 5]))
    )
    with torch.no_grad():
        with_values.value_embedder[2].weight.add_(0.1)  # type: ignore[index, operator, union-attr]
    moved = with_values(x, torch.tensor([5, 5]), Conditions(values=values)) - without(x, torch.tensor([5, 5]))
    assert float(moved.abs().max()) > 1e-3


def test_zeros_are_nothing_known_and_labels_stand_beside_values() -> None:
    model, x = shaken(tiny(num_values=3, num_classes=2)), torch.randn(2, 1, 8, 8, 8)
    none = model(x, 5)
    both = model(x, 5, Conditions(torch.tensor([2, 1]), torch.tensor([[0.0, 0, 0], [0, 1, 0]])))
    torch.testing.assert_close(both[0], none[0], atol=1e-4, rtol=0)
    only_label = model(x, 5, Conditions(torch.tensor([2, 1])))
    only_value = model(x, 5, Conditions(values=torch.tensor([[0.0, 0, 0], [0, 1, 0]])))
    for one in (only_label, only_value):
        assert float((both[1] - one[1]).abs().max()) > 1e-3
        assert float((none[1] - one[1]).abs().max()) > 1e-3


def test_values_that_do_not_fit_are_refused() -> None:
    model, x = tiny(num_values=3), torch.zeros(2, 1, 8, 8, 8)
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        model(x, 5, Conditions(values=torch.zeros(2, 2)))
    with pytest.raises(ValueError, match="floats"):
        model(x, 5, Conditions(values=torch.zeros(2, 3, dtype=torch.long)))
    with pytest.raises(ValueError, match="num_values 0"):
        tiny()(x, 5, Conditions(values=torch.zeros(2, 3)))
    with pytest.raises(ValueError, match=r"num_values 3.*depth 0"):
        ModelConfig(8, 4, 2, 1, 48, 4, 0, num_values=3)


def test_a_description_without_values_is_that_of_before_there_were_any() -> None:
    plain, valued = ModelConfig(8, 4, 2, 1, 48, 4, 1), ModelConfig(8, 4, 2, 1, 48, 4, 1, num_values=3)
    assert "num_values" not in plain.to_dict()
    assert ModelConfig.from_dict(plain.to_dict()) == plain
    assert ModelConfig.from_dict(valued.to_dict()).num_values == 3
    assert not takes_conditions(plain.to_dict())
    assert takes_conditions(valued.to_dict())


def test_guidance_leads_away_from_the_estimate_without_values() -> None:
    model, x = shaken(tiny(num_values=3)), torch.randn(2, 1, 8, 8, 8)
    known, t = Conditions(values=torch.randn(2, 3)), torch.tensor(40)
    conditional, unconditional = model(x, t, known), model(x, t)
    for scale in (1.0, 3.0):
        expected = unconditional + scale * (conditional - unconditional)
        torch.testing.assert_close(Guided(model, known, scale)(x, t), expected, atol=1e-4, rtol=1e-4)
    assert float((conditional - unconditional).abs().max()) > 1e-2


def test_families_without_conditions_refuse_them() -> None:
    given, cosine = Given(16, 8.0, CosineProcess(), num_values=2), CosineProcess()
    local = FAMILIES["local"]
    with pytest.raises(ValueError, match=r"conditions is set; a local denoiser takes no conditions"):
        local.describe(local.settings(preset="XS/12/0"), given)
    request = Request(Sampler(), conditions=Conditions(values=torch.zeros(1, 2)))
    for name, said in (
        ("global", "sample.conditions.*that was trained without conditions"),
        ("refiner", "a refined model"),
        ("wdm", "family 'wdm'"),
    ):
        with pytest.raises(ValueError, match=said):
            FAMILIES[name].check({"depth": 1}, cosine, request)


# -- samples follow what is asked for ------------------------------------------------------------------------------------


def spheres(radii: torch.Tensor) -> torch.Tensor:
    """Balls of 1 in -1, radius in voxels, shape (B, 1, 8, 8, 8); the share of a voxel at the surface is linear."""
    axis = torch.arange(8) - 3.5
    distance = (axis.view(-1, 1, 1) ** 2 + axis.view(-1, 1) ** 2 + axis**2).sqrt()
    return (2 * (radii.view(-1, 1, 1, 1) - distance + 0.5).clamp(0, 1) - 1)[:, None]


def radius_of(volumes: torch.Tensor) -> torch.Tensor:
    """Radius of the ball of the same volume."""
    inside = ((volumes.clamp(-1, 1) + 1) / 2).sum((1, 2, 3, 4))
    return (inside * 3 / (4 * torch.pi)) ** (1 / 3)


def inputs_of(radii: torch.Tensor) -> Conditions:
    return Conditions(values=torch.stack([(radii - 2.5) / 0.6, torch.ones_like(radii)], 1))


def test_samples_of_a_short_training_have_the_radius_that_is_asked_for() -> None:
    family, cosine = Denoiser(), CosineProcess()
    model = tiny(num_values=2)
    model.freeze_local(False)
    settings = FAMILIES["global"].settings(preset="XS/12/4")
    training = Training(settings, cosine, lr=2e-3)
    optimizer = family.optimizers(model, training)["main"]
    generator, description = torch.Generator().manual_seed(0), model.config.to_dict()
    for _ in range(500):
        radii = 1.5 + 2 * torch.rand(16, generator=generator)
        draws = [family.draw("main", description, training, (1, 8, 8, 8), generator) for _ in radii]
        stacked = {name: torch.stack([one[name] for one in draws]) for name in draws[0]}
        batch = Batch(spheres(radii), stacked, inputs_of(radii), condition_dropout=0.1)
        losses = family.losses("main", model, batch, training)
        assert losses is not None
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    model.eval()
    asked = torch.linspace(1.6, 3.4, 10)

    def drawn(conditions: Conditions | None) -> float:
        generators = [torch.Generator().manual_seed(7)]
        request = Request(Sampler("predictor-corrector", 20), conditions=conditions)
        with torch.no_grad():
            return float(radius_of(family.generate(model, cosine, request, generators)))

    found = [drawn(inputs_of(one[None])) for one in asked]
    assert np.corrcoef(asked.numpy(), found)[0, 1] > 0.9
    assert np.polyfit(asked.numpy(), found, 1)[0] > 0.5  # about as much larger as asked, not a trace of it
    wrong = HeldOut(spheres(asked), range(10), inputs_of(asked.flip(0)))
    right = HeldOut(spheres(asked), range(10), inputs_of(asked))
    assert family.validate(model, right, training, 10)["loss"] < family.validate(model, wrong, training, 10)["loss"]


def test_the_share_of_volumes_without_their_conditions_is_that_of_the_setting() -> None:
    shown = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    known = Conditions(torch.zeros(4000, dtype=torch.long), torch.ones(4000, 2))
    found = Batch(torch.zeros(4000, 1), {"shown": shown}, known, no_label=3, condition_dropout=0.25).shown
    assert found is not None
    assert found.labels is not None
    assert found.values is not None
    gone = found.values.eq(0).all(1)
    assert float(gone.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(gone, found.labels == 3)
