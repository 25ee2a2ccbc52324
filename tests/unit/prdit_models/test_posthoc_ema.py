"""Power-function averages against their definition as sums, and reconstruction against averages that were tracked."""

import numpy as np
import pytest
import torch

from prdit_models.posthoc_ema import (
    TRACKED_SIGMAS,
    Profile,
    gamma_of,
    mix,
    mixing_coefficients,
    power_update,
    sigma_of,
)


def walk(length: int, seed: int = 0) -> np.ndarray:
    """Weights of a training: a drifting random walk of 50 numbers, by update."""
    steps = np.random.default_rng(seed).normal(size=(length, 50))
    return np.cumsum(steps, axis=0) * 0.02 + np.log1p(np.arange(length))[:, None]


def literal(weights: np.ndarray, gamma: float) -> np.ndarray:
    """Mean of the weights of updates 1 … t, each weighing ∫ τ^γ over its interval (τ-1, τ]."""
    edges = np.arange(len(weights) + 1, dtype=np.float64) ** (gamma + 1.0)
    share = np.diff(edges) / edges[-1]
    return (share[:, None] * weights).sum(axis=0)


def tracked(
    weights: np.ndarray, gamma: float, every: int = 0
) -> tuple[torch.Tensor, list[tuple[Profile, torch.Tensor]]]:
    average, kept = torch.zeros(50, dtype=torch.float64), []
    for place, row in enumerate(weights):
        power_update([average], [torch.from_numpy(row)], place + 1, gamma)
        if every and (place + 1) % every == 0:
            kept.append((Profile(place + 1, gamma), average.clone()))
    return average, kept


def rebuild(kept: list[tuple[Profile, torch.Tensor]], wanted: Profile) -> torch.Tensor:
    total: torch.Tensor | None = None
    coefficients = mixing_coefficients([profile for profile, _ in kept], wanted)
    for (_, snapshot), coefficient in zip(kept, coefficients, strict=True):
        total = mix(total, snapshot, coefficient)
    assert total is not None
    return total


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.1, 0.2, 0.288])
def test_width_and_exponent_are_inverse(sigma: float) -> None:
    assert sigma_of(gamma_of(sigma)) == pytest.approx(sigma, rel=1e-9)


def test_known_exponents() -> None:
    # EDM2, §3.1: σ_rel 0.05 and 0.10 are γ = 16.97 and 6.94
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.01)
    assert gamma_of(1 / np.sqrt(12)) == pytest.approx(0.0, abs=1e-6)


def test_width_is_the_standard_deviation_of_the_profile() -> None:
    gamma = gamma_of(0.1)
    tau = (np.arange(200_000) + 0.5) / 200_000
    profile = (gamma + 1) * tau**gamma
    mean = (profile * tau).mean()
    assert np.sqrt((profile * (tau - mean) ** 2).mean()) == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.25])
def test_the_update_is_the_literal_sum(sigma: float) -> None:
    weights, gamma = walk(300), gamma_of(sigma)
    np.testing.assert_allclose(tracked(weights, gamma)[0].numpy(), literal(weights, gamma), rtol=1e-10)


def test_the_first_update_forgets_the_start() -> None:
    average = torch.full((3,), 7.0)
    power_update([average], [torch.tensor([1.0, 2.0, 3.0])], 1, gamma_of(0.1))
    assert average.tolist() == [1.0, 2.0, 3.0]


def test_a_kept_profile_is_found_again() -> None:
    weights = walk(800)
    kept = [item for sigma in TRACKED_SIGMAS for item in tracked(weights, gamma_of(sigma), every=100)[1]]
    for profile, snapshot in (kept[7], kept[12]):
        np.testing.assert_allclose(rebuild(kept, profile).numpy(), snapshot.numpy(), rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.05, 0.075, 0.1, 0.15, 0.2])
def test_another_width_is_close_to_what_tracking_it_gives(sigma: float) -> None:
    weights = walk(800)
    kept = [item for tracked_sigma in TRACKED_SIGMAS for item in tracked(weights, gamma_of(tracked_sigma), 50)[1]]
    expected = literal(weights, gamma_of(sigma))
    found = rebuild(kept, Profile(800, gamma_of(sigma))).numpy()
    spread = np.abs(weights[-1] - expected).mean()  # what averaging does at all
    assert np.abs(found - expected).mean() < 0.02 * spread


def test_two_profiles_by_hand() -> None:
    """min over c of the squared distance of c·p1 + (1-c)·p2 to p, by quadrature."""
    gammas, wanted = (2.0, 9.0), 5.0
    tau = (np.arange(200_000) + 0.5) / 200_000
    one, two, target = ((gamma + 1) * tau**gamma for gamma in (*gammas, wanted))
    best = ((target - two) * (one - two)).sum() / ((one - two) ** 2).sum()
    found = mixing_coefficients([Profile(400, gamma) for gamma in gammas], Profile(400, wanted))
    assert found == pytest.approx([best, 1 - best], rel=1e-6)


def test_many_snapshots_do_not_blow_up() -> None:
    kept = [Profile(updates, gamma_of(sigma)) for sigma in TRACKED_SIGMAS for updates in range(10_000, 10_100)]
    found = mixing_coefficients(kept, Profile(10_099, gamma_of(0.075)))
    assert float(np.abs(found).max()) < 100  # rounding of the snapshots is not amplified


def test_weights_that_never_moved_stay() -> None:
    kept = [Profile(updates, gamma_of(sigma)) for sigma in TRACKED_SIGMAS for updates in (100, 200, 300)]
    coefficients = mixing_coefficients(kept, Profile(300, gamma_of(0.15)))
    assert coefficients.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("kept", "wanted", "message"),
    [
        ([], Profile(1, 1), "ema_snapshots"),
        ([Profile(100, 7)], Profile(101, 7), "after the last snapshot"),
        ([Profile(0, 7)], Profile(0, 7), "not a profile"),
    ],
)
def test_impossible_averages_are_refused(kept: list[Profile], wanted: Profile, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixing_coefficients(kept, wanted)


@pytest.mark.parametrize("sigma", [0.0, -0.1, 0.3, float("nan")])
def test_impossible_widths_are_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="expected a width"):
        gamma_of(sigma)
    with pytest.raises(ValueError, match="update 1"):
        power_update([], [], 0, 1.0)


@pytest.mark.parametrize(
    ("sigma", "updates"),
    [(0.001, 800), (0.1, 120), (0.1, 1)],  # sharper than any mix; between snapshots, long ago; before the first one
)
def test_what_the_snapshots_cannot_give_is_refused(sigma: float, updates: int) -> None:
    kept = [Profile(n, gamma_of(tracked_sigma)) for tracked_sigma in TRACKED_SIGMAS for n in range(200, 801, 200)]
    with pytest.raises(ValueError, match=r"cannot give .*nearest mix .* off.*among \[200, 400, 600, 800\]"):
        mixing_coefficients(kept, Profile(updates, gamma_of(sigma)))
