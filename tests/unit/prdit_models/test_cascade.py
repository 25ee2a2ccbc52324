"""Stage 3: what the refinement adds, what the base gets, and the low-frequency term, against plain arithmetic."""

import numpy as np
import pytest
import torch

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.networks.cascade import CascadeParts, RefinedPRDiT, low_frequency_loss
from prdit_models.networks.config import CascadeConfig, ModelConfig

BASE = ModelConfig(8, 4, 4, 0, 48, 4, 1)
HEAD = ModelConfig(16, 6, 4, 1, 24, 1, 0)


def cascade(config: CascadeConfig | None = None) -> RefinedPRDiT:
    """A cascade whose every branch contributes."""
    torch.manual_seed(3)
    model = RefinedPRDiT(config or CascadeConfig(HEAD, BASE)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def noisy(size: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, size, size, size, generator=torch.Generator().manual_seed(size))


def test_low_frequency_loss_is_the_mean_square_over_blocks() -> None:
    base, upsampled, head = (noisy(n).repeat(1, 2, 1, 1, 1) * k for n, k in ((2, 1.0), (4, 2.0), (4, 3.0)))
    base[:, 0] = 99.0  # noise channels play no part
    upsampled[:, 0] = -99.0
    found = low_frequency_loss(CascadeParts(base, upsampled, head), in_channels=1)
    refined = (upsampled + head)[:, 1].double().numpy()
    pooled = refined.reshape(2, 2, 2, 2, 2, 2, 2).mean(axis=(2, 4, 6))
    expected = ((pooled - base[:, 1].double().numpy()) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_the_low_frequency_target_gets_no_gradient() -> None:
    base = noisy(2).repeat(1, 2, 1, 1, 1).requires_grad_()
    head = noisy(4).repeat(1, 2, 1, 1, 1).requires_grad_()
    low_frequency_loss(CascadeParts(base, torch.zeros_like(head), head), 1).sum().backward()
    assert base.grad is None
    assert head.grad is not None
    assert float(head.grad[:, 1].abs().sum()) > 0


def _gradients(model: RefinedPRDiT) -> dict[str, torch.Tensor | None]:
    process = CosineProcess()
    x0, eps, t = noisy(16).clamp(-1, 1), 0.5 * noisy(16), torch.tensor([100, 700])
    process.losses(model(process.q_sample(x0, t, eps), t), x0, eps)["loss"].backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_a_frozen_base_gets_no_gradient_and_the_whole_head_does() -> None:
    gradients = _gradients(cascade())
    for name, gradient in gradients.items():
        if name.startswith("base."):
            assert gradient is None, name
        else:
            assert gradient is not None, name
            assert float(gradient.abs().sum()) > 0, name


def test_a_joint_fine_tune_reaches_every_parameter() -> None:
    """The published branch leaves 22 tensors of the base without gradient."""
    model = cascade()
    model.freeze_base(False)
    missing = [name for name, g in _gradients(model).items() if g is None or not float(g.abs().sum()) > 0]
    assert missing == []


def test_a_chained_joint_fine_tune_reaches_every_parameter() -> None:
    model = cascade(
        CascadeConfig(HEAD, CascadeConfig(ModelConfig(8, 6, 4, 1, 24, 1, 0), ModelConfig(4, 2, 2, 0, 48, 4, 1)))
    )
    model.freeze_base(False)
    missing = [name for name, g in _gradients(model).items() if g is None or not float(g.abs().sum()) > 0]
    assert missing == []


def test_load_base_takes_all_or_nothing() -> None:
    model = cascade()
    weights = {key: torch.full_like(value, 0.25) for key, value in model.base.state_dict().items()}
    model.load_base(weights)
    assert all(bool((value == 0.25).all()) for value in model.base.state_dict().values())
    with pytest.raises(ValueError, match="missing"):
        model.load_base({key: 2 * value for key, value in list(weights.items())[1:]})
    assert all(bool((value == 0.25).all()) for value in model.base.state_dict().values())


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (ModelConfig(8, 6, 4, 1, 24, 1, 0), "one pyramid level up"),
        (ModelConfig(16, 6, 4, 1, 24, 4, 1), "depth 0"),
        (ModelConfig(16, 6, 4, 1, 24, 1, 0, out_channels=1), "both must agree"),
    ],
)
def test_head_and_base_must_fit(head: ModelConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CascadeConfig(head, BASE)


def test_noise_goes_up_by_repetition_and_the_image_trilinearly() -> None:
    model = cascade()
    with torch.no_grad():
        parts = model.forward_parts(noisy(16), 300)
    np.testing.assert_array_equal(
        parts.upsampled[:, 0].numpy(), parts.base[:, 0].numpy().repeat(2, 1).repeat(2, 2).repeat(2, 3)
    )
    between = parts.base[:, 1].double()  # along one axis the new centres lie a quarter off the old ones
    z = (0.75 * between[0, 3] + 0.25 * between[0, 4])[3]
    z = 0.75 * z + 0.25 * (0.75 * between[0, 3] + 0.25 * between[0, 4])[4]
    expected = 0.75 * float(z[3]) + 0.25 * float(z[4])
    assert float(parts.upsampled[0, 1, 7, 7, 7]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
def test_checkpointing_changes_no_gradient(frozen: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = cascade()
        model.freeze_base(frozen)
        other = RefinedPRDiT(model.config, checkpointing=checkpointing)
        other.load_state_dict(model.state_dict())
        other.freeze_base(frozen)
        gradients.append(_gradients(other))
    for name, gradient in gradients[0].items():
        other_gradient = gradients[1][name]
        assert (gradient is None) == (other_gradient is None), name
        if gradient is not None and other_gradient is not None:
            torch.testing.assert_close(gradient, other_gradient, rtol=0, atol=0)
