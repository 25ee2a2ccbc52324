"""The process `ddpm` against the formulas of the papers in float64, and its samplers on Gaussian data, exactly."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prdit_models.diffusion.ddpm import DDPMProcess
from prdit_models.diffusion.process import process_from_dict
from prdit_models.diffusion.sampler import Sampler
from prdit_models.diffusion.sampling import sample

MEAN, SPREAD = -0.4, 0.3
SCALED = {"schedule": "scaled-linear", "beta_start": 0.0015, "beta_end": 0.0195}


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def literal_betas(settings: dict[str, Any]) -> list[float]:
    """Of T = 1000 steps, one by one."""
    if settings:
        low, high = math.sqrt(0.0015), math.sqrt(0.0195)
        return [(low + (high - low) * t / 999) ** 2 for t in range(1000)]
    return [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)]


def literal_bars(settings: dict[str, Any]) -> list[float]:
    bars, product = [], 1.0
    for beta in literal_betas(settings):
        product *= 1 - beta
        bars.append(product)
    return bars


# -- the forward process -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "last"), [({}, 4.0e-5), (SCALED, 1.42e-4)])
def test_what_is_left_of_a_volume(settings: dict[str, Any], last: float) -> None:
    process = DDPMProcess(**settings)
    bars = literal_bars(settings)
    np.testing.assert_allclose(process.alpha_bars, bars, rtol=1e-12)
    assert process.alpha_bars[-1] == pytest.approx(last, rel=0.01)
    t = torch.tensor([0, 1, 500, 999])
    x0, eps = torch.randn(2, 4, 3, 2, 2, 2, dtype=torch.float64, generator=generators(0)[0])
    expected = [math.sqrt(bars[n]) * a + math.sqrt(1 - bars[n]) * b for n, a, b in zip(t, x0, eps, strict=True)]
    torch.testing.assert_close(process.q_sample(x0, t, eps), torch.stack(expected), rtol=1e-12, atol=0)
    single = process.q_sample(x0.float(), t, eps.float())
    torch.testing.assert_close(single, torch.stack(expected).float(), rtol=1e-6, atol=1e-6)


def test_losses_are_squared_errors_of_what_is_predicted() -> None:
    x0, eps = torch.zeros(2, 1, 1, 1, 2), torch.ones(2, 1, 1, 1, 2)
    output = torch.tensor([[1.0, 3.0], [1.0, 1.0]]).view(2, 1, 1, 1, 2)
    t = torch.tensor([3, 4])
    assert float(DDPMProcess(prediction="image").losses(output, x0, eps, t)["loss"]) == 3.0
    assert float(DDPMProcess(prediction="noise").losses(output, x0, eps, t)["loss"]) == 1.0


def test_times_noise_and_validation_times() -> None:
    process = DDPMProcess()
    t = process.draw_times(100_000, *generators(0))
    assert (int(t.min()), int(t.max()), t.dtype) == (0, 999, torch.int64)
    assert float(t.double().mean()) == pytest.approx(499.5, abs=3)
    crowded = process.draw_times(100_000, *generators(0), distribution="logit-normal", mean=-0.8, std=0.8)
    assert float(torch.logit((crowded.double() + 0.5) / 1000).mean()) == pytest.approx(-0.8, abs=0.02)
    assert float(process.noise((100_000,), *generators(0)).std()) == pytest.approx(1.0, abs=0.01)
    assert {name: int(t) for name, t in process.validation_times().items()} == {
        f"t{step:03d}": step for step in (50, 200, 400, 600, 800, 950)
    }
    assert max(int(t) for t in DDPMProcess(num_steps=4).validation_times().values()) == 3
    assert torch.equal(process.model_time(t), t)


# -- sampling of Gaussian data: the best estimate is known, and every sampler is affine in states and noise --------------


def best_estimate(process: DDPMProcess) -> Any:
    """E[x0 | x_t], or E[eps | x_t], of x0 ~ N(MEAN, SPREAD²); float64."""
    bars = literal_bars(SCALED if process.schedule == "scaled-linear" else {})

    def model(x: Tensor, t: Tensor) -> Tensor:
        bar = bars[int(t)]
        x = x.double()
        gain = math.sqrt(bar) * SPREAD**2 / (bar * SPREAD**2 + 1 - bar)
        image = MEAN + gain * (x - math.sqrt(bar) * MEAN)
        return image if process.prediction == "image" else (x - math.sqrt(bar) * image) / math.sqrt(1 - bar)

    return model


def moments(process: DDPMProcess, sampler: Sampler) -> tuple[float, float]:
    """Exact mean and standard deviation of samples: a run without noise, and one for each draw, that draw being 1."""
    draws = process.evaluations(sampler) if sampler.name == "ancestral" else 1  # the first is the initial state
    count = 0

    def unit_noise(shape: tuple[int, ...]) -> Tensor:
        nonlocal count
        noise = torch.zeros(shape, dtype=torch.float64)
        count += 1
        noise[count] = 1.0  # a draw more than there are rows would be an error
        return noise

    found = sample(
        best_estimate(process),
        process,
        sampler,
        volume_size=1,
        generators=generators(*range(draws + 1)),
        noise_source=unit_noise,
    ).x.flatten()
    return float(found[0]), float((found[1:] - found[0]).square().sum().sqrt())


def literal_ancestral(settings: dict[str, Any], variance: str) -> tuple[float, float]:
    """Moments of Ho et al. 2020, algorithm 2, with all 1000 steps: mean and variance carried from step to step."""
    betas, bars = literal_betas(settings), literal_bars(settings)
    mean, spread = 0.0, 1.0
    for t in reversed(range(1000)):
        beta, bar, before = betas[t], bars[t], bars[t - 1] if t else 1.0
        gain = math.sqrt(bar) * SPREAD**2 / (bar * SPREAD**2 + 1 - bar)
        of_image = math.sqrt(before) * beta / (1 - bar)
        of_state = math.sqrt(1 - beta) * (1 - before) / (1 - bar)
        noise = beta if variance == "large" else beta * (1 - before) / (1 - bar)
        factor = of_image * gain + of_state
        mean = factor * mean + of_image * MEAN * (1 - gain * math.sqrt(bar))
        spread = factor**2 * spread + (noise if t else 0.0)
    return mean, math.sqrt(spread)


def literal_ddim(settings: dict[str, Any], times: list[int]) -> tuple[float, float]:
    """Moments of Song et al. 2021, equation 12 with σ = 0, on some of the times."""
    bars = literal_bars(settings)
    mean, spread = 0.0, 1.0
    for t, before in zip(times, [*(bars[t] for t in times[1:]), 1.0], strict=True):
        bar = bars[t]
        gain = math.sqrt(bar) * SPREAD**2 / (bar * SPREAD**2 + 1 - bar)
        rest = MEAN * (1 - gain * math.sqrt(bar))
        noise_gain, noise_rest = (1 - math.sqrt(bar) * gain) / math.sqrt(1 - bar), -math.sqrt(bar / (1 - bar)) * rest
        factor = math.sqrt(before) * gain + math.sqrt(1 - before) * noise_gain
        mean = factor * mean + math.sqrt(before) * rest + math.sqrt(1 - before) * noise_rest
        spread = factor**2 * spread
    return mean, math.sqrt(spread)


@pytest.mark.parametrize(
    ("settings", "variance", "prediction"), [({}, "large", "image"), ({}, "small", "noise"), (SCALED, "small", "noise")]
)
def test_a_thousand_ancestral_steps(settings: dict[str, Any], variance: Any, prediction: Any) -> None:
    process = DDPMProcess(**settings, variance=variance, prediction=prediction)
    found = moments(process, Sampler("ancestral", 1000))
    assert found == pytest.approx(literal_ancestral(settings, variance), rel=1e-9)
    assert found[0] == pytest.approx(MEAN, abs=0.005)
    assert found[1] == pytest.approx(SPREAD, rel=0.05)
    # With a spread below 1 the posterior's variance is nearer to the truth than β is, so the two differ.
    other = literal_ancestral(settings, "large" if variance == "small" else "small")
    assert abs(found[1] - other[1]) > 1e-4


def test_few_ancestral_steps_are_those_of_the_thinned_schedule() -> None:
    """Leaving steps out is a process with fewer, larger betas: the same moments as all of its steps (Nichol & Dhariwal 2021)."""
    process = DDPMProcess(variance="large", prediction="image")
    times = [999, 666, 333, 0]
    assert process.visited(Sampler("ancestral", 4)) == times
    bars = literal_bars({})
    mean, spread = 0.0, 1.0
    for t, before in zip(times, [bars[666], bars[333], bars[0], 1.0], strict=True):
        bar = bars[t]
        beta = 1 - bar / before
        gain = math.sqrt(bar) * SPREAD**2 / (bar * SPREAD**2 + 1 - bar)
        of_image = math.sqrt(before) * beta / (1 - bar)
        factor = of_image * gain + math.sqrt(1 - beta) * (1 - before) / (1 - bar)
        mean = factor * mean + of_image * MEAN * (1 - gain * math.sqrt(bar))
        spread = factor**2 * spread + (beta if t else 0.0)
    assert moments(process, Sampler("ancestral", 4)) == pytest.approx((mean, math.sqrt(spread)), rel=1e-9)


@pytest.mark.parametrize("prediction", ["image", "noise"])
@pytest.mark.parametrize("settings", [{}, SCALED], ids=["linear", "scaled"])
def test_ddim_in_few_steps(settings: dict[str, Any], prediction: Any) -> None:
    process = DDPMProcess(**settings, prediction=prediction)
    grids = {
        ("even", 4): [999, 666, 333, 0],
        ("published", 4): [750, 500, 250, 0],
        ("even", 1): [999],
        ("even", 1000): list(range(999, -1, -1)),
        ("published", 1000): list(range(999, -1, -1)),
    }
    for (schedule, steps), times in grids.items():
        sampler = Sampler("ddim", steps, schedule)
        assert process.visited(sampler) == times
        assert process.evaluations(sampler) == len(times)
        assert moments(process, sampler) == pytest.approx(literal_ddim(settings, times), rel=1e-8)
    assert moments(process, Sampler("ddim", 1000)) == pytest.approx((MEAN, SPREAD), rel=0.02)


def test_moments_by_superposition_are_those_of_random_samples() -> None:
    process, sampler = DDPMProcess(prediction="image", variance="large"), Sampler("ancestral", 20)
    mean, std = moments(process, sampler)
    drawn = sample(best_estimate(process), process, sampler, volume_size=32, generators=generators(*range(4))).x
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.004)
    assert float(drawn.std()) == pytest.approx(std, rel=0.01)


# -- image estimates that are clamped ------------------------------------------------------------------------------------


class Halves:
    """Predicts an image of 3, and moves estimates to at most a half: where samplers go, and what they report, follows."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        assert (t.dim(), t.dtype) == (0, torch.int64)
        return torch.full_like(x, 3.0)

    def constrained(self, image: Tensor) -> Tensor:
        self.seen.append(float(image.max()))
        return image.clamp(max=0.5)


@pytest.mark.parametrize("sampler", [Sampler("ancestral", 3), Sampler("ddim", 3)], ids=lambda sampler: sampler.name)
def test_a_family_can_move_the_image_estimate(sampler: Sampler) -> None:
    def run(process: DDPMProcess, model: Any) -> tuple[list[float], float]:
        reported: list[float] = []
        result = sample(
            model,
            process,
            sampler,
            volume_size=2,
            generators=generators(0),
            callback=lambda done, total, image: reported.append(float(image.max())),
        )
        assert torch.equal(result.x, result.x0)  # the last step ends in the image
        return reported, float(result.x.max())

    model = Halves()
    assert run(DDPMProcess(prediction="image"), model) == ([0.5] * 3, 0.5)
    assert model.seen == [3.0] * 3
    model = Halves()
    assert run(DDPMProcess(prediction="image", clip=True), model) == ([0.5] * 3, 0.5)
    assert model.seen == [1.0] * 3  # clipped before
    assert run(DDPMProcess(prediction="image", clip=True), Halves().__call__) == ([1.0] * 3, 1.0)
    assert run(DDPMProcess(prediction="image"), Halves().__call__) == ([3.0] * 3, 3.0)


def test_the_noise_of_a_ddim_step_follows_the_clamped_image() -> None:
    """By hand: the state is 1 at t = 999, the image a half; the noise in the state is what that image leaves."""
    bars = literal_bars({})
    states: list[Tensor] = []

    class Recording(Halves):
        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            states.append(x)
            return super().__call__(x, t)

    sample(
        Recording(),
        DDPMProcess(prediction="image"),
        Sampler("ddim", 2),
        volume_size=1,
        generators=generators(0),
        noise_source=lambda shape: torch.ones(shape, dtype=torch.float64),
    )
    eps = (1 - 0.5 * math.sqrt(bars[999])) / math.sqrt(1 - bars[999])
    assert float(states[1]) == pytest.approx(0.5 * math.sqrt(bars[0]) + eps * math.sqrt(1 - bars[0]), rel=1e-12)


def test_volume_i_depends_on_generator_i_alone() -> None:
    process = DDPMProcess(prediction="image")
    estimate = best_estimate(process)

    def draw(*seeds: int) -> Tensor:
        return sample(estimate, process, Sampler("ancestral", 5), volume_size=4, generators=generators(*seeds)).x

    together = draw(10, 11, 12)
    assert float((together[0] - together[1]).abs().max()) > 0.1
    assert torch.equal(draw(12, 10), together[[2, 0]])


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosine"}, r"schedule is 'cosine'.*'linear', 'scaled-linear'"),
        ({"prediction": "velocity"}, r"prediction is 'velocity'.*'noise', 'image'"),
        ({"variance": "learned"}, r"variance is 'learned'.*'small', 'large'"),
        ({"beta_start": 0.0}, "beta_start is 0.0 and beta_end 0.02; expected 0 < beta_start"),
        ({"beta_start": 0.03}, "beta_start is 0.03 and beta_end 0.02"),
        ({"beta_end": 1.0}, "beta_end 1.0"),
        ({"num_steps": 0}, "num_steps is 0"),
    ],
)
def test_processes_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DDPMProcess(**settings)


def test_what_the_process_refuses() -> None:
    process, x0 = DDPMProcess(num_steps=10), torch.zeros(2, 1, 2, 2, 2)
    with pytest.raises(ValueError, match=r"steps in \[0, 10\)"):
        process.q_sample(x0, torch.tensor([0, 10]), x0)
    with pytest.raises(ValueError, match="integer steps"):
        process.q_sample(x0, torch.tensor([0.0, 1.0]), x0)
    with pytest.raises(ValueError, match="equal shapes"):
        process.q_sample(x0, torch.tensor([0, 1]), x0[:1])
    with pytest.raises(ValueError, match="as many output channels"):
        process.losses(torch.zeros(2, 2, 2, 2, 2), x0, x0)
    with pytest.raises(ValueError, match="expected 1 to 10"):
        process.evaluations(Sampler("ancestral", 11))
    with pytest.raises(ValueError, match="has one estimate, got parametrization 'image'"):
        process.evaluations(Sampler("ddim", 5, parametrization="image"))
    with pytest.raises(
        ValueError, match=r"'heun' works with cosine, flow, not .* 'ddpm', .* by: ancestral, ddim \(sample"
    ):
        process.evaluations(Sampler("heun", 4))


def test_it_survives_a_checkpoint() -> None:
    process = DDPMProcess("scaled-linear", 0.0015, 0.0195, 500, "image", "large", clip=True)
    assert process_from_dict(process.to_dict()) == process
    assert process.to_dict()["name"] == "ddpm"
