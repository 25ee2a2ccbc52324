"""A coarse mask as a condition of the network: the arithmetic at the start, which token a cell reaches, and what is refused."""

import dataclasses

import pytest
import torch

from prdit_models.coarse_mask import mask_of_volume
from prdit_models.conditions import Conditions
from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.guidance import Guided
from prdit_models.diffusion.sampler import Sampler
from prdit_models.families.family import Batch, Given, Request, Training
from prdit_models.families.global_ import FAMILY as GLOBAL
from prdit_models.families.global_ import GlobalSettings
from prdit_models.families.local import FAMILY as LOCAL
from prdit_models.networks.config import ModelConfig, model_config
from prdit_models.networks.prdit import PRDiT

PLAIN = ModelConfig(volume_size=16, patch_size=6, stride=4, padding=1, hidden_size=48, num_heads=4, depth=2)
MASKED = dataclasses.replace(PLAIN, mask_channels=2, mask_cell=2)


def network(config: ModelConfig, seed: int = 3) -> PRDiT:
    torch.manual_seed(seed)
    return PRDiT(config)


def trained_like(model: PRDiT) -> PRDiT:
    """With values in what starts at zero, but for the weights of the mask."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.abs().sum() and "mask_embedder" not in name:
                parameter.normal_(std=0.05)
    return model


def mask(batch: int = 2, config: ModelConfig = MASKED) -> torch.Tensor:
    cells = config.volume_size // config.mask_cell
    return torch.rand(batch, config.mask_channels, cells, cells, cells, generator=torch.Generator().manual_seed(7))


def volumes(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def test_a_seed_starts_with_the_weights_of_the_network_without_a_mask() -> None:
    plain, masked = network(PLAIN).state_dict(), network(MASKED).state_dict()
    assert set(masked) - set(plain) == {"fine.mask_embedder.weight"}
    assert all(torch.equal(masked[name], value) for name, value in plain.items())
    assert masked["fine.mask_embedder.weight"].shape == (48, 2 * 2**3)  # two cells along a patch of 4 voxels


def test_before_the_first_step_a_mask_changes_no_bit() -> None:
    plain, masked = trained_like(network(PLAIN)), trained_like(network(MASKED))
    x, t = volumes(), torch.tensor([100, 700])
    expected = plain(x, t)
    assert expected.abs().max() > 0.01
    assert torch.equal(masked(x, t, Conditions(mask=mask())), expected)
    assert torch.equal(masked(x, t), expected)


def test_zeros_are_no_mask_and_a_mask_is_seen() -> None:
    model, x = trained_like(network(MASKED)), volumes()
    assert model.fine is not None
    assert model.fine.mask_embedder is not None
    torch.nn.init.normal_(model.fine.mask_embedder.weight, std=0.2)
    none = model(x, 500)
    assert torch.equal(model(x, 500, Conditions(mask=torch.zeros_like(mask()))), none)
    assert (model(x, 500, Conditions(mask=mask())) - none).abs().max() > 1e-3
    local = model.coarse(model.tokens(x), model.modulations(500, x).local)
    again = model.coarse(model.tokens(x), model.modulations(500, x, Conditions(mask=mask())).local)
    assert torch.equal(local, again)  # the frozen branch sees none


@pytest.mark.parametrize("cell", [1, 2, 4, 8])
def test_every_cell_reaches_the_tokens_it_lies_in(cell: int) -> None:
    model = network(dataclasses.replace(PLAIN, mask_channels=1, mask_cell=cell))
    assert model.fine is not None
    assert model.fine.mask_embedder is not None
    torch.nn.init.ones_(model.fine.mask_embedder.weight)
    cells = torch.zeros(1, 1, *(16 // cell,) * 3)
    cells[0, 0, 0, 1, -1] = 1.0
    seen = model.fine.mask_embedder(cells)[0, :, 0].reshape(4, 4, 4)
    voxels = cells[0, 0]
    for axis in range(3):
        voxels = voxels.repeat_interleave(cell, axis)
    blocks = voxels.reshape(4, 4, 4, 4, 4, 4).sum(dim=(1, 3, 5)) / min(cell, 4) ** 3  # tokens of 4 voxels
    assert torch.equal(seen, blocks)


def test_conditions_are_dropped_together_by_one_draw() -> None:
    training, description = Training(GlobalSettings(), CosineProcess()), MASKED.to_dict() | {"num_classes": 3}
    draws = [
        GLOBAL.draw("main", description, training, (1, 4, 4, 4), torch.Generator().manual_seed(n)) for n in range(400)
    ]
    shown = torch.stack([draw["shown"] for draw in draws])
    labels, masks = torch.zeros(400, dtype=torch.long), torch.ones(400, 2, 2, 2, 2)
    batch = Batch(torch.empty(400, 0), {"shown": shown}, Conditions(labels, None, masks), 3, 0.25)
    found = batch.shown
    assert found is not None
    assert found.labels is not None
    assert found.mask is not None
    gone = found.labels == 3
    assert torch.equal(found.mask.flatten(1).amax(1) == 0, gone)
    assert 0.19 < float(gone.float().mean()) < 0.31


def test_guidance_goes_from_none_towards_the_mask() -> None:
    model, x, t = trained_like(network(MASKED)), volumes(), torch.tensor(300.0)
    assert model.fine is not None
    assert model.fine.mask_embedder is not None
    torch.nn.init.normal_(model.fine.mask_embedder.weight, std=0.2)
    conditions = Conditions(mask=mask())
    given, none = model(x, t, conditions), model(x, t)
    assert torch.equal(Guided(model, conditions)(x, t), given)
    torch.testing.assert_close(Guided(model, conditions, 3.0)(x, t), none + 3.0 * (given - none), rtol=1e-4, atol=1e-5)
    with model.prepared(torch.tensor([300.0])):
        torch.testing.assert_close(Guided(model, conditions)(x, t), given, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="mask_channels 0; leave it out"):
        network(PLAIN)(volumes(), 0, Conditions(mask=mask()))
    with pytest.raises(ValueError, match=r"expected floats \(2, 2, 8, 8, 8\)"):
        network(MASKED)(volumes(), 0, Conditions(mask=mask()[:, :1]))
    with pytest.raises(ValueError, match="cells of 3 voxels does not fit volumes of 24 voxels in patches of 8"):
        model_config("XS/10/1", 24, mask_channels=2, mask_cell=3)
    with pytest.raises(ValueError, match="a mask needs both"):
        dataclasses.replace(PLAIN, mask_channels=2)
    with pytest.raises(ValueError, match="belong to the refiner"):
        dataclasses.replace(MASKED, depth=0)
    with pytest.raises(ValueError, match="mask is set; a local denoiser is shown no mask"):
        LOCAL.describe(LOCAL.settings(), Given(16, 8.0, None, mask_channels=2, mask_cell=2))


def test_a_description_without_a_mask_is_as_before() -> None:
    assert not {"mask_channels", "mask_cell"} & set(PLAIN.to_dict())
    assert ModelConfig.from_dict(PLAIN.to_dict()) == PLAIN
    assert ModelConfig.from_dict(MASKED.to_dict()) == MASKED


# -- what a model makes of a mask -------------------------------------------------------------------------------------

SMALL = ModelConfig(8, 4, 4, 0, hidden_size=48, num_heads=4, depth=1, mask_channels=2, mask_cell=2)
MM = 32.0  # of its voxels


def block(corner: int) -> torch.Tensor:
    """Air with a block of tissue in one of the eight corners, shape (1, 8, 8, 8), model range."""
    z, y, x = (4 * (corner >> axis & 1) for axis in range(3))
    volume = torch.full((1, 8, 8, 8), -1.0)
    volume[0, z : z + 4, y : y + 4, x : x + 4] = 0.05
    return volume


def masks_of(volumes: torch.Tensor) -> torch.Tensor:
    return torch.stack([mask_of_volume(1000.0 * one[0].numpy(), MM, SMALL.mask_cell) for one in volumes])


def dice(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of the bodies of masks, shape (B, 2, s, s, s)."""
    shared = torch.minimum(one[:, 0], other[:, 0]).sum()
    return float(2 * shared / (one[:, 0].sum() + other[:, 0].sum()))


def test_samples_lie_where_their_mask_says() -> None:
    """Blocks in eight places: a model without the mask could only guess which."""
    model, training = network(SMALL, seed=0), Training(GlobalSettings(), CosineProcess(), lr=3e-3)
    model.freeze_local(False)
    optimizer = GLOBAL.optimizers(model, training)["main"]
    volumes, generator = torch.stack([block(corner) for corner in range(8)]), torch.Generator().manual_seed(1)
    masks, description = masks_of(volumes), SMALL.to_dict()
    for _ in range(150):
        which = torch.randint(8, (16,), generator=generator)
        drawn = [GLOBAL.draw("main", description, training, (1, 8, 8, 8), generator) for _ in which]
        draws = {name: torch.stack([each[name] for each in drawn]) for name in drawn[0]}
        losses = GLOBAL.losses(
            "main", model, Batch(volumes[which], draws, Conditions(mask=masks[which]), 0, 0.1), training
        )
        assert losses is not None
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    model.eval().requires_grad_(False)

    def found(conditions: Conditions | None) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(100 + index) for index in range(2)]
        return masks_of(
            GLOBAL.generate(model, training.process, Request(Sampler(num_steps=10), "image", conditions), generators)
        )

    free = found(None)
    for corner in range(8):
        asked = masks[corner : corner + 1].expand(2, -1, -1, -1, -1)
        assert dice(found(Conditions(mask=masks[corner : corner + 1])), asked) > 0.9
        assert dice(asked, asked) == 1.0
    apart = [dice(free, masks[corner : corner + 1].expand(2, -1, -1, -1, -1)) for corner in range(8)]
    assert sum(apart) / 8 < 0.3  # the same seeds without a mask lie somewhere
