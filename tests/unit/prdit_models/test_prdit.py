import pytest
import torch
from torch import Tensor

from prdit_models.networks.config import ModelConfig
from prdit_models.networks.initialization import initialize, start_global
from prdit_models.networks.patches import extract_patches, unpatchify
from prdit_models.networks.prdit import LOCAL_PREFIXES, PRDiT, trainable_parameters
from tests.submodules import branches


def _config(depth: int, size: int = 8) -> ModelConfig:
    return ModelConfig(size, 4, 2, 1, 48, 4, depth)


def _randomised(model: PRDiT, seed: int = 3) -> PRDiT:
    """Every parameter away from its (partly zero) initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def _volume(batch: int = 2, size: int = 8) -> Tensor:
    return torch.randn(batch, 1, size, size, size, generator=torch.Generator().manual_seed(5))


def test_patches_of_a_coordinate_volume() -> None:
    """Voxel value = 100 z + 10 y + x: each token shows where it was cut, borders reflected without repetition."""
    index = torch.arange(6)
    volume = (100 * index[:, None, None] + 10 * index[None, :, None] + index)[None, None]
    tokens = extract_patches(volume, 4, 2, 1)
    assert tokens.shape == (1, 27, 64)
    axis = [1, 0, 1, 2]  # first window from voxel -1
    expected = [100 * z + 10 * y + x for z in axis for y in axis for x in axis]
    assert tokens[0, 0].tolist() == expected
    middle, last = [1, 2, 3, 4], [3, 4, 5, 4]
    assert tokens[0, 5].tolist() == [100 * z + 10 * y + x for z in axis for y in middle for x in last]


def test_unpatchify_places_blocks_with_the_channel_fastest() -> None:
    tokens = torch.arange(8 * 16).reshape(1, 8, 16)
    volume = unpatchify(tokens, 2, 2, 4)
    # voxel (d, h, w) = (1, 2, 3): block (0, 1, 1) = token 3, inside (1, 0, 1) = 5, two channels per voxel
    assert volume[0, :, 1, 2, 3].tolist() == [3 * 16 + 5 * 2, 3 * 16 + 5 * 2 + 1]
    with pytest.raises(ValueError, match=r"\(B, 8, 16\)"):
        unpatchify(tokens[:, :7], 2, 2, 4)


def test_fresh_models_put_out_zero() -> None:
    for depth in (0, 2):
        assert torch.count_nonzero(PRDiT(_config(depth))(_volume(), 10)) == 0


def test_one_step_for_the_batch_equals_one_step_a_volume() -> None:
    model = _randomised(PRDiT(_config(2)))
    x = _volume()
    per_volume = model(x, torch.tensor([40, 40]))
    for common in (40, torch.tensor(40), 40.0):
        torch.testing.assert_close(model(x, common), per_volume, atol=1e-5, rtol=1e-5)
    assert (model(x, torch.tensor([40, 900])) - per_volume)[1].abs().max() > 1e-3


def test_branches_sum_to_the_output() -> None:
    model = _randomised(PRDiT(_config(2)))
    coarse, fine = branches(model, _volume(), 7)
    assert fine is not None
    torch.testing.assert_close(coarse + fine, model(_volume(), 7), atol=1e-5, rtol=1e-5)
    local = PRDiT(_config(0))
    local.load_state_dict(model.local_state_dict())
    torch.testing.assert_close(local(_volume(), 7), coarse, atol=1e-6, rtol=1e-5)
    assert branches(local, _volume(), 7)[1] is None


def test_local_branch_sees_only_its_own_patch() -> None:
    model = _randomised(PRDiT(_config(0)))
    x = _volume(1)
    changed = x.clone()
    changed[..., 7] += 1.0
    difference = (model(changed, 7) - model(x, 7)).abs().amax(dim=(0, 1, 2, 3))
    assert (difference[:4] == 0).all()
    assert (difference[6:] > 0).all()


def test_frozen_branch_gets_no_gradient_and_does_not_move() -> None:
    model = _randomised(PRDiT(_config(2)))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(trainable_parameters(model), lr=1e-2, weight_decay=0.0)
    model(_volume(), torch.tensor([5, 500])).square().mean().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(LOCAL_PREFIXES)
        assert (parameter.grad is None) == frozen, name
        assert torch.equal(parameter, before[name]) == frozen, name


def test_gradients_by_finite_differences() -> None:
    model = _randomised(PRDiT(ModelConfig(4, 4, 2, 1, 12, 2, 1))).double()
    x = _volume(1, 4).double()
    parameters = trainable_parameters(model)
    loss = model(x, 123).square().sum()
    gradients = torch.autograd.grad(loss, parameters)
    generator = torch.Generator().manual_seed(8)
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))

    def moved(step: float) -> Tensor:
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=step)
            value = model(x, 123).square().sum()
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.sub_(direction, alpha=step)
        return value

    torch.testing.assert_close((moved(1e-6) - moved(-1e-6)) / 2e-6, slope, rtol=1e-5, atol=1e-6)


def test_initialisation_gains() -> None:
    model = PRDiT(_config(2))
    torch.manual_seed(0)
    initialize(model, 0.1)
    state = model.state_dict()
    qkv = state["fine.blocks.0.attn.qkv.weight"]
    bound = 0.1 * (6.0 / (48 + 144)) ** 0.5
    assert 0.95 * bound < qkv.abs().max() <= bound
    assert state["fine.patch_embedder.skip.weight"].abs().max() <= 0.1 * (6.0 / (64 + 48)) ** 0.5
    assert abs(state["t_embedder.mlp.0.weight"].std() - 0.02) < 0.001
    assert (state["fine.patch_embedder.norm.weight"] == 1).all()
    other = PRDiT(_config(2))
    torch.manual_seed(0)
    initialize(other, 0.1)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in state.items())


def test_start_global_loads_exactly_the_local_branch() -> None:
    local = _randomised(PRDiT(_config(0)))
    model = _randomised(PRDiT(_config(2)))
    start_global(model, local.state_dict())
    assert torch.equal(model(_volume(), 9), PRDiT.forward(local, _volume(), 9))  # the refiner still outputs zero
    assert model.state_dict()["fine.blocks.1.mlp.fc1.weight"].abs().max() <= 0.1 * (6.0 / (48 + 192)) ** 0.5
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == set(local.state_dict())


def test_start_global_refuses_what_does_not_fit() -> None:
    model = PRDiT(_config(1))
    state = dict(PRDiT(_config(0)).state_dict())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    del state["coarse.mlp_denoise.linear_final.bias"]
    state["fine.extra"] = torch.zeros(1)
    state["t_embedder.mlp.0.bias"] = torch.zeros(5)
    with pytest.raises(
        ValueError, match=r"missing \['coarse.mlp_denoise.linear_final.bias'\]; extra \['fine.extra'\]"
    ) as error:
        start_global(model, state)
    assert "t_embedder.mlp.0.bias: (5,) instead of (48,)" in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match="depth > 0"):
        start_global(PRDiT(_config(0)), PRDiT(_config(0)).state_dict())


def test_weights_of_one_volume_size_load_at_another() -> None:
    small, large = _randomised(PRDiT(_config(1, 8))), PRDiT(_config(1, 16))
    large.load_state_dict(small.state_dict())
    assert large(_volume(1, 16), 3).shape == (1, 2, 16, 16, 16)


def test_wrong_inputs_are_named() -> None:
    model = PRDiT(_config(2))
    with pytest.raises(ValueError, match=r"\(B, 1, 8, 8, 8\)"):
        model(_volume(2, 16), 3)
    with pytest.raises(ValueError, match=r"expected a number or \(2,\)"):
        model(_volume(), torch.tensor([1, 2, 3]))


def test_bfloat16_autocast_stays_close() -> None:
    model = _randomised(PRDiT(_config(2)))
    exact = model(_volume(), 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(_volume(), 20)
    mixed.float().square().mean().backward()
    assert (mixed.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("patch", "padding", "message"), [(4, 8, "padding 8 must be smaller.*8"), (12, 1, "patch_size 12.*padded.* 10")]
)
def test_patches_that_do_not_fit_are_refused(patch: int, padding: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract_patches(torch.zeros(1, 1, 8, 8, 8), patch, 2, padding)
