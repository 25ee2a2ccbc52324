import math

import pytest
import torch
from torch import Tensor

from prdit_models.config import ModelConfig, model_config
from prdit_models.diffusion import CosineProcess
from prdit_models.prdit import PRDiT
from prdit_models.samplers import respaced_times, sample, step_coefficients


def _generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_forward_process_is_a_rotation() -> None:
    process = CosineProcess(noise_std=0.5, num_steps=4)
    x0, eps = torch.full((4, 1, 1, 1, 1), 2.0), torch.full((4, 1, 1, 1, 1), 0.5)
    x_t = process.q_sample(x0, torch.arange(4), eps).flatten()
    expected = [2 * math.cos(math.pi * t / 8) + 0.5 * math.sin(math.pi * t / 8) for t in range(4)]
    torch.testing.assert_close(x_t, torch.tensor(expected), atol=1e-6, rtol=0)


def test_noise_has_the_process_std_and_follows_its_generator() -> None:
    noise = CosineProcess(noise_std=0.3).noise((100_000,), *_generators(0))
    assert abs(float(noise.std()) - 0.3) < 4 * 0.3 / math.sqrt(200_000)
    assert torch.equal(noise, CosineProcess(noise_std=0.6).noise((100_000,), *_generators(0)) / 2)


def test_losses_by_hand() -> None:
    process = CosineProcess()
    x0, eps = torch.zeros(2, 1, 1, 1, 2), torch.ones(2, 1, 1, 1, 2)
    output = torch.tensor([[[1.0, 3.0], [0.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]]).view(2, 2, 1, 1, 2)
    noise, image = process.sample_losses(output, x0, eps)
    assert noise.tolist() == [2.0, 0.0]
    assert image.tolist() == [2.0, 1.0]
    assert {name: float(value) for name, value in process.losses(output, x0, eps).items()} == {
        "loss": 2.5,
        "loss_noise": 1.0,
        "loss_image": 1.5,
    }


def test_process_refuses_what_it_cannot_do() -> None:
    process = CosineProcess(num_steps=10)
    x0 = torch.zeros(2, 1, 2, 2, 2)
    for t in ([0, 10], [-1, 0]):
        with pytest.raises(ValueError, match=r"steps in \[0, 10\)"):
            process.q_sample(x0, torch.tensor(t), x0)
    with pytest.raises(ValueError, match="integer steps"):
        process.q_sample(x0, torch.tensor([0.5, 1.0]), x0)
    with pytest.raises(ValueError, match="equal shapes"):
        process.q_sample(x0, torch.tensor([1, 2]), x0[:1])
    with pytest.raises(ValueError, match="out_channels 2"):
        process.losses(x0, x0, x0)
    with pytest.raises(ValueError, match="noise_std is 0"):
        CosineProcess(noise_std=0.0)
    with pytest.raises(ValueError, match="num_steps is 0"):
        CosineProcess(num_steps=0)


def test_step_numbers_out_of_range() -> None:
    for num_steps in (0, 1001):
        with pytest.raises(ValueError, match="expected 1 to 1000"):
            respaced_times(num_steps)
    with pytest.raises(ValueError, match="predictor_step is 0"):
        step_coefficients(CosineProcess(), 10, 0)
    with pytest.raises(ValueError, match="no generators"):
        sample(lambda x, t: x, CosineProcess(), volume_size=2, num_steps=2, generators=[])
    with pytest.raises(ValueError, match=r"returned \(1, 1, 2, 2, 2\)"):
        sample(lambda x, t: x, CosineProcess(), volume_size=2, num_steps=2, generators=_generators(0))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_coefficients_of_any_predictor_step(k: int) -> None:
    """Float64 closed form: the predictor lands k steps on, the corrector turns the signal's scale back by G."""
    steps = step_coefficients(CosineProcess(), 20, k)
    for step in steps:
        hop = step.t - step.target
        landing = step.t - k * hop
        corrects = k > 1 and landing > 0
        assert step.corrects == corrects
        assert step.advance == pytest.approx((k if corrects else 1) * math.pi * hop / 2000, rel=1e-5, abs=1e-9)
        gain = math.cos(math.pi * step.target / 2000) / math.cos(math.pi * landing / 2000) if corrects else 1.0
        assert step.alpha == pytest.approx(gain, rel=1e-6)
        assert step.noise == pytest.approx(math.sqrt(1 - gain**2), rel=1e-4, abs=1e-6)
    assert sum(step.corrects for step in steps) == (0 if k == 1 else 20 - k - 1)


@pytest.mark.parametrize(("k", "tolerance"), [(1, 0.004), (2, 0.04), (3, 0.06)])
def test_gaussian_data_come_back_as_gaussian_data(k: int, tolerance: float) -> None:
    """x0 ~ N(mean, spread²) has a closed-form denoiser; samples must have its mean and spread.

    With x_t = c·x0 + s·eps: E[x0|x_t] = mean + c·spread²/v·(x_t - c·mean), E[eps|x_t] = s·std²/v·(x_t - c·mean),
    v = c²·spread² + s²·std².
    """
    process, mean, spread = CosineProcess(noise_std=0.5), -0.3, 0.2

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        beta = math.pi * float(t) / 2000
        c, s = math.cos(beta), math.sin(beta)
        variance = c**2 * spread**2 + s**2 * process.noise_std**2
        centred = (x - c * mean) / variance
        return torch.cat([s * process.noise_std**2 * centred, mean + c * spread**2 * centred], dim=1)

    result = sample(denoiser, process, volume_size=32, num_steps=1000, predictor_step=k, generators=_generators(0, 1))
    assert float(result.x.mean()) == pytest.approx(mean, abs=0.01)
    assert float(result.x.std()) == pytest.approx(spread, abs=tolerance)


def test_same_seed_same_volume_whatever_the_batch() -> None:
    model = PRDiT(model_config("XS/12/1", 16)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=_generators(parameter.numel())[0]) * 0.02)

    def draw(*seeds: int) -> Tensor:
        return sample(model, CosineProcess(), volume_size=16, num_steps=5, generators=_generators(*seeds)).x

    together = draw(10, 11, 12)
    assert together.std() > 0.1
    assert torch.equal(draw(11), together[1:2])
    assert torch.equal(draw(12, 10), together[[2, 0]])


def test_progress_and_returned_image() -> None:
    config = ModelConfig(4, 4, 2, 1, 12, 2, 0)
    seen: list[tuple[int, int]] = []
    model = PRDiT(config)  # puts out zero: the state only receives noise, the image estimate is zero
    result = sample(
        model,
        CosineProcess(),
        volume_size=4,
        num_steps=7,
        generators=_generators(0),
        callback=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(n, 8) for n in range(1, 9)]  # 7 does not divide 1000: the published rule visits 8 times
    assert torch.count_nonzero(result.x0) == 0
    assert result.x.shape == (1, 1, 4, 4, 4)
