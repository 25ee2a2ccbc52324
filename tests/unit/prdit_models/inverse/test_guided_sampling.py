"""Samplers with guides: what stays to the bit, what the literal oracle says, and the posterior of Gaussian data."""

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.ddpm import DDPMProcess
from prdit_models.diffusion.flow import FlowProcess
from prdit_models.diffusion.process import PROCESSES, Process, SampleResult
from prdit_models.diffusion.sampler import samplers_of
from prdit_models.diffusion.sampling import Sampler, sample
from prdit_models.diffusion.schedule import plan
from prdit_models.diffusion.steering import DivergedError, rms
from prdit_models.families.family import FAMILIES, Request
from prdit_models.intensity import HounsfieldWindow
from prdit_models.inverse.guides import GUIDES, TF, Projection
from prdit_models.inverse.model_range import InModelRange
from prdit_models.networks.cascade import RefinedPRDiT
from prdit_models.networks.config import CascadeConfig, ModelConfig
from prdit_models.networks.prdit import PRDiT
from prdit_models.tracing import MemoryTrace
from tests.oracles import gaussian_posterior, operators, prdit_literal

WINDOW = HounsfieldWindow()
SIZE = 8
MADE: dict[str, Callable[[], Process]] = {
    "cosine": CosineProcess,
    "flow": FlowProcess,
    "ddpm": lambda: DDPMProcess(prediction="image"),
}
PAIRS = [(process, name) for process in MADE for name in samplers_of(process)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors, and sums in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@functools.cache
def _network(outputs: int, arithmetic: str = "prdit") -> PRDiT:
    """A network with a frozen local branch, whose outputs depend on everything."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PRDiT(ModelConfig(SIZE, 4, 2, 1, 24, 2, 1, out_channels=outputs, arithmetic=arithmetic)).eval()
    _move(model)
    return model


def _move(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for place, parameter in enumerate(model.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=_generators(place)[0]))


def _measured(noise_std: float = 20.0, batch: int = 1) -> InModelRange:
    truth = torch.randn(batch, 1, SIZE, SIZE, SIZE, generator=_generators(99)[0]).clamp(-1, 1)
    operator = operators.block_means(noise_std)
    return InModelRange(operator, WINDOW, operator.forward(WINDOW.to_hu(truth)))


def _draw(process: Process, sampler: Sampler, guide: Any, *seeds: int) -> SampleResult:
    model = _network(process.outputs)
    return sample(model, process, sampler, volume_size=SIZE, generators=_generators(*seeds), guide=guide)


# -- to the bit ---------------------------------------------------------------------------------------------------------


def test_every_process_of_ours_is_guided() -> None:
    assert set(MADE) == set(PROCESSES.names())


@pytest.mark.parametrize(("process", "name"), PAIRS)
def test_strength_zero_changes_no_bit_and_any_other_does(process: str, name: str) -> None:
    made, sampler = MADE[process](), Sampler(name, 6)
    plain = _draw(made, sampler, None, 1, 2)
    for guide in GUIDES.names():
        none = _draw(made, sampler, GUIDES[guide](_measured(), strength=0.0), 1, 2)
        assert torch.equal(none.x, plain.x)
        assert torch.equal(none.x0, plain.x0)
        guided = _draw(made, sampler, GUIDES[guide](_measured(), strength=0.5), 1, 2)
        if not GUIDES[
            guide
        ].differentiates:  # the derivative of an untrained network may lead away from y: then nothing is done
            assert float((guided.x - plain.x).abs().max()) > 1e-3, guide
        assert not guided.x.requires_grad
        assert not guided.x0.requires_grad


@pytest.mark.parametrize("guide", GUIDES.names())
def test_a_volume_does_not_depend_on_its_batch(guide: str) -> None:
    """To the bit, with a network that computes volumes one by one: products of matrices sum in another order."""
    network, process = _network(2), CosineProcess()

    def alone(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([network(row, t) for row in x.split(1)])

    def draw(measured: InModelRange, *seeds: int) -> Tensor:
        sampler = Sampler("predictor-corrector", 5)
        made = GUIDES[guide](measured)
        return sample(alone, process, sampler, volume_size=SIZE, generators=_generators(*seeds), guide=made).x

    together = draw(_measured(), 10, 11, 12)
    assert torch.equal(draw(_measured(), 11), together[1:2])
    assert torch.equal(draw(_measured(), 12, 10), together[[2, 0]])
    assert float((together[0] - together[1]).abs().max()) > 0.01  # several samples of one measurement differ
    several = _measured(batch=3)
    second = InModelRange(several.operator, WINDOW, several.measurement[1:2])
    assert torch.equal(draw(several, 10, 11, 12)[1:2], draw(second, 11))


def test_progress_and_result_are_of_the_corrected_image() -> None:
    measured, seen = _measured(noise_std=0.0), []
    result = sample(
        _network(2),
        CosineProcess(),
        Sampler("predictor-corrector", 4),
        volume_size=SIZE,
        generators=_generators(0),
        guide=Projection(measured),
        callback=lambda done, total, image: seen.append((done, total, float(measured.residual(image).abs().max()))),
    )
    assert [(done, total) for done, total, _ in seen] == [(n, 4) for n in range(1, 5)]
    assert max(left for _, _, left in seen) < 0.01  # HU
    assert float(measured.residual(result.x0).abs().max()) < 0.01


def test_the_image_of_an_evaluation_without_a_step_has_the_measurement_of_the_state() -> None:
    """The published schedule ends with an evaluation at t = 0, after which nothing is corrected."""
    measured, sampler = _measured(10.0), Sampler("predictor-corrector", 20, "published")
    ended, plain = (
        _draw(CosineProcess(), sampler, Projection(measured, within_window=within), 0) for within in (True, False)
    )
    left = [float(rms(measured.residual(each.x0) - measured.residual(plain.x))) for each in (ended, plain)]
    assert left[0] < 1.0  # a tenth of the noise
    assert left[1] > 50.0
    assert float(ended.x0.abs().max()) <= 1.0


# -- gradients through the network ------------------------------------------------------------------------------------


def _cascade() -> torch.nn.Module:
    base = ModelConfig(SIZE // 2, 4, 2, 1, 24, 2, 1)
    model = RefinedPRDiT(CascadeConfig(ModelConfig(SIZE, 4, 2, 1, 24, 2, 0), base)).eval()
    _move(model)
    return model


@pytest.mark.parametrize("make", [lambda: copy.deepcopy(_network(2)), _cascade], ids=["global", "refiner"])
@pytest.mark.parametrize("prepared", [True, False])
def test_the_derivative_goes_through_frozen_branches(make: Callable[[], Any], prepared: bool) -> None:
    """Against a difference quotient, float64. A frozen branch computes without a graph in training."""
    model, t = make().double(), torch.tensor(400)
    x, way = (torch.randn(1, 1, SIZE, SIZE, SIZE, dtype=torch.float64, generator=g) for g in _generators(1, 2))
    with model.prepared(torch.tensor([400.0] if prepared else [])):
        seen = x.clone().requires_grad_()
        image = model(seen, t)[:, 1:]
        (gradient,) = torch.autograd.grad(image.square().sum(), seen)
        with torch.no_grad():
            ahead, behind = (model(x + step * way, t)[:, 1:].square().sum() for step in (1e-5, -1e-5))
    assert float((gradient * way).sum()) == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-6)


def test_only_guides_that_need_it_record_the_network() -> None:
    recorded: dict[str, list[bool]] = {name: [] for name in GUIDES.names()}
    for name, seen in recorded.items():

        def watching(x: Tensor, t: Tensor, seen: list[bool] = seen) -> Tensor:
            seen.append(torch.is_grad_enabled() or x.requires_grad)
            return _network(2)(x, t)

        guide = GUIDES[name](_measured())
        sample(watching, CosineProcess(), Sampler("euler", 3), volume_size=SIZE, generators=_generators(0), guide=guide)
    assert recorded == {"projection": [False] * 3, "pigdm": [True] * 3, "dps": [True] * 3, "tf": [False] * 3}


@pytest.mark.parametrize("process", list(MADE))
@pytest.mark.parametrize("guide", GUIDES.names())
def test_memory_is_flat_in_steps(process: str, guide: str) -> None:
    made, name = MADE[process](), {"ddpm": "ddim"}.get(process, "euler")

    def peak(steps: int) -> int:
        with MemoryTrace() as memory:
            _draw(made, Sampler(name, steps), GUIDES[guide](_measured(), strength=0.1), 0)
        return memory.peak_bytes

    _network(made.outputs)
    peak(2)  # what is made once
    assert peak(24) <= peak(4) + 20 * 2 * 4 * 2000  # modulations of 20 more times are prepared


# -- the published guide ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [20, 250])
def test_tf_against_the_literal_oracle(num_steps: int) -> None:
    """Jump 4, noise 0.95, corrector where i - 4(i - j) ≥ 0, weight 0.35(1 + cos((1 - t/T)π)), off for t ≤ 20; float64."""
    model, process = copy.deepcopy(_network(2, "tf")).double(), CosineProcess(noise_std=1.0)
    state, numbers = dict(model.state_dict()), asdict(model.config)
    generator = _generators(5)[0]
    drawn = [torch.randn(1, 1, SIZE, SIZE, SIZE, dtype=torch.float64, generator=generator) for _ in range(num_steps)]
    operator = operators.ray_sums(0.0)
    y = operator.forward(
        WINDOW.to_hu(torch.tanh(torch.randn(drawn[0].shape, dtype=torch.float64, generator=generator)))
    )

    def measure(x: Tensor) -> Tensor:  # 1 + HU/1000 = 1 + x in this window
        return torch.stack([x.sum(3), x.sum(4)], 1) + SIZE

    expected, image = prdit_literal.tf_guided_sampler(
        lambda x, t: prdit_literal.forward(state, numbers, x, t, "tf"), drawn[0], num_steps, drawn[1:], measure, y
    )
    left = iter(drawn)
    found = sample(
        model,
        process,
        Sampler("predictor-corrector-tf", num_steps, "published"),
        volume_size=SIZE,
        generators=_generators(0),
        noise_source=lambda _: next(left),
        guide=TF(InModelRange(operator, WINDOW, y), within_window=False),
    )
    assert len(list(left)) == 3  # no corrector at t of 3, 2 and 1 steps, and at 0; one draw is the initial state
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.x, expected, atol=1e-5 * scale, rtol=0)
    torch.testing.assert_close(found.x0, image, atol=1e-5 * scale, rtol=0)
    plain, _ = prdit_literal.tf_guided_sampler(
        lambda x, t: prdit_literal.forward(state, numbers, x, t, "tf"), drawn[0], num_steps, drawn[1:], measure, y, 0.0
    )
    assert float((plain - expected).abs().max()) > 0.05 * scale


def test_the_published_schedule_of_tf() -> None:
    steps = plan(Sampler("predictor-corrector-tf", 250, "published"))
    assert [step.t for step in steps if not step.corrects] == [12.0, 8.0, 4.0, 0.0]
    first = steps[0]
    assert (first.t, first.target) == (996.0, 992.0)
    assert first.advance == pytest.approx(4 * 4 * torch.pi / 2000, rel=1e-4)
    plain = plan(Sampler("predictor-corrector", 250, "published", predictor_step=4))
    assert first.alpha == plain[0].alpha
    assert first.noise == pytest.approx(0.95 * plain[0].noise, rel=1e-6)
    assert [step.t for step in plain if not step.corrects] == [
        16.0,
        12.0,
        8.0,
        4.0,
        0.0,
    ]  # there the jump must end above 0


# -- the posterior of Gaussian data -------------------------------------------------------------------------------------

EXACT = {
    "data_std": gaussian_posterior.STD,
    "solver_steps": 60,
    "solver_tolerance": 1e-8,
    "within_window": False,  # the data's own values go beyond it
}


@pytest.mark.parametrize(
    ("process", "name", "bound"),
    [("cosine", "dpmpp-2m", 0.006), ("cosine", "heun", 0.02), ("flow", "euler", 0.12), ("ddpm", "ddim", 0.25)],
)
def test_projection_finds_the_posterior_of_white_data(process: str, name: str, bound: float) -> None:
    """The mean at once, the covariance with the order of the sampler: what is left is the sampler's own error."""
    problem = gaussian_posterior.Problem.of(operators.block_means(gaussian_posterior.NOISE_HU), correlated=False)
    fits = [
        gaussian_posterior.fit(problem, MADE[process](), Sampler(name, steps), Projection(problem.measured, **EXACT))  # type: ignore[arg-type]
        for steps in (10, 40)
    ]
    assert fits[1].mean_error < 0.006
    coarse, fine = (max(abs(found.std_error), found.covariance_error) for found in fits)
    assert fine < bound
    assert fine < 0.4 * coarse
    unguided = gaussian_posterior.fit(problem, MADE[process](), Sampler(name, 40), None)
    assert unguided.mean_error > 0.2


def test_guides_on_correlated_data() -> None:
    """What docs/guided.md says of them: every guide finds more than half of the way; none is exact."""
    problem = gaussian_posterior.Problem.of(operators.ray_sums(0.1), correlated=True)
    process, sampler = CosineProcess(), Sampler("dpmpp-2m", 20)
    unguided = gaussian_posterior.fit(problem, process, sampler, None)
    for guide in (Projection(problem.measured), GUIDES["dps"](problem.measured), GUIDES["pigdm"](problem.measured)):
        found = gaussian_posterior.fit(problem, process, sampler, guide)
        assert found.mean_error < 0.5 * unguided.mean_error
        assert found.covariance_error < 0.5 * unguided.covariance_error


def test_a_strength_that_diverges_is_named() -> None:
    for guide, strength in (("projection", 30.0), ("tf", 1000.0)):
        made = GUIDES[guide](_measured(), strength=strength)
        with pytest.raises(DivergedError, match=rf"diverged: .*lower strength \(it is {strength:g}\) or more steps"):
            _draw(CosineProcess(), Sampler("dpmpp-2m", 20), made, 0)


# -- families -----------------------------------------------------------------------------------------------------------


def test_the_families_that_take_a_guide() -> None:
    guide = Projection(_measured(noise_std=0.0))
    request = Request(Sampler("predictor-corrector", 3), guide=guide)
    family = FAMILIES["global"]
    model = _network(2)
    found = family.generate(model, CosineProcess(), request, _generators(0, 1))
    assert float(guide.measured.residual(found).abs().max()) < 0.01
    guided = {name: bool(getattr(FAMILIES[name], "guided", False)) for name in FAMILIES.names()}
    assert guided == {
        "local": False,
        "global": True,
        "refiner": True,
        "local-alone": True,
        "autoencoder-kl": False,
        "latent-diffusion": False,
        "wdm": False,
        "hagan": False,
    }
    for name in ("latent-diffusion", "hagan"):
        other: Any = FAMILIES[name]
        with pytest.raises(
            ValueError, match=rf"cannot be guided .*{other.title[:6]}.*use that of a global transformer"
        ):
            other.check({}, DDPMProcess(), Request(Sampler("ddim", 2), guide=guide))
        with pytest.raises(ValueError, match="cannot be guided"):
            other.generate(torch.nn.Module(), DDPMProcess(), Request(Sampler("ddim", 2), guide=guide), _generators(0))
