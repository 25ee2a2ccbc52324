"""What holds of every operator: exact adjoints, gradients, documents, noise; and what is refused."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from prdit_models import registry
from prdit_models.inverse.downsampling import Downsampling
from prdit_models.inverse.grid import Grid3
from prdit_models.inverse.operator import (
    OPERATORS,
    adjoint_error,
    check_adjoint,
    operator_from_dict,
    simulate,
)
from tests.unit.prdit_models.inverse.cases import CASES, GRID
from tests.unit.prdit_models.test_registry import Point


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def volumes(count: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return 300 * torch.randn(count, 1, *GRID.shape, generator=seeded(), dtype=torch.float64).to(dtype)


@dataclass(frozen=True, kw_only=True)
class Outsider(Downsampling):
    """Means of blocks whose adjoint is wrong by a factor, and whose forward may not be affine."""

    factor_of_adjoint: float = 1.0
    power: float = 1.0

    def forward(self, volume: Tensor) -> Tensor:
        return super().forward(volume.abs() ** self.power * volume.sign())

    def adjoint(self, measurement: Tensor) -> Tensor:
        return self.factor_of_adjoint * super().adjoint(measurement)


def test_the_cases_use_every_operator() -> None:
    assert {case["name"] for case in CASES.values()} == set(OPERATORS.names())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_adjoints_are_exact(case: str, dtype: torch.dtype, limit: float) -> None:
    operator = operator_from_dict(CASES[case], GRID)
    assert adjoint_error(operator, seeded(), dtype) < limit
    check_adjoint(operator)


@pytest.mark.parametrize("case", CASES)
def test_forward_is_affine_and_the_batch_is_independent(case: str) -> None:
    operator, x = operator_from_dict(CASES[case], GRID), volumes()
    both = operator.forward(x)
    assert tuple(both.shape) == (2, *operator.measurement_shape(GRID.shape))
    torch.testing.assert_close(both[1:], operator.forward(x[1:]))
    middle = operator.forward(0.25 * x[:1] + 0.75 * x[1:])
    torch.testing.assert_close(middle, 0.25 * both[:1] + 0.75 * both[1:])
    assert float((both[0] - both[1]).abs().max()) > 1e-3
    torch.testing.assert_close(operator.forward(x.float()), both.float(), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_adjoint_and_can_be_differentiated_again(case: str) -> None:
    operator, x = operator_from_dict(CASES[case], GRID), volumes(1).requires_grad_()
    y = operator.forward(x)
    weights = torch.randn(y.shape, generator=seeded(), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((y**2 * weights).sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, operator.adjoint(2 * y * weights))
    (second,) = torch.autograd.grad(gradient.sum(), x)
    ones = operator.forward(torch.ones_like(x)) - operator.forward(torch.zeros_like(x))
    torch.testing.assert_close(second, operator.adjoint(2 * ones * weights))
    _, pulled = torch.func.vjp(operator.forward, x.detach())
    torch.testing.assert_close(pulled(weights)[0], operator.adjoint(weights))


@pytest.mark.parametrize("case", CASES)
def test_a_document_makes_the_same_operator(case: str) -> None:
    operator = operator_from_dict(CASES[case], GRID)
    again = operator_from_dict(json.loads(json.dumps(operator.to_dict())), GRID)
    assert again == operator
    assert torch.equal(again.forward(volumes()), operator.forward(volumes()))


def test_half_precision_of_the_network_does_not_reach_a_measurement() -> None:
    operator, x = operator_from_dict(CASES["blur"], GRID), volumes(1, torch.float32)
    expected = operator.forward(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(operator.forward(x), expected)


def test_simulated_noise_has_its_size_and_follows_the_generator() -> None:
    operator, x = operator_from_dict(CASES["thick-slices"], GRID), volumes(4)
    noise = simulate(operator, x, seeded()) - operator.forward(x)
    assert float(noise.std()) == pytest.approx(5.0, rel=0.05)
    assert abs(float(noise.mean())) < 0.5
    assert torch.equal(simulate(operator, x, seeded()) - operator.forward(x), noise)
    exact = operator_from_dict(CASES["blur"], GRID)
    assert torch.equal(simulate(exact, x, seeded()), exact.forward(x))


@pytest.mark.parametrize(
    "settings",
    [{"factor_of_adjoint": 1.0001}, {"factor_of_adjoint": 0.0}, {"factor_of_adjoint": float("nan")}, {"power": 1.1}],
)
def test_a_wrong_adjoint_is_refused(settings: dict[str, float]) -> None:
    check_adjoint(Outsider(factor=(1, 2, 1), grid=GRID))
    with pytest.raises(
        ValueError, match=r"'downsampling' has an adjoint error of .*at most 1e-05.*transposes its linear part"
    ):
        check_adjoint(Outsider(factor=(1, 2, 1), grid=GRID, **settings))


def test_an_outsiders_operator_is_checked_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [Point("theirs", f"{__name__}:Outsider", group)])
    OPERATORS.__dict__.pop("_places", None)
    try:
        good = operator_from_dict({"name": "theirs", "factor": (1, 2, 1)}, GRID)
        assert good.measurement_shape() == (13, 5, 17)
        with pytest.raises(ValueError, match="adjoint error of"):
            operator_from_dict({"name": "theirs", "factor": (1, 2, 1), "factor_of_adjoint": 2.0}, GRID)
    finally:
        OPERATORS.__dict__.pop("_places", None)
        OPERATORS._found.pop("theirs", None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"factor": 2}, "the name None; expected name: one of downsampling, mask"),
        ({"name": "rotation"}, "Unknown operator 'rotation'; there are downsampling"),
        ({"name": "blur", "sigma": 2}, "'blur' has no setting 'sigma'; it has noise_std, fwhm_mm, boundary"),
        ({"name": "blur", "fwhm_mm": 2.0, "grid": [8, 8, 8]}, "'blur' has no setting 'grid'"),
        ({"name": "blur", 2: 3}, "'blur' has no setting 2; it has"),
        ({"name": "blur"}, "'blur' needs fwhm_mm; its settings are noise_std, fwhm_mm, boundary"),
        ({"name": "blur", "fwhm_mm": 2.0, "noise_std": -1}, "noise_std is -1; expected a number of at least 0 .*in HU"),
        ({**CASES["cone"], "noise_std": float("nan")}, "noise_std is nan; .*in mm"),
    ],
)
def test_what_is_no_operator_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        operator_from_dict(values, GRID)


def test_volumes_and_measurements_of_another_grid_are_refused() -> None:
    operator = operator_from_dict(CASES["cone"], GRID)
    with pytest.raises(
        ValueError, match=r"volume of 'projection' has shape \(1, 1, 13, 10, 16\); expected \(B, 1, 13, 10, 17\)"
    ):
        operator.forward(torch.zeros(1, 1, 13, 10, 16))
    with pytest.raises(
        ValueError, match=r"measurement of 'projection' has shape \(2, 11, 13\); expected \(B, 2, 11, 13\)"
    ):
        operator.adjoint(torch.zeros(2, 11, 13))
    with pytest.raises(ValueError, match=r"torch.int16; expected float32 or float64"):
        operator.forward(torch.zeros(1, 1, *GRID.shape, dtype=torch.int16))
    with pytest.raises(ValueError, match=r"made for volumes of shape \(13, 10, 17\); got \(8, 8, 8\)"):
        operator.measurement_shape((8, 8, 8))


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((8, 8), (1.0, 1.0, 1.0), r"Grid shape is \(8, 8\)"),
        ((8, 0, 8), (1.0, 1.0, 1.0), r"Grid shape is \(8, 0, 8\)"),
        ((8, 8, 8), None, "spacing is unknown; .*those of the volume"),
        ((8, 8, 8), (1.0, 0.0, 1.0), r"spacing_mm is \(1.0, 0.0, 1.0\)"),
        ((8, 8, 8), (1.0, float("nan"), 1.0), "expected a positive number of mm"),
    ],
)
def test_a_grid_needs_voxels_and_their_distances(shape: Any, spacing: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid3(shape, spacing)


def test_a_grid_knows_its_edges() -> None:
    assert GRID.extent_mm == pytest.approx((17.0, 8.0, 32.5))
