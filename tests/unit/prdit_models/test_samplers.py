import math

import pytest
import torch
from torch import Tensor

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.flow import FlowProcess
from prdit_models.diffusion.parametrization import PARAMETRIZATION, Estimates, Heads
from prdit_models.diffusion.sampler import PARAMETRIZATIONS, SCHEDULES, samplers_of
from prdit_models.diffusion.sampling import Sampler, sample
from prdit_models.diffusion.schedule import even_times, plan, respaced_times
from prdit_models.networks.config import ModelConfig, model_config
from prdit_models.networks.prdit import PRDiT
from tests.oracles import gaussian
from tests.oracles.gaussian import Moments, moments
from tests.oracles.gaussian_closed_form import final_moments


def _generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# -- Gaussian data: the denoiser is known in closed form ----------------------------------------------------------------


# |error of the standard deviation| by evaluations; the mean is right to 0.005 from the first of them on
BOUNDS = {
    "dpmpp-2m": {10: 0.03, 20: 0.01, 50: 0.002},
    "dpmpp-2m-sde": {20: 0.02, 50: 0.01},
    "heun": {20: 0.01, 50: 0.002},
}


@pytest.mark.parametrize("steps", [5, 10, 20, 50, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", samplers_of("cosine"))
def test_gaussian_data_in_closed_form(name: str, schedule: str, steps: int) -> None:
    """Every sampler's moments against the same worked out without it, and the bounds of the default schedule."""
    found = moments(Sampler(name, steps, schedule))
    mean, std = final_moments(name, schedule, steps)
    rounding = (
        2e-5 if schedule == "published" else 1e-6
    )  # published coefficients, and all times a model sees, are float32
    assert found.mean_error == pytest.approx(mean - gaussian.MEAN, abs=rounding)
    assert found.relative_std_error == pytest.approx(std / gaussian.SPREAD - 1, abs=rounding)
    if name == "predictor-corrector-tf":  # its noise is too weak by design: it has no bound to keep
        assert found.evaluations == steps
    elif schedule == "even":
        assert found.evaluations == steps
        bounds = BOUNDS.get(name, {1000: 0.002})
        if steps >= min(bounds):
            assert abs(found.mean_error) <= 0.005
            assert abs(found.relative_std_error) <= min(bound for n, bound in bounds.items() if n <= steps)
    elif steps == 1000:
        assert abs(found.mean_error) <= 0.001
        assert abs(found.relative_std_error) <= 0.002


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("name", samplers_of("cosine"))
def test_a_consistent_network_is_the_same_in_every_parametrization(name: str, parametrization: str) -> None:
    for schedule in SCHEDULES:
        found = moments(Sampler(name, 20, schedule, parametrization=parametrization))
        mean, std = final_moments(name, schedule, 20)
        assert found.mean_error == pytest.approx(mean - gaussian.MEAN, abs=2e-5)
        assert found.relative_std_error == pytest.approx(std / gaussian.SPREAD - 1, abs=2e-5)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("rotation", 1), ("heun", 2), ("dpmpp-2m", 2)])
def test_errors_fall_with_the_order_of_the_sampler(name: str, order: int) -> None:
    coarse, fine = (abs(moments(Sampler(name, steps)).relative_std_error) for steps in (256, 1024))
    assert 0.5 * 4**order < coarse / fine < 3 * 4**order


def test_published_figures_of_scale() -> None:
    """Known before: the published hot sampler is off by 5 % and 0.03 at 20 evaluations."""
    found = moments(Sampler("predictor-corrector", 20, "published"))
    assert found == Moments(pytest.approx(-0.03, abs=0.003), pytest.approx(-0.05, abs=0.006), 20)


def test_moments_by_superposition_are_those_of_random_samples() -> None:
    sampler = Sampler("predictor-corrector", 12, predictor_step=3)
    exact = moments(sampler)

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        return gaussian.denoiser(x.double(), t)

    drawn = sample(denoiser, CosineProcess(), sampler, volume_size=32, generators=_generators(*range(8))).x
    assert float(drawn.mean()) - gaussian.MEAN == pytest.approx(exact.mean_error, abs=0.003)
    assert float(drawn.std()) / gaussian.SPREAD - 1 == pytest.approx(exact.relative_std_error, abs=0.006)


def test_image_prediction_samples_the_same() -> None:
    def image_only(x: Tensor, t: Tensor) -> Tensor:
        return gaussian.denoiser(x.double(), t).chunk(2, dim=1)[1]

    process = CosineProcess(prediction="image")
    for parametrization in PARAMETRIZATIONS:
        sampler = Sampler("dpmpp-2m", 40, parametrization=parametrization)
        drawn = sample(image_only, process, sampler, volume_size=20, generators=_generators(*range(4))).x
        assert float(drawn.mean()) == pytest.approx(gaussian.MEAN, abs=0.005)
        assert float(drawn.std()) == pytest.approx(gaussian.SPREAD, rel=0.015)


def test_flow_matching_finds_gaussian_data() -> None:
    """E[x0 - eps | x_t] in closed form for x_t = (1-t)·eps + t·x0."""

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        t = float(time) / 1000
        variance = (1 - t) ** 2 + (t * gaussian.SPREAD) ** 2
        return gaussian.MEAN + (t * gaussian.SPREAD**2 - (1 - t)) / variance * (x - t * gaussian.MEAN)

    for name, steps, bound in (("euler", 400, 0.01), ("heun", 80, 0.005)):
        drawn = sample(
            velocity, FlowProcess(), Sampler(name, steps), volume_size=16, generators=_generators(*range(7))
        ).x
        assert float(drawn.mean()) == pytest.approx(gaussian.MEAN, abs=0.003)
        assert float(drawn.std()) == pytest.approx(gaussian.SPREAD, rel=bound)


# -- networks with inconsistent heads ----------------------------------------------------------------------------------


def _contradicting(x: Tensor, t: Tensor) -> Tensor:
    """The exact denoiser with gains on its heads, as on a real network: noise 10 % and image 5 % too large."""
    eps, x0 = gaussian.denoiser(x.double(), t).chunk(2, dim=1)
    return torch.cat([1.1 * eps, 1.05 * x0], dim=1)


def _largest(sampler: Sampler) -> float:
    states: list[Tensor] = []

    def recording(x: Tensor, t: Tensor) -> Tensor:
        states.append(x)
        return _contradicting(x, t)

    final = sample(recording, CosineProcess(), sampler, volume_size=8, generators=_generators(0)).x
    return max(float(state.abs().max()) for state in (*states, final))


def _raw(_: Tensor, heads: Heads, sin: float, cos: float) -> Estimates:
    return Estimates(heads.eps, heads.x0, sin * heads.x0 - cos * heads.eps)


def test_estimates_that_agree_with_the_state_keep_it_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotating raw heads multiplies the state by up to 1.1 per step; a rotation of the state itself cannot do that."""
    bounded = _largest(Sampler("rotation", 200))
    assert bounded < 4.0  # 0.5 times the largest of 512 normal numbers is below 2
    assert _largest(Sampler("rotation", 200, parametrization="image")) < 4.0
    monkeypatch.setitem(PARAMETRIZATION, "velocity", _raw)
    assert _largest(Sampler("rotation", 200)) > 1000 * bounded


def test_samplers_agree_on_a_contradicting_network_once_they_follow_one_drift(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With `velocity` all deterministic samplers solve the same equation as Euler's method does."""
    process, ends = CosineProcess(), {}
    for name in ("euler", "rotation", "heun", "dpmpp-2m"):
        result = sample(_contradicting, process, Sampler(name, 800), volume_size=8, generators=_generators(0))
        ends[name] = result.x
    for name in ("rotation", "heun", "dpmpp-2m"):
        assert float((ends[name] - ends["euler"]).abs().max()) < 0.01
    monkeypatch.setitem(PARAMETRIZATION, "velocity", _raw)
    elsewhere = sample(_contradicting, process, Sampler("dpmpp-2m", 800), volume_size=8, generators=_generators(0)).x
    assert float((elsewhere - ends["euler"]).abs().max()) > 0.03


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_what_a_parametrization_makes_of_two_numbers(parametrization: str) -> None:
    """By hand at tan β = 3/4: sin 0.6, cos 0.8, state 1, noise 0.5, image 2; the drift is 0.6·2 - 0.8·0.5 = 0.8."""
    one = torch.ones(1, dtype=torch.float64)
    found = PARAMETRIZATION[parametrization](one, Heads(0.5 * one, 2 * one), 0.6, 0.8)
    expected = {
        "velocity": (0.6 - 0.8 * 0.8, 0.8 + 0.6 * 0.8, 0.8),
        "image": (-1.0, 2.0, 0.6 * 2 + 0.8 * 1.0),
    }[parametrization]
    assert [float(part) for part in found] == pytest.approx(expected, abs=1e-12)
    assert 0.8 * float(found.x0) + 0.6 * float(found.eps) == pytest.approx(1.0, abs=1e-12)


def test_the_image_that_is_returned_is_the_networks_own() -> None:
    def constant(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), torch.full_like(x, 0.25)], dim=1)

    for parametrization in PARAMETRIZATIONS:
        for schedule in SCHEDULES:
            seen: list[float] = []
            sampler = Sampler("dpmpp-2m", 4, schedule, parametrization=parametrization)
            result = sample(
                constant,
                CosineProcess(),
                sampler,
                volume_size=2,
                generators=_generators(0),
                callback=lambda done, total, image, seen=seen: seen.append(float(image.max())),  # type: ignore[misc]
            )
            assert seen == [0.25] * 4
            assert float(result.x0.max()) == 0.25


# -- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", samplers_of("cosine"))
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 10, 300, 1000])
def test_even_schedule_makes_exactly_the_evaluations_asked_for(name: str, num_steps: int) -> None:
    sampler = Sampler(name, num_steps)
    assert CosineProcess().evaluations(sampler) == num_steps
    steps = plan(sampler)
    assert steps[0].t == pytest.approx(999.0)
    assert min(step.t for step in steps) > 0.0
    assert all(step.t > step.target for step in steps)
    assert steps[-1].target == 0.0


def test_even_times_by_hand() -> None:
    assert even_times(4) == pytest.approx([999.0, 999 * 9 / 16, 999 / 4, 999 / 16])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_coefficients_of_any_predictor_step(k: int, schedule: str) -> None:
    """Float64 closed form: the predictor lands k steps on, the corrector turns the signal's scale back by G."""
    steps = plan(Sampler("predictor-corrector", 20, schedule, predictor_step=k))
    for step in steps:
        hop = step.t - step.target
        landing = step.t - k * hop
        corrects = k > 1 and landing > 0
        assert step.corrects == corrects
        assert step.advance == pytest.approx((k if corrects else 1) * math.pi * hop / 2000, rel=1e-5, abs=1e-9)
        gain = math.cos(math.pi * step.target / 2000) / math.cos(math.pi * landing / 2000) if corrects else 1.0
        assert step.alpha == pytest.approx(gain, rel=1e-6)
        assert step.noise == pytest.approx(math.sqrt(1 - gain**2), rel=1e-4, abs=1e-6)
    if schedule == "published":
        assert sum(step.corrects for step in steps) == (0 if k == 1 else 20 - k - 1)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "plms"}, r"'plms'.*'euler', 'predictor-corrector', 'predictor-corrector-tf', 'rotation'"),
        ({"schedule": "uniform"}, r"'uniform'.*'even', 'published'"),
        ({"parametrization": "v"}, r"'v'.*'velocity', 'image'"),
        ({"num_steps": 0}, "num_steps is 0; expected at least 1"),
        ({"name": "predictor-corrector", "predictor_step": 0}, "predictor_step is 0"),
        (
            {"name": "predictor-corrector", "num_steps": 4, "predictor_step": 5},
            "5 is longer than the schedule of 4.*at most 4",
        ),
        ({"name": "heun", "predictor_step": 3}, "'heun', which has none"),
    ],
)
def test_samplers_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(**settings)  # type: ignore[arg-type]


def test_what_a_sampler_refuses() -> None:
    sampler = Sampler("euler", 2)
    for num_steps in (0, 1001):
        with pytest.raises(ValueError, match="expected 1 to 1000"):
            respaced_times(num_steps)
    with pytest.raises(ValueError, match="no generators"):
        sample(lambda x, t: x, CosineProcess(), sampler, volume_size=2, generators=[])
    with pytest.raises(ValueError, match=r"returned \(1, 1, 2, 2, 2\).*out_channels 2"):
        sample(lambda x, t: x, CosineProcess(), sampler, volume_size=2, generators=_generators(0))
    with pytest.raises(ValueError, match="out_channels 1"):
        sample(lambda x, t: torch.cat([x, x], 1), FlowProcess(), sampler, volume_size=2, generators=_generators(0))
    with pytest.raises(
        ValueError, match=r"'rotation' works with cosine, not .* 'flow', which is sampled by: euler, heun"
    ):
        sample(lambda x, t: x, FlowProcess(), Sampler("rotation", 2), volume_size=2, generators=_generators(0))
    image = Sampler("euler", 2, parametrization="image")
    with pytest.raises(ValueError, match="its velocity, got parametrization 'image'"):
        sample(lambda x, t: x, FlowProcess(), image, volume_size=2, generators=_generators(0))
    with pytest.raises(ValueError, match="twice per step: use 4"):
        sample(lambda x, t: x, FlowProcess(), Sampler("heun", 3), volume_size=2, generators=_generators(0))


# -- volumes ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moved_model() -> PRDiT:
    model = PRDiT(model_config("XS/12/1", 16)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=_generators(parameter.numel())[0]) * 0.02)
    return model


@pytest.mark.parametrize("name", ["predictor-corrector", "dpmpp-2m-sde"])
def test_same_seed_same_volume_whatever_the_batch(moved_model: PRDiT, name: str) -> None:
    def draw(*seeds: int) -> Tensor:
        return sample(moved_model, CosineProcess(), Sampler(name, 5), volume_size=16, generators=_generators(*seeds)).x

    together = draw(10, 11, 12)
    assert together.std() > 0.05
    torch.testing.assert_close(draw(11), together[1:2], atol=1e-5, rtol=0)
    torch.testing.assert_close(draw(12, 10), together[[2, 0]], atol=1e-5, rtol=0)


def test_progress_and_image_estimates() -> None:
    seen: list[tuple[int, int, float]] = []
    model = PRDiT(ModelConfig(4, 4, 2, 1, 12, 2, 0))  # outputs zero: noise enters the state, the image estimate is zero
    result = sample(
        model,
        CosineProcess(),
        Sampler("predictor-corrector", 7, "published"),
        volume_size=4,
        generators=_generators(0),
        callback=lambda done, total, image: seen.append((done, total, float(image.abs().max()))),
    )
    assert seen == [(n, 8, 0.0) for n in range(1, 9)]  # 7 does not divide 1000: the published rule visits 8 times
    assert torch.count_nonzero(result.x0) == 0
    assert result.x.shape == (1, 1, 4, 4, 4)


@pytest.mark.parametrize(
    "values", [{"num_steps": 2.5}, {"num_steps": float("nan")}, {"num_steps": "5"}, {"predictor_step": 1.5}]
)
def test_counts_must_be_whole_numbers(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected a whole number"):
        Sampler("predictor-corrector", **values)  # type: ignore[arg-type]
