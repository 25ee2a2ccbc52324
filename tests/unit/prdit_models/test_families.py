"""Families: what they make of settings, what a training of each minimises, and how they are drawn from."""

from typing import Any

import pytest
import torch

from prdit_models.conditions import Conditions
from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.flow import FlowProcess
from prdit_models.diffusion.process import Process
from prdit_models.diffusion.sampler import Sampler
from prdit_models.diffusion.sampling import sample
from prdit_models.families.family import FAMILIES, Batch, Given, HeldOut, Request, Training, family_of
from prdit_models.networks.config import model_config

OURS = ("local", "global", "refiner")


def describe(process: Process, size: int = 16, patch: str = "10", suffix: str = "") -> dict[str, dict[str, Any]]:
    """Descriptions of the three families on top of each other."""
    found: dict[str, dict[str, Any]] = {}
    presets = {"local": f"XS/{patch}/0{suffix}", "global": f"XS/{patch}/1{suffix}", "refiner": "XS/10/0"}
    below: dict[str, Any] | None = None
    for name in OURS:
        family = FAMILIES[name]
        if process.name not in family.processes:
            continue
        size *= family.scale
        below = family.describe(family.settings(preset=presets[name]), Given(size, 2.0, process, start=below))
        found[name] = below
    return found


def test_descriptions_are_the_published_shapes() -> None:
    found = describe(CosineProcess())
    assert found["local"] == model_config("XS/10/0", 16).to_dict()
    assert found["global"] == model_config("XS/10/1", 16).to_dict()
    assert found["refiner"] == {"head": model_config("XS/10/0", 32).to_dict(), "base": found["global"]}
    assert {name: family_of(description) for name, description in found.items()} == {name: name for name in OURS}
    with pytest.raises(ValueError, match="No family recognises"):
        family_of({"channels": 3})


@pytest.mark.parametrize("process", [CosineProcess(), CosineProcess(prediction="image"), FlowProcess()])
def test_a_loss_is_the_processes_at_the_drawn_times_and_noise(process: Process) -> None:
    family = FAMILIES["local"]
    description = describe(process)["local"]
    assert description["out_channels"] == process.outputs
    training = Training(family.settings(preset="XS/10/0"), process)
    x0 = torch.randn(3, 1, 16, 16, 16, generator=torch.Generator().manual_seed(5))
    module = family.build(description)
    with torch.no_grad():  # a fresh network outputs zeros
        torch.nn.init.normal_(module.coarse.mlp_denoise.linear_final.weight, std=0.1)  # type: ignore[union-attr]
    drawn = [
        family.draw("main", description, training, tuple(x0.shape[1:]), torch.Generator().manual_seed(seed))
        for seed in (7, 8, 9)
    ]
    draws = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    losses = family.losses("main", module, Batch(x0, draws), training)
    each = []
    for seed in (7, 8, 9):
        generator = torch.Generator().manual_seed(seed)
        each.append(
            (
                process.draw_times(1, generator, distribution="uniform", mean=0.0, std=1.0)[0],
                process.noise((1, 16, 16, 16), generator),
            )
        )
    t, eps = (torch.stack(values) for values in zip(*each, strict=True))
    output = module(process.q_sample(x0, t, eps), process.model_time(t))
    assert losses is not None
    assert float(losses["loss"].detach()) == pytest.approx(
        float(process.losses(output, x0, eps, t)["loss"].detach()), rel=1e-6
    )


def test_flow_matching_at_patches_that_tile() -> None:
    """B/16/0-s16 in small: no overlap, one output channel, the closed form of a network that outputs zeros."""
    process = FlowProcess()
    description = describe(process, size=32, patch="16", suffix="-s16")["local"]
    assert {key: description[key] for key in ("patch_size", "stride", "padding", "out_channels")} == {
        "patch_size": 16,
        "stride": 16,
        "padding": 0,
        "out_channels": 1,
    }
    family = FAMILIES["local"]
    training = Training(family.settings(preset="XS/16/0-s16"), process)
    volumes = torch.randn(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(3))
    found = family.validate(family.build(description), HeldOut(volumes, (0, 1)), training, 2)
    assert list(found) == ["loss", "t050", "t200", "t400", "t600", "t800", "t950"]
    for name, loss in found.items():
        if name == "loss":
            continue
        seeds = [20_260 + int(name[1:]) + 1000 * place for place in range(2)]
        eps = torch.stack([torch.randn(1, 32, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        assert loss == pytest.approx(float((volumes - eps).double().square().mean()), rel=1e-6)


def test_generate_is_the_sampler_on_the_module() -> None:
    family, process = FAMILIES["global"], FlowProcess()
    module = family.build(describe(process)["global"])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(
                0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    module.eval()
    request = Request(Sampler("heun", 4), output="state")
    drawn = family.generate(module, process, request, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    expected = sample(
        module,
        process,
        request.sampler,
        volume_size=16,
        generators=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
    )
    torch.testing.assert_close(drawn, expected.x, rtol=0, atol=0)
    assert family.evaluations(process, request) == 4


def test_what_families_refuse() -> None:
    local, above, refiner = (FAMILIES[name] for name in OURS)
    cosine, found = CosineProcess(), describe(CosineProcess())
    given = Given(16, 2.0, cosine, start=found["local"])
    with pytest.raises(ValueError, match=r"depth 4; a local denoiser has depth 0 \('XS/10/0'\)"):
        local.describe(local.settings(preset="XS/10/4"), Given(16, 2.0, cosine))
    with pytest.raises(ValueError, match=r"depth 0; a global transformer needs blocks \('XS/16/4-s16'\)"):
        above.describe(above.settings(preset="XS/16/0-s16"), given)
    with pytest.raises(ValueError, match=r"does not continue the local denoiser.*hidden_size"):
        above.describe(above.settings(preset="B/10/1"), given)
    with pytest.raises(ValueError, match="label_column is set; a local denoiser takes no labels"):
        local.describe(local.settings(), Given(16, 2.0, cosine, num_classes=2))
    with pytest.raises(ValueError, match="low_frequency_weight is -1"):
        refiner.settings(low_frequency_weight=-1.0)
    with pytest.raises(ValueError, match="logit_std is 0"):
        local.settings(logit_std=0.0)
    with pytest.raises(ValueError, match="patches denoised on their own do not form an anatomy"):
        local.check(found["local"], cosine, Request(Sampler()))
    with pytest.raises(ValueError, match=r"label was asked for .* of a global transformer that was trained without"):
        above.check(found["global"], cosine, Request(Sampler(), conditions=Conditions(labels=torch.tensor([0]))))
    with pytest.raises(ValueError, match="refined model, which takes no labels"):
        refiner.check(found["refiner"], cosine, Request(Sampler(), conditions=Conditions(labels=torch.tensor([0]))))
