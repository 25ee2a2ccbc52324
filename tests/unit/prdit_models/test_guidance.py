import pytest
import torch

from prdit_models.conditions import Conditions
from prdit_models.diffusion.guidance import Guided
from prdit_models.networks.config import ModelConfig
from prdit_models.networks.prdit import PRDiT


def _labelled() -> PRDiT:
    model = PRDiT(ModelConfig(8, 4, 2, 1, 48, 4, 1, num_classes=2)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def test_guidance_leads_away_from_the_unlabelled_estimate() -> None:
    model, x, known = _labelled(), torch.randn(2, 1, 8, 8, 8), Conditions(torch.tensor([0, 1]))
    t = torch.tensor(40)
    conditional = torch.cat([model(x[i : i + 1], t, known.rows([i])) for i in range(2)])
    unconditional = model(x, t)
    for scale in (1.0, 3.0, 0.5):
        expected = unconditional + scale * (conditional - unconditional)
        torch.testing.assert_close(Guided(model, known, scale)(x, t), expected, atol=1e-4, rtol=1e-4)
    assert float((conditional - unconditional).abs().max()) > 1e-2


def test_guidance_needs_classes_and_a_scale() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Guided(_labelled(), Conditions(torch.tensor([0])), 0.0)
    with pytest.raises(ValueError, match="without labels"):
        Guided(PRDiT(ModelConfig(8, 4, 2, 1, 48, 4, 1)), Conditions(torch.tensor([0])))
