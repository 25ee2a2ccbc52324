import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from prdit_models.posthoc_ema import (
    LONGEST,
    SIGMA_RELS,
    Snapshot,
    coefficients,
    gamma_of,
    power_decay,
    power_update,
    reconstruct,
    sigma_rel_of,
)

STEPS = 400


def _walk(width: int = 600) -> Tensor:
    """Weights of every step, float64, shape (steps, width): a random walk."""
    return torch.randn(STEPS, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(0)


def _literal(step: int, gamma: float) -> NDArray[np.float64]:
    """Share of each step 1 … step: the integral of the profile ∝ τ^γ over (s-1, s]; 0 afterwards."""
    edges = np.minimum(np.arange(STEPS + 1.0), step)
    return np.diff((edges / step) ** (gamma + 1))


def _tracked(trajectory: Tensor, gamma: float, keep: set[int]) -> dict[int, Tensor]:
    average, kept = [torch.zeros_like(trajectory[0])], {}
    for step, weights in enumerate(trajectory, start=1):
        power_update({gamma: average}, [weights], step)
        if step in keep:
            kept[step] = average[0].clone()
    return kept


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, LONGEST])
def test_length_is_the_standard_deviation_of_the_profile(sigma_rel: float) -> None:
    gamma = gamma_of(sigma_rel)
    assert sigma_rel_of(gamma) == pytest.approx(sigma_rel, rel=1e-9)
    tau = (np.arange(400_000) + 0.5) / 400_000
    density = tau**gamma / (tau**gamma).sum()
    mean = (density * tau).sum()
    assert math.sqrt((density * (tau - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-6)


def test_exponents_of_the_paper() -> None:
    """EDM2, section 3: σ_rel 0.05 and 0.10 are γ 16.97 and 6.94; 1/sqrt(12) is the plain mean."""
    assert [gamma_of(value) for value in SIGMA_RELS] == pytest.approx([16.97, 6.94], abs=0.005)
    assert gamma_of(LONGEST) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("sigma_rel", [*SIGMA_RELS, LONGEST])
def test_tracked_average_is_the_literal_sum(sigma_rel: float) -> None:
    trajectory, gamma = _walk(), gamma_of(sigma_rel)
    for step, average in _tracked(trajectory, gamma, {1, 37, STEPS}).items():
        expected = torch.from_numpy(_literal(step, gamma)) @ trajectory
        torch.testing.assert_close(average, expected, atol=1e-10, rtol=1e-10)
    assert power_decay(1, gamma) == 0.0


def test_shares_of_late_steps_grow_like_the_power() -> None:
    shares = _literal(STEPS, 6.0)
    assert shares[399] / shares[199] == pytest.approx(2**6, rel=0.03)


def test_several_averages_move_in_one_update() -> None:
    averages = {3.0: [torch.zeros(2)], 1.0: [torch.zeros(2)]}
    power_update(averages, [torch.ones(2)], 1)
    power_update(averages, [torch.full((2,), 3.0)], 2)
    assert averages[3.0][0].tolist() == [3 - 2 / 2**4] * 2
    assert averages[1.0][0].tolist() == [3 - 2 / 2**2] * 2


def test_a_tracked_profile_is_given_back() -> None:
    snapshots = [Snapshot(step, gamma_of(sigma)) for step in (100, 250, STEPS) for sigma in SIGMA_RELS]
    for index, (step, gamma) in enumerate(snapshots):
        kept = [pair for pair in snapshots if pair.step <= step]
        expected = [float(pair == snapshots[index]) for pair in kept]
        assert coefficients(kept, sigma_rel_of(gamma), step) == pytest.approx(expected, abs=1e-6)


def test_two_profiles_by_hand() -> None:
    """min over c of the squared distance of c·p1 + (1-c)·p2 to p, by quadrature."""
    gammas, wanted = (2.0, 9.0), 5.0
    tau = (np.arange(200_000) + 0.5) / 200_000
    one, two, target = ((gamma + 1) * tau**gamma for gamma in (*gammas, wanted))
    best = ((target - two) * (one - two)).sum() / ((one - two) ** 2).sum()
    found = coefficients([(STEPS, gamma) for gamma in gammas], sigma_rel_of(wanted))
    assert found == pytest.approx([best, 1 - best], rel=1e-6)


def test_an_untracked_length_of_a_random_walk() -> None:
    """The error is the sum over the walk's own steps of the shares' difference from there on: known exactly, and small."""
    trajectory, wanted = _walk(), 0.075
    keep = set(range(25, STEPS + 1, 25))
    tracks = {gamma: _tracked(trajectory, gamma, keep) for gamma in map(gamma_of, SIGMA_RELS)}
    snapshots = [Snapshot(step, gamma) for gamma, track in tracks.items() for step in track]
    found = reconstruct(snapshots, ({"w": tracks[gamma][step]} for step, gamma in snapshots), wanted)["w"]
    direct = _tracked(trajectory, gamma_of(wanted), {STEPS})[STEPS]

    factors = coefficients(snapshots, wanted)
    shares = sum(factor * _literal(*pair) for factor, pair in zip(factors, snapshots, strict=True))
    difference = shares - _literal(STEPS, gamma_of(wanted))
    expected = float(np.sqrt((np.cumsum(difference[::-1]) ** 2).sum()))
    error = float((found - direct).square().mean().sqrt())
    assert error == pytest.approx(expected, rel=0.1)  # 600 coordinates: 3 % of one standard deviation
    lag = float((trajectory[-1] - direct).square().mean().sqrt())
    assert error < 0.003 * lag
    nearest = min(float((tracks[g][STEPS] - direct).square().mean().sqrt()) for g in tracks)
    assert error < 0.02 * nearest  # far better than taking one of the two as it is


def test_an_earlier_end_and_frozen_weights() -> None:
    trajectory = _walk(4)
    gammas = [gamma_of(sigma) for sigma in SIGMA_RELS]
    keep = set(range(20, 201, 20))
    tracks = {gamma: _tracked(trajectory, gamma, keep) for gamma in gammas}
    snapshots = [Snapshot(step, gamma) for gamma in gammas for step in keep]
    frozen = torch.tensor([0.1, -1e-7, 123456.7])
    weights = [{"w": tracks[pair.gamma][pair.step].float(), "frozen": frozen} for pair in snapshots]
    found = reconstruct(snapshots, weights, 0.08, 200)
    direct = _tracked(trajectory, gamma_of(0.08), {200})[200]
    assert found["w"].dtype == torch.float32
    torch.testing.assert_close(found["w"].double(), direct, atol=0.05, rtol=0)
    assert torch.equal(found["frozen"], frozen)


def test_many_snapshots_do_not_blow_up() -> None:
    snapshots = [Snapshot(step, gamma_of(sigma)) for sigma in SIGMA_RELS for step in range(10_000, 10_100)]
    found = coefficients(snapshots, 0.075)
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-9)
    assert float(np.abs(found).max()) < 100


def test_what_cannot_be() -> None:
    for sigma in (0.0, 0.3, math.nan):
        with pytest.raises(ValueError, match=f"sigma_rel is {sigma}; expected above 0 and at most 0.2887"):
            gamma_of(sigma)
    with pytest.raises(ValueError, match="gamma is -1"):
        sigma_rel_of(-1)
    with pytest.raises(ValueError, match="step is 0; expected at least 1"):
        power_decay(0, 6.94)
    with pytest.raises(ValueError, match="no snapshots"):
        coefficients([], 0.1)
    with pytest.raises(ValueError, match="step is 0"):
        coefficients([(0, 6.94)], 0.1)
    with pytest.raises(ValueError, match="given twice"):
        coefficients([(5, 6.94), (5, 6.94)], 0.1)
    with pytest.raises(ValueError, match="Step 5 of a snapshot lies after the wanted step 4"):
        coefficients([(5, 6.94)], 0.1, 4)
    with pytest.raises(ValueError, match="shapes differ"):
        power_update({1.0: [torch.zeros(2)]}, [torch.zeros(3)], 1)
    one = {"w": torch.zeros(2)}
    for weights, message in (
        ([one], "1 sets of weights for 2"),
        ([one] * 3, "More weights than the 2"),
        ([one, {"v": torch.zeros(2)}], r"snapshot \(6, 1.0\) differ from those of \(5, 1.0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            reconstruct([(5, 1.0), (6, 1.0)], weights, 0.1)
