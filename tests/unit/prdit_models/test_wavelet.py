"""WDM-3D against its description: transform, network, losses and sampling, each by another way; and what it learns."""

import itertools
import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prdit_models import plan as planning
from prdit_models.conditions import Conditions
from prdit_models.diffusion.ddpm import DDPMProcess
from prdit_models.diffusion.sampler import Sampler
from prdit_models.families.family import FAMILIES, Batch, Given, HeldOut, Request, Training
from prdit_models.networks.wavelet import (
    SUBBANDS,
    WaveletConfig,
    WaveletUNet,
    to_subbands,
    to_volumes,
    wavelet_config,
)
from prdit_models.plan import Planned, Work, count_parameters, memory_of
from prdit_models.tracing import MemoryTrace

pytest.importorskip("ptwt")

FAMILY: Any = FAMILIES["wdm"]
PROCESS = DDPMProcess(prediction="image", variance="large")
SMALL = FAMILY.settings(base_width=8, groups=4)
TINY = WaveletConfig(size=16, base_width=8, multipliers=(1, 2), groups=4)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Products of this size take longer when they are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def moved(config: WaveletConfig, **options: Any) -> WaveletUNet:
    """A network whose parameters are all away from their first values, of which many are 0."""
    torch.manual_seed(0)
    network = WaveletUNet(config, **options)
    with torch.no_grad():
        for place, parameter in enumerate(network.parameters()):
            parameter.add_(0.05 * random(*parameter.shape, seed=place))
    return network


# -- the transform -----------------------------------------------------------------------------------------------------


def literal_subbands(volumes: np.ndarray) -> np.ndarray:
    """Sums of the eight voxels of each block with the signs of the bands, over √8; LLL over 3; float64."""
    found = []
    for name in SUBBANDS:
        total = 0.0
        for place in itertools.product((0, 1), repeat=3):
            sign = math.prod(-1 if letter == "H" and second else 1 for letter, second in zip(name, place, strict=True))
            d, h, w = place
            total = total + sign * volumes[:, 0, d::2, h::2, w::2]
        found.append(total / math.sqrt(8) / (3 if name == "LLL" else 1))
    return np.stack(found, axis=1)


def test_the_transform_is_the_orthonormal_one_and_is_undone() -> None:
    volumes = random(2, 1, 16, 16, 16).clamp(-1, 1)
    subbands = to_subbands(volumes)
    np.testing.assert_allclose(subbands.numpy(), literal_subbands(volumes.double().numpy()), atol=1e-7)
    assert (subbands.dtype, subbands.shape) == (torch.float32, (2, 8, 8, 8, 8))
    assert float((to_volumes(subbands) - volumes).abs().max()) < 1e-6
    assert float((to_subbands(to_volumes(subbands)) - subbands).abs().max()) < 1e-6
    scaled = subbands.double() * torch.tensor([3.0] + [1.0] * 7).view(1, 8, 1, 1, 1)
    assert float(scaled.square().sum()) == pytest.approx(float(volumes.double().square().sum()), rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):  # a training in bf16 computes its target in full
        assert torch.equal(to_subbands(volumes), subbands)
        assert float((to_volumes(subbands) - volumes).abs().max()) < 1e-6


def test_signs_and_order_of_the_bands() -> None:
    impulse = torch.zeros(1, 1, 2, 2, 2)
    impulse[..., 1] = torch.tensor([[1.0, 0.0], [0.0, 0.0]])  # the second position of W, the first of D and H
    found = dict(zip(SUBBANDS, to_subbands(impulse).flatten().tolist(), strict=True))
    for name, value in found.items():
        expected = (-1 if name[-1] == "H" else 1) * 0.35355339 / (3 if name == "LLL" else 1)
        assert value == pytest.approx(expected, abs=1e-7), name
    constant = to_subbands(torch.full((1, 1, 4, 4, 4), 0.5))
    assert constant[:, 0].flatten().tolist() == pytest.approx([0.5 * 2 * math.sqrt(2) / 3] * 8, abs=1e-7)
    assert float(constant[:, 1:].abs().max()) < 1e-12


# -- the network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "multipliers", "parameters"),
    [
        (256, (1, 2, 2, 4, 4, 4), 83_158_728),
        (128, (1, 2, 2, 4, 4), 57_914_824),
        (64, (1, 2, 2, 4), 32_670_920),
        (32, (1, 2, 2), 13_179_208),
    ],
)
def test_parameters_of_every_size(size: int, multipliers: tuple[int, ...], parameters: int) -> None:
    config = wavelet_config(size)
    assert config == WaveletConfig(size, 64, multipliers, 32)
    with torch.device("meta"):
        network = WaveletUNet(config)
        edge = size // 2
        assert network(torch.empty(2, 8, edge, edge, edge), torch.zeros(2)).shape == (2, 8, edge, edge, edge)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_blocks_of_the_published_network() -> None:
    """Widths and edges of every block at 128, as the table of the architecture has them."""
    with torch.device("meta"):
        network = WaveletUNet(wavelet_config(128))
        found: list[tuple[int, int, int]] = []
        for block in [*network.encoder, *network.middle, *network.decoder]:
            block.register_forward_hook(lambda _, given, out: found.append((given[0].shape[1], *out.shape[1:3])))
        network(torch.empty(1, 8, 64, 64, 64), torch.zeros(()))
    encoder = [
        *((64, 64, 64), (64, 64, 64), (64, 64, 32)),
        *((64, 128, 32), (128, 128, 32), (128, 128, 16)),
        *((128, 128, 16), (128, 128, 16), (128, 128, 8)),
        *((128, 256, 8), (256, 256, 8), (256, 256, 4)),
        *((256, 256, 4), (256, 256, 4)),
    ]
    middle = [(256, 256, 4)] * 2
    decoder = [
        *((256, 256, 4), (256, 256, 4), (256, 256, 4), (256, 256, 8)),
        *((256, 256, 8), (256, 128, 8), (128, 128, 8), (128, 128, 16)),
        *((128, 128, 16), (128, 128, 16), (128, 128, 16), (128, 128, 32)),
        *((128, 128, 32), (128, 64, 32), (64, 64, 32), (64, 64, 64)),
        *((64, 64, 64), (64, 64, 64), (64, 64, 64)),
    ]
    assert found == [*encoder, *middle, *decoder]


def literal_network(weights: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
    """The U-Net of two levels, base 8 and 4 groups, layer by layer."""

    def norm(name: str, h: Tensor) -> Tensor:
        parts = h.reshape(len(h), 4, -1)
        parts = (parts - parts.mean(2, keepdim=True)) / torch.sqrt(parts.var(2, unbiased=False, keepdim=True) + 1e-5)
        gain, shift = (weights[f"{name}.{part}"].view(1, -1, 1, 1, 1) for part in ("weight", "bias"))
        return parts.reshape(h.shape) * gain + shift

    def conv(name: str, h: Tensor, padding: int = 1) -> Tensor:
        return F.conv3d(h, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)

    def linear(name: str, h: Tensor) -> Tensor:
        return h @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def silu(h: Tensor) -> Tensor:
        return h / (1 + torch.exp(-h))

    def halved(h: Tensor) -> Tensor:
        return h.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5, 7))

    def doubled(h: Tensor) -> Tensor:
        return h.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)

    def block(name: str, h: Tensor, resample: Any = lambda h: h) -> Tensor:
        inside = conv(f"{name}.conv1", resample(silu(norm(f"{name}.norm1", h))))
        inside = inside + linear(f"{name}.time", silu(time))[:, :, None, None, None]
        inside = conv(f"{name}.conv2", silu(norm(f"{name}.norm2", inside)))
        skip = resample(h)
        return (conv(f"{name}.skip", skip, 0) if f"{name}.skip.weight" in weights else skip) + inside

    frequencies = torch.tensor([10000 ** (-j / 4) for j in range(4)], dtype=torch.float64)
    angles = t.double()[:, None] * frequencies
    time = linear("time.2", silu(linear("time.0", torch.cat([angles.cos(), angles.sin()], 1))))
    s0 = conv("first", x)
    s1 = block("encoder.0", s0)
    s2 = block("encoder.1", s1)
    s3 = block("encoder.2", s2, halved)
    s4 = block("encoder.3", s3)
    s5 = block("encoder.4", s4)
    h = block("middle.1", block("middle.0", s5))
    for place, skip in enumerate((s5, s4, s3)):
        h = block(f"decoder.{place}", (h + skip) / 2)
    h = block("decoder.3", h, doubled)
    for place, skip in enumerate((s2, s1, s0), start=4):
        h = block(f"decoder.{place}", (h + skip) / 2)
    return conv("last", silu(norm("norm", h)))


def test_the_network_layer_by_layer() -> None:
    network = moved(TINY)
    x, t = random(2, 8, 8, 8, 8, seed=99), torch.tensor([3, 700])
    weights = {name: value.double() for name, value in network.state_dict().items()}
    expected = literal_network(weights, x.double(), t)
    found = network(x, t)
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(network(x, torch.tensor(700))[1], found[1], atol=1e-6, rtol=1e-5)


def test_a_fresh_network_predicts_zeros_and_its_blocks_add_nothing() -> None:
    network = WaveletUNet(TINY)
    assert torch.count_nonzero(network(random(1, 8, 8, 8, 8), torch.tensor(5))) == 0
    block: Any = network.encoder[0]
    h = random(1, 8, 8, 8, 8)
    assert torch.equal(block(h, random(1, 32)), h)
    zeros = {name for name, value in network.state_dict().items() if not value.any()}
    assert {name for name in zeros if name.endswith("weight")} == {
        "last.weight",
        *(
            f"{part}.conv2.weight"
            for part in dict.fromkeys(name.rpartition(".conv2")[0] for name in zeros if ".conv2." in name)
        ),
    }
    assert sum(name.endswith("conv2.weight") for name in zeros) == 5 + 2 + 7


def test_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        network = moved(TINY, checkpointing=checkpointing)
        network(random(1, 8, 8, 8, 8), torch.tensor([4])).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


# -- the family --------------------------------------------------------------------------------------------------------


def test_description_and_deviations() -> None:
    published = FAMILY.describe(FAMILY.settings(), Given(128, 2.0, PROCESS))
    assert published == {"size": 128, "base_width": 64, "multipliers": [1, 2, 2, 4, 4], "groups": 32}
    assert FAMILY.deviations(published) == FAMILY.deviations(published, PROCESS) == ()
    other = DDPMProcess(prediction="image", num_steps=500)
    assert FAMILY.deviations(FAMILY.describe(SMALL, Given(32, 8.0, other)), other) == (
        "Size 32 is an adaptation (published: 128, 256): 3 levels, lowest edge 4.",
        "Base width 8 and 4 groups of the norms (published: 64 and 32).",
        "Process: num_steps 500 (published: 1000).",
        "Process: variance small (published: large).",
    )


def test_the_loss_is_the_squared_error_of_the_subbands() -> None:
    description = FAMILY.describe(SMALL, Given(16, 8.0, PROCESS))
    training = Training(SMALL, PROCESS)
    volumes = random(3, 1, 16, 16, 16).clamp(-1, 1)
    network = moved(TINY)
    drawn = [
        FAMILY.draw("main", description, training, (1, 16, 16, 16), torch.Generator().manual_seed(seed))
        for seed in (7, 8, 9)
    ]
    draws = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    assert (draws["t"].shape, draws["eps"].shape) == ((3,), (3, 8, 8, 8, 8))
    assert torch.equal(drawn[1]["eps"], torch.stack([one["eps"] for one in drawn])[1])
    losses = FAMILY.losses("main", network, Batch(volumes, draws), training)
    clean = torch.from_numpy(literal_subbands(volumes.double().numpy()))
    bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[draws["t"].numpy()].reshape(3, 1, 1, 1, 1)
    noisy = np.sqrt(bars) * clean.numpy() + np.sqrt(1 - bars) * draws["eps"].double().numpy()
    with torch.no_grad():
        found = network(torch.from_numpy(noisy).float(), draws["t"])
    by_band = (found.double() - clean).square().mean((0, 2, 3, 4))
    assert set(losses) == {"loss"}
    assert float(losses["loss"].detach()) == pytest.approx(float(by_band.mean()), rel=1e-5)


def test_validation_of_a_fresh_network_is_the_mean_square_of_the_subbands() -> None:
    volumes = random(3, 1, 16, 16, 16).clamp(-1, 1)
    found = FAMILY.validate(WaveletUNet(TINY), HeldOut(volumes, (0, 1, 2)), Training(SMALL, PROCESS), 2)
    expected = float(np.square(literal_subbands(volumes.double().numpy())).mean())
    assert list(found) == ["loss", "t050", "t200", "t400", "t600", "t800", "t950"]
    assert all(value == pytest.approx(expected, rel=1e-5) for value in found.values())


def test_sampling_is_ancestral_with_volumes_clamped() -> None:
    """The loop as it is described: predict, clamp as a volume, posterior mean, sqrt(β) noise but at the end; float64."""
    process = DDPMProcess(num_steps=6, beta_start=0.05, beta_end=0.6, prediction="image", variance="large")
    network = moved(TINY).eval()
    with torch.no_grad():
        network.last.bias[0] = 1.0  # so that the clamp is felt

    generator = torch.Generator().manual_seed(3)
    betas = np.linspace(0.05, 0.6, 6)
    bars = np.cumprod(1 - betas)
    state = torch.randn(1, 8, 8, 8, 8, generator=generator).double()
    clamped = []
    for t in reversed(range(6)):
        with torch.no_grad():
            volume = to_volumes(network(state.float(), torch.tensor(t)).double())
        clamped.append(float((volume.abs() > 1).double().mean()))
        image = torch.from_numpy(literal_subbands(volume.clamp(-1, 1).numpy()))
        if t == 0:
            state = image
            break
        mean = (math.sqrt(bars[t - 1]) * betas[t] * image + math.sqrt(1 - betas[t]) * (1 - bars[t - 1]) * state) / (
            1 - bars[t]
        )
        state = mean + math.sqrt(betas[t]) * torch.randn(1, 8, 8, 8, 8, generator=generator).double()
    assert min(clamped) > 0.01
    expected = to_volumes(state)
    seen: list[tuple[int, int, float]] = []
    found = FAMILY.generate(
        network,
        process,
        Request(Sampler("ancestral", 6)),
        [torch.Generator().manual_seed(3)],
        lambda done, total, volume: seen.append((done, total, float(volume.abs().max()))),
    )
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)
    assert [one[:2] for one in seen] == [(n, 6) for n in range(1, 7)]
    assert max(one[2] for one in seen) <= 1 + 1e-6
    assert found.shape == (1, 1, 16, 16, 16)


def test_volume_i_depends_on_generator_i_alone() -> None:
    network, request = moved(TINY).eval(), Request(Sampler("ancestral", 3))

    def draw(*seeds: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn: Tensor = FAMILY.generate(network, PROCESS, request, generators)
        return drawn

    together = draw(1, 2, 3)
    assert float((together[0] - together[1]).abs().max()) > 0.01
    torch.testing.assert_close(draw(3, 1), together[[2, 0]], atol=1e-5, rtol=0)


def test_what_is_planned_is_what_is_used() -> None:
    planned = Planned(FAMILY, TINY.to_dict(), Training(SMALL, PROCESS), 16)
    network = moved(TINY).eval().requires_grad_(False)
    memory = MemoryTrace()
    memory.hold(list(network.parameters()))
    with memory:
        FAMILY.generate(network, PROCESS, Request(Sampler("ddim", 4)), [torch.Generator() for _ in range(4)])
    counted = memory_of(Work("wdm", "sample"), planned, 4)
    assert counted.weights == 4 * count_parameters(planned)["all"]
    assert counted.weights + counted.activations == pytest.approx(memory.peak_bytes, rel=0.03)
    assert {work.what for work in planning._works("wdm", planned)} == {"train", "sample"}
    kept, recomputed = (
        memory_of(Work("wdm", "train", "fp32", again), planned, 4).activations for again in (False, True)
    )
    assert recomputed < 0.6 * kept


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "size", "process", "message"),
    [
        (SMALL, 100, PROCESS, r"size is 100; .* halve it 4 times .* Use a view.size of 96 or 112"),
        (SMALL, 6, PROCESS, r"size is 6; .* at least 8 voxels. Use a view.size of 8"),
        (FAMILY.settings(base_width=40), 64, PROCESS, "base_width 40 with 32 groups: .* Use a multiple of 32"),
        (FAMILY.settings(base_width=9, groups=3), 64, PROCESS, "base_width 9 with 3 groups: .* Use a multiple of 6"),
        (SMALL, 64, DDPMProcess(), r"prediction 'noise' and clip False; .*prediction: image, variance: large\}"),
        (SMALL, 64, DDPMProcess(prediction="image", clip=True), "clip True; .* clamps volumes, not subbands"),
    ],
)
def test_models_that_cannot_be(settings: Any, size: int, process: DDPMProcess, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FAMILY.describe(settings, Given(size, 2.0, process))


def test_what_the_family_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    description = FAMILY.describe(SMALL, Given(16, 8.0, PROCESS))
    with pytest.raises(ValueError, match="label_column is set; family 'wdm' takes no labels"):
        FAMILY.describe(SMALL, Given(16, 8.0, PROCESS, num_classes=2))
    with pytest.raises(ValueError, match=r"label was asked for \(sample.label\) of family 'wdm'"):
        FAMILY.check(description, PROCESS, Request(Sampler("ddim", 2), conditions=Conditions(labels=torch.tensor([1]))))
    with pytest.raises(ValueError, match=r"sampled by: ancestral, ddim"):
        FAMILY.check(description, PROCESS, Request(Sampler()))
    with pytest.raises(ValueError, match="groups is 0"):
        FAMILY.settings(groups=0)
    with pytest.raises(ValueError, match=r"x has shape \(1, 8, 4, 4, 4\); this network takes \(B, 8, 8, 8, 8\)"):
        WaveletUNet(TINY)(torch.zeros(1, 8, 4, 4, 4), torch.tensor(0))
    with pytest.raises(ValueError, match=r"size is 18; .* 1 halvings .* a multiple of 4"):
        WaveletConfig(size=18, base_width=8, multipliers=(1, 2), groups=4)
    with pytest.raises(ValueError, match="cannot be made of"):
        WaveletConfig.from_dict({"size": 16})
    monkeypatch.setitem(sys.modules, "ptwt", None)
    for use in (
        lambda: FAMILY.describe(SMALL, Given(16, 8.0, PROCESS)),
        lambda: FAMILY.check(description, PROCESS, Request(Sampler("ddim", 2))),
    ):
        with pytest.raises(ValueError, match=r"needs the package ptwt, .*pip install 'prdit\[baselines\]'"):
            use()


# -- what it learns ----------------------------------------------------------------------------------------------------


MODES = torch.cat([torch.full((4, 8, 8), 0.6), torch.full((4, 8, 8), -0.6)])


def two_modes(count: int, generator: torch.Generator) -> Tensor:
    """Volumes of 8³: three of four bright above and dark below, the others the other way round; grain of 0.05."""
    sign = torch.tensor([1.0, 1.0, 1.0, -1.0]).repeat(count // 4).view(-1, 1, 1, 1, 1)
    return sign * MODES + 0.05 * torch.randn(count, 1, 8, 8, 8, generator=generator)


def test_a_training_learns_two_modes_and_their_weights() -> None:
    torch.manual_seed(0)
    settings, steps = FAMILY.settings(base_width=16, groups=4), 200
    description = FAMILY.describe(settings, Given(8, 8.0, PROCESS))
    module, training = FAMILY.build(description), Training(settings, PROCESS, lr=2e-3)
    optimizer = FAMILY.optimizers(module, training)["main"]
    assert optimizer.defaults["weight_decay"] == 0
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        volumes = two_modes(16, generator)
        drawn = [FAMILY.draw("main", description, training, (1, 8, 8, 8), generator) for _ in volumes]
        draws = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
        optimizer.param_groups[0]["lr"] = training.lr * (1 - step / steps)
        optimizer.zero_grad()
        FAMILY.losses("main", module, Batch(volumes, draws), training)["loss"].backward()
        optimizer.step()
    generators = [torch.Generator().manual_seed(1000 + index) for index in range(200)]
    found = FAMILY.generate(module.eval(), PROCESS, Request(Sampler("ancestral", 20)), generators)[:, 0]
    distances = torch.stack([(found - sign * MODES).square().mean((1, 2, 3)).sqrt() for sign in (1, -1)])
    assert float(distances.min(0).values.max()) < 0.3  # the other mode is at 1.2
    # Other seeds find 0.72 to 0.86. All volumes of one mode, or of both alike, are outside.
    assert float((distances[0] < distances[1]).double().mean()) == pytest.approx(0.75, abs=0.15)
