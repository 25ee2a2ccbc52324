"""Networks of HA-GAN: counts and shapes of every size, layers against their formulas, slabs of whole volumes, spectral norm."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prdit_models.networks.hagan import HAGAN, Generator, Shape, SpectralNorm, decimated, slices, spectrally_normalised
from tests.submodules import outputs_of

# edge, A, slab, parameters of generator, critic, slab encoder, code encoder, all
SIZES = [
    (256, 64, 32, 52_518_210, 7_402_258, 161_152, 19_663_264, 79_744_884),
    (128, 32, 16, 52_518_210, 7_241_442, 161_152, 19_663_168, 79_583_972),
    (64, 16, 8, 52_518_210, 6_592_130, 161_152, 19_400_832, 78_672_324),
    (32, 8, 4, 52_518_210, 4_240_834, 161_152, 17_827_584, 74_747_780),
]
# channels and edges (D, H) behind every convolution: generator up to A, critic on the slab, critic on the low-resolution cube, code
LAYERS = {
    256: (
        [(512, 4), (512, 8), (256, 16), (128, 32), (64, 64)],
        [(16, 16, 128), (32, 8, 64), (64, 4, 32), (128, 2, 16), (256, 1, 8), (512, 1, 4), (128, 1, 1)],
        [(32, 32), (64, 16), (128, 8), (256, 4), (1, 1)],
        [(32, 32), (64, 16), (128, 8), (256, 4), (1024, 1)],
    ),
    128: (
        [(512, 4), (512, 8), (256, 16), (128, 32), (64, 32)],
        [(32, 8, 64), (64, 4, 32), (128, 2, 16), (256, 1, 8), (512, 1, 4), (128, 1, 1)],
        [(64, 16), (128, 8), (256, 4), (1, 1)],
        [(64, 16), (128, 8), (256, 4), (1024, 1)],
    ),
    64: (
        [(512, 4), (512, 8), (256, 16), (128, 16), (64, 16)],
        [(64, 4, 32), (128, 2, 16), (256, 1, 8), (512, 1, 4), (128, 1, 1)],
        [(128, 8), (256, 4), (1, 1)],
        [(128, 8), (256, 4), (1024, 1)],
    ),
    32: (
        [(512, 4), (512, 8), (256, 8), (128, 8), (64, 8)],
        [(128, 2, 16), (256, 1, 8), (512, 1, 4), (128, 1, 1)],
        [(256, 4), (1, 1)],
        [(256, 4), (1024, 1)],
    ),
}


def numel(module: nn.Module | None) -> int:
    assert module is not None
    return sum(parameter.numel() for parameter in module.parameters())


def convolutions(module: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in module.named_modules() if isinstance(part, nn.Conv3d)}


@pytest.mark.parametrize("row", SIZES, ids=lambda row: str(row[0]))
def test_parameters_are_as_many_as_counted_for_each_size(row: tuple[int, ...]) -> None:
    size, *_, generator, critic, slab_encoder, code_encoder, everything = row
    with torch.device("meta"):
        module = HAGAN(Shape(size))
    parts = (module.generator, module.critic, module.slab_encoder, module.code_encoder, module)
    assert [numel(part) for part in parts] == [generator, critic, slab_encoder, code_encoder, everything]
    assert (numel(module.generator.start), numel(module.generator.to_low)) == (33_587_200, 69_697)
    low = {256: 2_771_425, 128: 2_642_369}
    assert numel(module.critic.of_low) == low.get(size, numel(module.critic.of_low))


@pytest.mark.parametrize("row", SIZES, ids=lambda row: str(row[0]))
def test_every_layer_has_the_channels_and_edges_of_its_table(row: tuple[int, ...]) -> None:
    size, features, slab = row[:3]
    with torch.device("meta"):
        module = HAGAN(Shape(size))
        code, start = torch.empty(2, 1024), torch.empty(2, dtype=torch.int64)
        with outputs_of(convolutions(module)) as found:
            high, low = module.generator.views(code, start)
            logits = module.critic(high, low, start)
            assert module.slab_encoder is not None
            assert module.code_encoder is not None
            part = module.slab_encoder(high)
            guess = module.code_encoder(torch.cat([part] * 8, 2))
        whole = module(code)
    assert (high.shape, low.shape) == ((2, 1, slab, size, size), (2, 1, *(size // 4,) * 3))
    assert (whole.shape, logits.shape) == ((2, 1, size, size, size), (2,))
    assert (part.shape, guess.shape) == ((2, 64, slab // 4, features, features), (2, 1024))

    def behind(prefix: str) -> list[tuple[int, ...]]:
        shapes = [tuple(output.shape) for name, output in found.items() if name.startswith(prefix)]
        assert all(shape[0] == 2 and shape[3] == shape[4] for shape in shapes)
        return [shape[1:2] + (shape[2:4] if prefix == "critic.of_slab" else shape[2:3]) for shape in shapes]

    trunk, of_slab, of_low, encoder = LAYERS[size]
    assert behind("generator.trunk") == trunk
    assert behind("critic.of_slab") == of_slab
    assert behind("critic.of_low") == of_low
    assert behind("code_encoder") == encoder


def test_widths_and_groups_are_divided() -> None:
    module = HAGAN(Shape(64, 16))
    norms = [part for part in module.modules() if isinstance(part, nn.GroupNorm)]
    assert [(norm.num_groups, norm.num_channels) for norm in norms[:5]] == [(8, 32), (8, 32), (8, 16), (8, 8), (4, 4)]
    assert (module.generator.start.in_features, module.generator.start.out_features) == (64, 32 * 64)
    assert HAGAN(Shape(64, 16), encoders=False).code_encoder is None
    with torch.device("meta"):
        published = [part for part in HAGAN(Shape(256)).modules() if isinstance(part, nn.GroupNorm)]
    assert {(norm.num_groups, norm.eps) for norm in published} == {(8, 1e-5)}


@pytest.mark.parametrize("size", [16, 48, 96, 512])
def test_a_size_that_the_layers_do_not_divide_is_refused(size: int) -> None:
    with pytest.raises(
        ValueError, match=f"edge of {size} voxels; HA-GAN has layers for 32, 64, 128, 256.*Set view.size"
    ):
        Shape(size)


@pytest.mark.parametrize("divisor", [0, 3, 32])
def test_a_divisor_that_leaves_no_channel_is_refused(divisor: int) -> None:
    with pytest.raises(ValueError, match=f"width_divisor is {divisor}; expected 1 .published., 2, 4, 8 or 16"):
        Shape(64, divisor)


# -- arithmetic ---


def literal_features(state: dict[str, Tensor], code: Tensor, doublings: int) -> Tensor:
    """A, layer after layer as in the table; 8 groups, or as many as there are channels."""
    x = functional.linear(code, state["start.weight"], state["start.bias"]).view(len(code), -1, 4, 4, 4)
    for number in range(5):
        if number in range(1, doublings + 1):
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
        x = literal_block(state, f"trunk.{number}", x)
    return x


def literal_block(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = functional.conv3d(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding=1)
    grouped = x.view(len(x), min(8, x.shape[1]), -1)
    mean, variance = grouped.mean(2, keepdim=True), grouped.var(2, correction=0, keepdim=True)
    x = ((grouped - mean) / (variance + 1e-5).sqrt()).view(x.shape)
    scale, shift = (state[f"{name}.1.{part}"].view(1, -1, 1, 1, 1) for part in ("weight", "bias"))
    return (x * scale + shift).clamp(min=0)


@pytest.mark.parametrize(("size", "divisor", "doublings"), [(32, 4, 1), (64, 16, 2)])
def test_a_whole_volume_is_what_the_table_computes(size: int, divisor: int, doublings: int) -> None:
    torch.manual_seed(3)
    module = Generator(Shape(size, divisor)).double()
    state = module.state_dict()
    code = torch.randn(2, 1024 // divisor, dtype=torch.float64)
    features = literal_features(state, code, doublings)
    torch.testing.assert_close(module.features(code), features, rtol=1e-10, atol=1e-10)
    up = features.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    x = literal_block(state, "to_high.1", up)
    x = x.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    expected = functional.conv3d(x, state["to_high.3.weight"], state["to_high.3.bias"], padding=1).tanh()
    torch.testing.assert_close(module(code), expected, rtol=1e-10, atol=1e-10)
    x = literal_block(state, "to_low.1", literal_block(state, "to_low.0", features))
    low = functional.conv3d(x, state["to_low.2.weight"], state["to_low.2.bias"], padding=1).tanh()
    start = torch.tensor([0, 4])
    torch.testing.assert_close(module.views(code, start)[1], low, rtol=1e-10, atol=1e-10)


def test_a_slab_is_that_of_the_whole_volume_where_its_ends_and_norms_do_not_reach() -> None:
    """Slabs start every fourth slice; one between them is that of the features before it, up to three slices off."""
    torch.manual_seed(4)
    module = Generator(Shape(64, 16)).double()
    norm = module.to_high[1]
    assert isinstance(norm, nn.Sequential)
    norm[1] = nn.Identity()  # the one norm behind the cut, whose statistics are the slab's
    code = torch.randn(3, 64, dtype=torch.float64)
    whole, inside = module(code), slice(3, 5)  # both convolutions see zeros beyond the ends of a slab
    start = torch.tensor([0, 20, 56])
    slabs, _ = module.views(code, start)
    torch.testing.assert_close(slabs[:, :, inside], slices(whole, start, 8)[:, :, inside], rtol=1e-10, atol=1e-10)
    between, _ = module.views(code, start - torch.tensor([0, -3, 2]))
    earlier = torch.tensor([0, 20, 52])
    torch.testing.assert_close(between[:, :, inside], slices(whole, earlier, 8)[:, :, inside], rtol=1e-10, atol=1e-10)


def test_slices_and_every_fourth_voxel() -> None:
    z, y, x = np.meshgrid(*[np.arange(8.0)] * 3, indexing="ij")
    volume = torch.from_numpy(100 * z + 10 * y + x).view(1, 1, 8, 8, 8)
    volumes = torch.cat([volume, -volume])
    cut = slices(volumes, torch.tensor([1, 5]), 3)
    torch.testing.assert_close(cut, torch.cat([volume[:, :, 1:4], -volume[:, :, 5:8]]), rtol=0, atol=0)
    expected = torch.tensor([[[0.0, 4], [40, 44]], [[400, 404], [440, 444]]], dtype=torch.float64)
    torch.testing.assert_close(decimated(volume)[0, 0], expected, rtol=0, atol=0)


# -- critic ---


def test_the_critic_is_the_mean_of_two_logits_and_knows_the_position() -> None:
    torch.manual_seed(5)
    critic = HAGAN(Shape(32, 4)).critic.eval()
    slab, low = torch.randn(2, 1, 4, 32, 32), torch.randn(2, 1, 8, 8, 8)
    seen, head, of_low = critic.of_slab(slab), critic.head, critic.of_low(low)
    for start in (0, 12, 28):
        expected = head(torch.cat([seen, torch.full((2, 1), start / 28)], 1)) / 2 + of_low / 2
        torch.testing.assert_close(critic(slab, low, torch.tensor([start] * 2)), expected[:, 0])


def test_every_layer_of_the_critic_is_normalised_and_no_other() -> None:
    module = HAGAN(Shape(32, 16))
    weights = {name for name, _ in module.critic.named_parameters() if not name.endswith("bias")}
    vectors = {name for name, _ in module.named_buffers()}
    assert weights == {name.removesuffix("0.left").removeprefix("critic.") + "original" for name in vectors}
    layers = [part for part in module.critic.modules() if isinstance(part, nn.Conv3d | nn.Linear)]
    assert len(weights) == len(vectors) == len(layers) == 8
    assert all(layer.bias is not None for layer in layers)


def test_a_normalised_weight_and_its_gradient_follow_the_formula() -> None:
    torch.manual_seed(6)
    layer = spectrally_normalised(nn.Conv3d(3, 4, 2))
    raw, norm = layer.parametrizations.weight.original, layer.parametrizations.weight[0]  # type: ignore[union-attr, index]
    assert isinstance(raw, nn.Parameter)
    assert isinstance(norm, SpectralNorm)
    first = norm.left.clone()
    assert float(first.norm()) == pytest.approx(1.0, rel=1e-6)  # of normal numbers: no step has been made
    toward = torch.randn_like(raw)
    (layer.weight * toward).sum().backward()  # type: ignore[operator]
    matrix, other = (tensor.detach().double().flatten(1) for tensor in (raw, toward))
    right = matrix.T @ first.double()
    right /= right.norm()
    left = matrix @ right
    left /= left.norm()
    sigma = left @ matrix @ right
    torch.testing.assert_close(norm.left.double(), left, rtol=1e-5, atol=1e-6)
    expected = other / sigma - (other * matrix).sum() / sigma**2 * torch.outer(left, right)  # vectors are constant
    assert raw.grad is not None
    torch.testing.assert_close(raw.grad.double().flatten(1), expected, rtol=1e-4, atol=1e-5)


def test_the_largest_singular_value_becomes_one_step_by_step() -> None:
    torch.manual_seed(7)
    layer = spectrally_normalised(nn.Linear(6, 5))
    values = []
    for _ in range(200):
        values.append(float(torch.linalg.matrix_norm(layer.weight.detach(), 2)))  # type: ignore[operator]
    assert values[0] > 1.001  # one step from random numbers underestimates
    assert values[-1] == pytest.approx(1.0, abs=1e-4)


def test_vectors_move_once_per_evaluation_in_training_and_never_else() -> None:
    torch.manual_seed(8)
    critic = HAGAN(Shape(32, 16)).critic
    inputs = torch.randn(1, 1, 4, 32, 32), torch.randn(1, 1, 8, 8, 8), torch.tensor([4])

    def vectors() -> Tensor:
        return torch.cat([buffer for _, buffer in critic.named_buffers()]).clone()

    seen = [vectors()]
    for training in (True, True, False, False):
        critic.train(training)
        output = critic(*inputs)
        seen.append(vectors())
    steps = [not torch.equal(one, other) for one, other in pairwise(seen)]
    assert steps == [True, True, False, False]
    assert torch.equal(output, critic(*inputs))


def test_the_estimate_is_not_rounded_by_autocast() -> None:
    torch.manual_seed(9)
    weight = torch.randn(64, 256)
    norm = SpectralNorm(weight).eval()
    exact = norm(weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(weight), exact)
