"""Options of the network that the published one does not have: each against its formula in float64."""

import math

import pytest
import torch

from prdit_models.conditions import Conditions
from prdit_models.networks.attention import Attention
from prdit_models.networks.config import CascadeConfig, ModelConfig, model_config, network_config
from prdit_models.networks.embeddings import rotary_table, rotate
from prdit_models.networks.local import rms_norm
from prdit_models.networks.prdit import PRDiT
from tests.submodules import branches


def _tiny(size: int = 8, **options: object) -> ModelConfig:
    return ModelConfig(size, 4, 2, 1, 48, 4, 2, **options)  # type: ignore[arg-type]


def _random(model: PRDiT) -> PRDiT:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def test_rotary_turns_pairs_by_position_in_mm():
    grid, pitch, width = 3, 16.0, 20  # 3 pairs per axis, 2 channels unchanged
    x = torch.randn(1, grid**3, 2, width)
    turned = rotate(x, rotary_table(grid, pitch, width)).double()
    wavelengths = [32.0 * 32.0 ** (j / 2) for j in range(3)]
    token = 1 * 9 + 0 * 3 + 2  # (d, h, w) = (1, 0, 2)
    position = {"d": 0.0, "h": -pitch, "w": pitch}
    for pair, (axis, wavelength) in enumerate((a, length) for a in "dhw" for length in wavelengths):
        angle = 2 * math.pi * position[axis] / wavelength
        z = torch.complex(*x[0, token, :, 2 * pair : 2 * pair + 2].double().unbind(-1))
        z = z * complex(math.cos(angle), math.sin(angle))
        torch.testing.assert_close(
            turned[0, token, :, 2 * pair : 2 * pair + 2], torch.view_as_real(z), atol=1e-6, rtol=0
        )
    assert torch.equal(turned[..., 18:], x[..., 18:].double())


def test_rotary_attention_depends_on_distance_alone():
    table = rotary_table(4, 16.0, 24)
    q, k = torch.randn(24), torch.randn(24)
    turned_q = rotate(q.expand(1, 64, 1, 24), table)[0, :, 0]
    turned_k = rotate(k.expand(1, 64, 1, 24), table)[0, :, 0]
    scores = (turned_q @ turned_k.T).double().reshape(4, 4, 4, 4, 4, 4)
    torch.testing.assert_close(scores[0, 1, 2, 1, 1, 0], scores[2, 2, 3, 3, 2, 1], atol=1e-5, rtol=0)
    assert abs(float(scores[0, 0, 0, 1, 0, 0] - scores[0, 0, 0, 0, 0, 1])) > 1e-3  # axes are distinguished


@torch.no_grad()
def test_rotary_sees_the_voxel_size():
    x = torch.randn(1, 1, 8, 8, 8)
    near, far = (PRDiT(_tiny(position="rotary", voxel_mm=mm)) for mm in (1.0, 8.0))
    far.load_state_dict(_random(near).state_dict())
    assert near.fine is not None
    assert near.fine.pos_embed is None
    assert float((near(x, 10) - far.eval()(x, 10)).abs().max()) > 1e-3


def test_l_with_depth_needs_rotary():
    with pytest.raises(ValueError, match=r'1024.*divisible by 6.*position="rotary"'):
        model_config("L/12/4", 64)
    assert model_config("L/12/4", 64, position="rotary", voxel_mm=4.0).hidden_size == 1024


def test_qk_norm_against_float64():
    torch.manual_seed(2)
    attention = Attention(12, 2, "sdpa", qk_norm=True)
    x = torch.randn(2, 5, 12)
    assert attention.q_norm is not None
    assert attention.k_norm is not None
    with torch.no_grad():
        attention.q_norm.weight.mul_(3.0)
        qkv = x.double() @ attention.qkv.weight.double().T + attention.qkv.bias.double()
        q, k, v = (part.reshape(2, 5, 2, 6).transpose(1, 2) for part in qkv.split(12, dim=-1))
        q = 3.0 * q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        k = k / (k.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        mixed = (torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(6), -1) @ v).transpose(1, 2).reshape(2, 5, 12)
        expected = mixed @ attention.proj.weight.double().T + attention.proj.bias.double()
        torch.testing.assert_close(attention(x).double(), expected, atol=1e-6, rtol=0)


def test_rms_norm_replaces_the_layer_norm_alone():
    x = torch.randn(3, 7, 24)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(rms_norm(x).double(), exact, atol=1e-6, rtol=0)
    volume = torch.randn(1, 1, 8, 8, 8)
    layer = _random(PRDiT(_tiny()))
    outputs = {}
    for name, options in {"layer": {}, "rms": {"norm": "rms"}, "tf": {"arithmetic": "tf"}}.items():
        model = PRDiT(_tiny(**options))
        model.load_state_dict(layer.state_dict())
        outputs[name] = model.eval()(volume, 3)
    assert float((outputs["rms"] - outputs["layer"]).detach().abs().max()) > 1e-3
    assert float((outputs["rms"] - outputs["tf"]).abs().max()) > 1e-3  # TF-PRDiT normalises its modulations, too


def test_labels_move_the_refiner_and_none_is_the_last_index():
    model = _random(PRDiT(_tiny(num_classes=3)))
    x = torch.randn(2, 1, 8, 8, 8)
    none = model(x, 5)
    torch.testing.assert_close(model(x, 5, Conditions(torch.tensor([3, 3]))), none, atol=1e-4, rtol=0)
    mixed = model(x, 5, Conditions(torch.tensor([0, 3])))
    torch.testing.assert_close(mixed[1], none[1], atol=1e-5, rtol=0)
    assert float((mixed[0] - none[0]).abs().max()) > 1e-3
    coarse, _ = branches(model, x, 5, Conditions(torch.tensor([0, 1])))
    torch.testing.assert_close(coarse, branches(model, x, 5)[0], atol=1e-5, rtol=0)  # the refiner alone


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 4]), r"\[0, 4\].*0 to 2, or 3 for none"),
        (torch.tensor([0]), r"\(1,\).*\(2,\)"),
        (torch.tensor([0.0, 1.0]), "integers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    model = PRDiT(_tiny(num_classes=3))
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(2, 1, 8, 8, 8), 5, Conditions(labels))
    with pytest.raises(ValueError, match="num_classes 0"):
        PRDiT(_tiny())(torch.zeros(2, 1, 8, 8, 8), 5, Conditions(torch.tensor([0, 0])))


def test_joint_training_gives_the_local_branch_gradients():
    model = _random(PRDiT(_tiny()))
    for frozen in (True, False):
        model.freeze_local(frozen)
        model.zero_grad(set_to_none=True)
        model(torch.randn(1, 1, 8, 8, 8), torch.tensor([7])).square().mean().backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert without == (set(model.local_state_dict()) if frozen else set())


def test_prepared_times_are_looked_up():
    model = _random(PRDiT(_tiny()))
    x = torch.randn(2, 1, 8, 8, 8)
    with torch.no_grad():
        plain = {t: model(x, t) for t in (999.0, 321.5, 0.0)}
        calls: list[int] = []
        handle = model.t_embedder.register_forward_hook(lambda *_: calls.append(1))
        with model.prepared(torch.tensor([999.0, 321.5, 0.0])):
            for t, expected in plain.items():
                torch.testing.assert_close(model(x, torch.tensor(t)), expected, atol=2e-4, rtol=0)
            assert len(calls) == 1
            model(x, 12.0)  # not of the schedule: computed
            assert len(calls) == 2
        model(x, 999.0)
        assert len(calls) == 3
        handle.remove()


def test_configurations_survive_json_and_old_ones_open():
    config = _tiny(position="rotary", voxel_mm=2.0, qk_norm=True, num_classes=2)
    assert network_config(config.to_dict()) == config
    old = {
        key: value
        for key, value in _tiny().to_dict().items()
        if key not in ("arithmetic", "norm", "position", "voxel_mm")
    }
    assert ModelConfig.from_dict(old) == _tiny()
    cascade = CascadeConfig(
        ModelConfig(32, 4, 2, 1, 48, 4, 0), CascadeConfig(ModelConfig(16, 4, 2, 1, 48, 4, 0), _tiny())
    )
    assert network_config(cascade.to_dict()) == cascade
    assert cascade.volume_size == 32


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (ModelConfig(16, 4, 2, 1, 48, 4, 1), "depth 1"),
        (ModelConfig(32, 4, 2, 1, 48, 4, 0), r"32³ on a base at 8³.*16³"),
        (ModelConfig(16, 4, 2, 1, 48, 4, 0, out_channels=1), "must agree"),
    ],
)
def test_cascades_that_do_not_fit_are_refused(head, message):
    with pytest.raises(ValueError, match=message):
        CascadeConfig(head, _tiny())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": "rotary"}, "voxel_mm is None"),
        ({"voxel_mm": 2.0}, "leave it out"),
        ({"arithmetic": "dit"}, r"'dit'.*'prdit', 'tf'"),
        ({"arithmetic": "tf", "norm": "rms"}, "fixes its norms itself"),
        ({"num_classes": -1}, "num_classes is -1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _tiny(**options)
