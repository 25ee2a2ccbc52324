"""What each guide makes of one evaluation, by hand and by dense algebra."""

import math

import pytest
import torch
from torch import Tensor

from prdit_models.diffusion.steering import Change, DivergedError, Level, Steering, rms, share_of
from prdit_models.intensity import HounsfieldWindow
from prdit_models.inverse.conjugate_gradients import solve
from prdit_models.inverse.guides import DPS, GUIDES, TF, PiGDM, Projection, guide_from_dict
from prdit_models.inverse.model_range import InModelRange
from tests.oracles import operators

WINDOW = HounsfieldWindow()
WIDE = HounsfieldWindow(-1000.0, 3000.0)  # HU = 1000 + 2000·x
LEVEL = Level(0.8, 0.3, share_of(0.8, 0.6))


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _matrix(measured: InModelRange, size: int) -> Tensor:
    """A in model range, (measurements, voxels)."""
    return measured.linear(torch.eye(size**3, dtype=torch.float64).view(-1, 1, size, size, size)).flatten(1).T


@pytest.mark.parametrize("window", [WINDOW, WIDE])
def test_model_range_has_the_scale_in_both_directions(window: HounsfieldWindow) -> None:
    operator = operators.ray_sums(0.5)
    truth, other = _random(2, 1, 4, 4, 4), _random(1, 1, 4, 4, 4, seed=1)
    measured = InModelRange(operator, window, operator.forward(window.to_hu(truth)))
    torch.testing.assert_close(measured.residual(truth), torch.zeros(2, 2, 1, 4, 4, dtype=torch.float64))
    y = _random(2, 2, 1, 4, 4, seed=2)
    left, right = (measured.linear(truth) * y).sum(), (truth * measured.adjoint(y)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-12)
    step = measured.forward(truth + other) - measured.forward(truth)
    torch.testing.assert_close(measured.linear(other).expand(2, -1, -1, -1, -1), step)
    assert measured.unit_scale == pytest.approx((window.upper_hu - window.lower_hu) / 2 / 1000)


def test_conjugate_gradients_against_a_dense_solution() -> None:
    root = _random(12, 7)
    matrix = root @ root.T  # rank 7
    right = torch.cat(
        [matrix @ _random(12, 1), torch.zeros(12, 1, dtype=torch.float64), matrix @ _random(12, 1, seed=1)], 1
    ).T
    calls = []

    def apply(rows: Tensor) -> Tensor:
        calls.append(len(rows))
        return torch.stack([matrix @ row for row in rows])  # a product of matrices may sum in another order

    found = solve(apply, right, 50, 1e-12)
    torch.testing.assert_close(found, right @ torch.linalg.pinv(matrix), atol=1e-7, rtol=1e-7)
    assert len(calls) < 20
    assert torch.equal(solve(apply, right[2:], 50, 1e-12), found[2:])  # of a row by itself, to the bit
    short = solve(apply, right, 2, 1e-12)
    assert 0 < float(torch.linalg.norm(right[0] - short[0] @ matrix)) < float(torch.linalg.norm(right[0]))


@pytest.mark.parametrize("window", [WINDOW, WIDE])
@pytest.mark.parametrize("noise_std", [0.0, 0.4])
def test_projection_is_the_best_linear_estimate(window: HounsfieldWindow, noise_std: float) -> None:
    """x̂ + r²A^T(r²AA^T + σ²)⁺(y - A x̂) by dense matrices, for two views, whose AA^T is no multiple of the identity."""
    operator = operators.ray_sums(noise_std)
    truth = _random(1, 1, 4, 4, 4)
    measured = InModelRange(
        operator, window, operator.forward(window.to_hu(truth)) + noise_std * _random(1, 2, 1, 4, 4)
    )
    guide = Projection(measured, strength=0.7, data_std=0.5, solver_steps=60, solver_tolerance=1e-12)
    image = _random(3, 1, 4, 4, 4, seed=4)
    matrix, variance = _matrix(measured, 4), 0.09 * 0.25 / (0.64 * 0.25 + 0.09)
    normal = variance * matrix @ matrix.T + noise_std**2 * torch.eye(len(matrix), dtype=torch.float64)
    gain = variance * matrix.T @ torch.linalg.pinv(normal, hermitian=True, rtol=1e-10)
    expected = 0.7 * (measured.residual(image).flatten(1) @ gain.T).view(image.shape)
    change = guide.change(image, image, LEVEL)
    assert change is not None
    torch.testing.assert_close(change.step, expected, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(change.residual, rms(measured.residual(image)).clamp(min=noise_std))
    assert guide.change(image, image, Level(1.0, 0.0, 0.0)) is None


def test_projection_without_noise_has_the_measurement() -> None:
    operator = operators.block_means(0.0)
    measured = InModelRange(operator, WINDOW, 100 * _random(1, 1, 2, 2, 2))
    image = _random(2, 1, 4, 4, 4).float()
    change = Projection(measured).change(image, image, LEVEL)
    assert change is not None
    assert float(measured.residual(image + change.step).abs().max()) < 1e-3  # HU


def _white(state: Tensor) -> Tensor:
    """E[x0 | x_t] of white data of standard deviation 0.5 at LEVEL."""
    return LEVEL.signal * 0.25 / (LEVEL.signal**2 * 0.25 + LEVEL.noise**2) * state


@pytest.mark.parametrize("operator", [operators.block_means(30.0), operators.ray_sums(0.5)], ids=lambda o: o.name)
def test_pigdm_is_projection_where_the_network_is_that_of_white_data(operator: operators.Operator) -> None:
    truth = _random(1, 1, 4, 4, 4)
    measured = InModelRange(operator, WINDOW, operator.forward(WINDOW.to_hu(truth)))
    state = _random(2, 1, 4, 4, 4, seed=3).requires_grad_()
    image = _white(state)
    settings = {"strength": 0.6, "data_std": 0.5, "solver_tolerance": 1e-12, "solver_steps": 60}
    ours = PiGDM(measured, **settings).change(image, state, LEVEL)  # type: ignore[arg-type]
    plain = Projection(measured, **settings).change(image.detach(), state, LEVEL)  # type: ignore[arg-type]
    assert ours is not None
    assert plain is not None
    torch.testing.assert_close(ours.step, plain.step, atol=1e-9, rtol=1e-7)


def test_dps_by_hand() -> None:
    """A network with derivative 2 at one voxel: x̂ = 2 x_t; the residual's mean square is 0.3² model units, above σ²."""
    measured = InModelRange(operators.identity(20.0), WINDOW, torch.full((1, 1, 1, 1, 1), 500.0, dtype=torch.float64))
    state = torch.full((1, 1, 1, 1, 1), 0.1, dtype=torch.float64, requires_grad=True)
    change = DPS(measured, strength=0.5).change(2 * state, state, LEVEL)
    assert change is not None
    step = 0.09 / 0.8 * 2 * (0.5 - 0.2) / 0.3**2  # 0.75, past the measurement at 0.3
    assert step == pytest.approx(0.75)
    assert float(change.step) == pytest.approx(0.5 * 0.3)  # shortened to it, then by the strength
    weak = Level(0.8, 0.15, LEVEL.share)
    change = DPS(measured).change(2 * state, state, weak)
    assert change is not None
    assert float(change.step) == pytest.approx(step / 4)
    near = torch.full((1, 1, 1, 1, 1), 0.2499, dtype=torch.float64, requires_grad=True)  # residual 0.2 HU, σ is 20 HU
    change = DPS(measured).change(2 * near, near, Level(0.8, 0.01, LEVEL.share))
    assert change is not None
    assert float(change.step) == pytest.approx(0.01**2 / 0.8 * 2 * 0.0002 / 0.02**2, rel=1e-9)
    assert float(change.residual) == 20.0


def test_tf_by_hand() -> None:
    measured = InModelRange(
        operators.identity(0.0), WIDE, torch.tensor([3000.0, 1000.0], dtype=torch.float64).view(1, 1, 1, 1, 2)
    )
    image = torch.tensor([[-2.0, -4.0], [1.0, 0.0]], dtype=torch.float64).view(2, 1, 1, 1, 2)
    change = TF(measured).change(image, image, Level(0.5, 0.5, 0.5))
    assert change is not None
    weight = 0.7 * 0.5 * (1 + math.cos(0.5 * math.pi))
    expected = weight * torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64) / 5.0  # the second residual is 0
    torch.testing.assert_close(change.step.flatten(1), expected)
    assert TF(measured).change(image, image, Level(1.0, 0.03, 0.02)) is None
    assert TF(measured).change(image, image, Level(1.0, 0.03, 0.021)) is not None


# -- steering ---------------------------------------------------------------------------------------------------------


class _Growing:
    """A guide that multiplies what it is given."""

    differentiates = False

    def __init__(self, image: float, residuals: list[list[float]], moves_state: bool = False) -> None:
        self.strength, self.moves_state = 3.5, moves_state
        self._image, self._residuals = image, iter(residuals)

    def change(self, image: Tensor, state: Tensor, level: Level) -> Change | None:
        return Change((self._image - 1) * image, torch.tensor(next(self._residuals)))


def test_a_residual_that_grows_is_named() -> None:
    image = torch.ones(2, 1, 1, 1, 1)
    steering = Steering(_Growing(1.0, [[1.0, 2.0], [9.9, 19.9], [9.9, 20.1], [math.nan, 1.0]]))
    for _ in range(2):
        assert torch.equal(steering.corrected(image, image, LEVEL), image)
    with pytest.raises(
        DivergedError,
        match=r"volume 1 of the batch .* from 2 .* to 20.1 at t/T = 0.410\. Use a lower strength \(it is 3.5\) or more steps",
    ):
        steering.corrected(image, image, LEVEL)
    with pytest.raises(ValueError, match=r"volume 0 .* to nan"):
        steering.corrected(image, image, LEVEL)


@pytest.mark.parametrize("factor", [10.1, math.inf, math.nan])
def test_volumes_that_grow_are_named(factor: float) -> None:
    image = torch.ones(1, 1, 2, 2, 2)
    with pytest.raises(DivergedError, match=r"the image estimate has a root mean square of .*\[-1, 1\] \(limit 10\)"):
        Steering(_Growing(factor, [[1.0]])).corrected(image, image, LEVEL)
    steering = Steering(_Growing(factor, [[1.0]], moves_state=True))
    assert torch.equal(steering.steered(image, image, LEVEL), image)
    with pytest.raises(DivergedError, match="the state has a root mean square"):
        steering.moved(image)
    assert torch.equal(steering.moved(image), image)  # a change moves the state once


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GUIDES.names())
def test_a_guide_survives_a_document(name: str) -> None:
    measured = InModelRange(operators.identity(1.0), WINDOW, torch.zeros(1, 1, 2, 2, 2))
    guide = guide_from_dict({"name": name, "strength": 0.25}, measured)
    assert guide.to_dict()["strength"] == 0.25
    assert guide_from_dict(guide.to_dict(), measured) == guide
    with pytest.raises(ValueError, match=f"strength of guide '{name}' is -1"):
        GUIDES[name](measured, strength=-1.0)
    with pytest.raises(ValueError, match=f"guide '{name}' has no setting 'sharpness'; it has .*strength"):
        guide_from_dict({"name": name, "sharpness": 1}, measured)


def test_what_guides_refuse() -> None:
    measured = InModelRange(operators.identity(1.0), WINDOW, torch.zeros(2, 1, 2, 2, 2))
    for settings, message in (
        ({"strength": math.inf}, r"is inf; expected 0 \(none\) or more, 1 by default"),
        ({"data_std": 0.0}, "data_std is 0.0; expected above 0, such as 1"),
        ({"solver_steps": 0}, "solver_steps is 0; expected at least 1"),
        ({"solver_tolerance": 1.0}, "solver_tolerance is 1.0; expected between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Projection(measured, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"cutoff is 1.0; expected a share"):
        TF(measured, cutoff=1.0)
    with pytest.raises(ValueError, match=r"'magic'; there are projection, pigdm, dps, tf"):
        guide_from_dict({"name": "magic"}, measured)
    for settings, message in (
        ({"data_std": "big"}, "data_std of the guide 'projection' is 'big'; expected a number"),
        ({"solver_steps": 2.5}, "solver_steps of the guide 'projection' is 2.5; expected a whole number"),
        ({"solver_steps": True}, "is True; expected a whole number"),
        ({"name": "tf", "cutoff": None}, "cutoff of the guide 'tf' is None; expected a number"),
    ):
        with pytest.raises(ValueError, match=message):
            guide_from_dict(settings, measured)
    for shape in ((3, 1, 2, 2, 2), (2, 1, 4, 4, 4)):
        with pytest.raises(ValueError, match=r"measurement has shape \(2, 1, 2, 2, 2\); the operator makes"):
            measured.residual(torch.zeros(shape))
    spoiled = torch.tensor([0.0, math.nan, math.inf])
    with pytest.raises(ValueError, match="2 of 3 values of the measurement are not finite"):
        InModelRange(operators.identity(1.0), WINDOW, spoiled)
    with pytest.raises(ValueError, match=r"unit is 'cm'; expected one of \['HU', 'mm'\]"):
        InModelRange(operators.Operator("x", "cm", 1.0, lambda x: x, lambda y: y), WINDOW, torch.zeros(1))
