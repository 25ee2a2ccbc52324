import math

import pytest
import torch

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.flow import FlowProcess
from prdit_models.diffusion.process import process_from_dict


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
    with pytest.raises(ValueError, match=r"'velocity'.*'noise_image', 'image'"):
        CosineProcess(prediction="velocity")
    with pytest.raises(ValueError, match="noise_std is 0"):
        CosineProcess(noise_std=0.0)
    with pytest.raises(ValueError, match="num_steps is 0"):
        CosineProcess(num_steps=0)


def test_image_prediction_is_trained_by_the_velocity_it_implies() -> None:
    """The loss equals the squared error of dx_t/dβ, worked out from the definition in float64."""
    process = CosineProcess(prediction="image")
    x0, eps = torch.randn(3, 1, 2, 2, 2, dtype=torch.float64), torch.randn(3, 1, 2, 2, 2, dtype=torch.float64)
    guess, t = torch.randn_like(x0), torch.tensor([900, 500, 100])
    beta = (math.pi * t.double() / 2000).view(-1, 1, 1, 1, 1)
    x_t = beta.cos() * x0 + beta.sin() * eps
    implied_eps = (x_t - beta.cos() * guess) / beta.sin()
    error = (beta.cos() * implied_eps - beta.sin() * guess) - (beta.cos() * eps - beta.sin() * x0)
    losses = process.losses(guess, x0, eps, t)
    assert float(losses["loss"]) == pytest.approx(float(error.square().mean()), rel=1e-6)
    assert float(losses["loss_image"]) == pytest.approx(float((guess - x0).square().mean()), rel=1e-6)
    found_eps, found_x0 = process.estimates(guess[:1], x_t[:1], math.sin(beta[0]), math.cos(beta[0]))
    torch.testing.assert_close(found_eps, implied_eps[:1])
    assert torch.equal(found_x0, guess[:1])
    near = process.losses(guess, x0, eps, torch.zeros(3, dtype=torch.long))  # sin β = 0: held at 0.05
    assert float(near["loss"]) == pytest.approx(400 * float(losses["loss_image"]), rel=1e-6)
    with pytest.raises(ValueError, match="depends on the steps"):
        process.losses(guess, x0, eps)


def test_logit_normal_steps_have_the_distribution_they_are_named_for() -> None:
    process = CosineProcess()
    t = process.draw_times(200_000, *_generators(0), distribution="logit-normal", mean=-0.8, std=0.8)
    logit = torch.logit((t.double() + 0.5) / 1000)
    assert float(logit.mean()) == pytest.approx(-0.8, abs=0.01)
    assert float(logit.std()) == pytest.approx(0.8, abs=0.01)
    assert int(t.min()) >= 0
    assert int(t.max()) < 1000
    uniform = process.draw_times(100_000, *_generators(0)).double()
    assert float(uniform.mean()) == pytest.approx(499.5, abs=3)
    for settings in ({"distribution": "normal"}, {"distribution": "logit-normal", "std": 0.0}):
        with pytest.raises(ValueError, match="logit-normal' with std > 0"):
            process.draw_times(1, **settings)  # type: ignore[arg-type]


def test_processes_survive_a_checkpoint() -> None:
    for process in (CosineProcess(0.7, 500, "image"), FlowProcess()):
        assert process_from_dict(process.to_dict()) == process
    assert (
        process_from_dict({"noise_std": 0.5, "num_steps": 1000}) == CosineProcess()
    )  # written before there were names
    with pytest.raises(ValueError, match="'vp'"):
        process_from_dict({"name": "vp"})
    with pytest.raises(ValueError, match="noise_std 1"):
        process_from_dict({"name": "flow", "noise_std": 0.5})


def test_flow_is_a_straight_line_and_its_velocity_leads_to_the_end() -> None:
    process = FlowProcess()
    x0, eps, t = torch.full((2, 1, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1, 1), -1.0), torch.tensor([0.25, 1.0])
    x_t = process.q_sample(x0, t, eps)
    assert x_t.flatten().tolist() == [0.0, 3.0]
    assert process.reconstruct(x_t, x0 - eps, t).flatten().tolist() == [3.0, 3.0]
    assert process.sample_losses(torch.zeros_like(x0), x0, eps).tolist() == [16.0, 16.0]
    with pytest.raises(ValueError, match=r"times in \[0, 1\]"):
        process.q_sample(x0, torch.tensor([0.0, 1.1]), eps)
    with pytest.raises(ValueError, match="out_channels 1"):
        process.sample_losses(torch.zeros(2, 2, 1, 1, 1), x0, eps)
