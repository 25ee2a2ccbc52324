"""Wasserstein score: known distances, order, seeds, intervals, and what it says of few volumes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics import wasserstein
from prdit_models.metrics.critic import Critic, Effort, Estimate, Volumes, estimate_distance, gradient_norms
from prdit_models.metrics.metric import METRICS, Setting, Side
from prdit_models.metrics.order import degraded
from prdit_models.metrics.wasserstein import METRIC, WassersteinSettings, critic_interval

EFFORT = Effort(steps=60, batch_size=8, width=16, lr=3e-3, penalty=1.0)
WINDOW = HounsfieldWindow()


def blobs(count: int, seed: int, edge: int = 8) -> np.ndarray:
    """Smooth volumes with some grain, HU, shape (count, edge, edge, edge)."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, edge, edge, edge)).astype(np.float32)
    return np.stack([600.0 * degraded(each, "blurred", 0) + 100.0 * each for each in noise])


def volumes(hu: np.ndarray) -> Volumes:
    scaled = torch.from_numpy(hu / 1000.0)
    return Volumes(len(hu), hu.shape[1], lambda places: scaled[places])


def side(hu: np.ndarray, roles: Sequence[str] = ()) -> Side:
    named = {f"v{place}": each for place, each in enumerate(hu)}
    return Side(tuple(named), np.zeros((len(hu), 1), np.float32), {}, tuple(roles), named.__getitem__)


def setting(edge: int = 8, **settings: Any) -> Setting:
    chosen = WassersteinSettings(**{"steps": 10, "width": 4, "num_seeds": 2} | settings)
    return Setting(WINDOW, 8.0, edge, num_subsamples=1, settings={"wasserstein": chosen})


def test_a_shift_of_all_voxels_is_its_own_distance() -> None:
    first, second = blobs(32, 0), blobs(32, 1)
    found = estimate_distance(volumes(first), volumes(second + 200.0), replace(EFFORT, steps=120), seed=3)
    assert 0.15 < found.distance < 0.21  # a lower bound, from 16 volumes and few steps
    assert found.gradient_norm == pytest.approx(1.0, abs=0.2)
    assert found.trace[0] < found.trace[-1]
    assert len(found.trace) == 20


def test_it_orders_real_blurred_and_noised_volumes_and_has_no_floor() -> None:
    first, second = blobs(24, 0), blobs(24, 1)
    values = [
        estimate_distance(
            volumes(first), volumes(np.stack([degraded(hu, how, k) for k, hu in enumerate(second)])), EFFORT, seed=1
        ).distance
        for how in ("real", "blurred", "noised")
    ]
    assert abs(values[0]) < 0.01  # of volumes the critic has not seen: nothing to tell apart
    assert values[0] + 0.01 < values[1] < values[2]


def test_gradients_are_measured_in_the_dual_of_the_root_mean_square() -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3.0 * x.mean(dim=(1, 2, 3))

    for edge in (4, 8):
        norms = gradient_norms(Mean(), torch.zeros(2, edge, edge, edge))
        torch.testing.assert_close(norms, torch.full((2,), 3.0))


@pytest.mark.parametrize(("edge", "layers"), [(4, 1), (8, 1), (20, 1), (32, 2), (48, 3), (128, 4)])
def test_layers_of_an_edge_and_their_initial_scale(edge: int, layers: int) -> None:
    critic = Critic(edge, 2)
    assert len(critic.blocks) == layers
    x = torch.randn(2, edge, edge, edge)
    critic.scale_to(x)
    assert gradient_norms(critic, x).mean().item() == pytest.approx(1.0, rel=1e-4)


def test_the_first_layer_sees_whole_blocks() -> None:
    critic = Critic(8, 1)
    x = torch.zeros(1, 8, 8, 8)
    x[0, 4:, :4, 4:] = torch.arange(64.0).reshape(4, 4, 4)
    seen: list[torch.Tensor] = []
    critic.blocks[0].register_forward_hook(lambda module, given, found: seen.append(given[0]))
    critic(x)
    torch.testing.assert_close(seen[0][0, 1, 0, 1], torch.arange(64.0))
    assert float(seen[0].sum()) == 63 * 32


def test_a_seed_repeats_and_others_differ() -> None:
    first, second = volumes(blobs(6, 0)), volumes(blobs(6, 1))
    state = torch.random.get_rng_state()
    quick = replace(EFFORT, steps=3)
    one, again, other = (estimate_distance(first, second, quick, seed).distance for seed in (0, 0, 1))
    assert one == again != other
    assert torch.equal(torch.random.get_rng_state(), state)


def test_held_out_volumes_are_compared_and_training_volumes_stand_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[np.ndarray, np.ndarray, int]] = []

    def stand_in(real: Volumes, generated: Volumes, effort: Effort, seed: int, device: str) -> Estimate:
        read = [each.read(np.arange(each.count)).numpy().mean(axis=(1, 2, 3)) for each in (real, generated)]
        asked.append((*read, seed))
        return Estimate(0.001 * len(asked), (1e-6, 1e-6), 1.0, [0.0, 0.001])

    monkeypatch.setattr(wasserstein, "estimate_distance", stand_in)
    levels = np.arange(7, dtype=np.float32) * 100
    real = side(levels[:, None, None, None] + np.zeros((7, 8, 8, 8), np.float32), ["train"] * 4 + ["val"] * 3)
    generated = side(np.full((5, 8, 8, 8), -500.0, np.float32))
    found = METRIC.compare(real, generated, setting(reference_distance=3.0))
    for held_out, others, _ in asked[:2]:
        np.testing.assert_allclose(held_out, [0.4, 0.5, 0.6], atol=1e-3)
        np.testing.assert_allclose(others, [-0.5] * 5, atol=1e-3)
    for held_out, others, _ in asked[2:]:
        np.testing.assert_allclose(held_out, [0.4, 0.5, 0.6], atol=1e-3)
        np.testing.assert_allclose(others, [0.0, 0.1, 0.2, 0.3], atol=1e-3)
    assert [seed for *_, seed in asked[:2]] == [seed for *_, seed in asked[2:]]
    assert asked[0][2] != asked[1][2]
    figures = found.figures
    assert figures.keys() == METRICS["wasserstein"].figures.keys()
    assert figures["wasserstein"].value == pytest.approx(1.5)  # HU: half the window is 1000
    assert figures["wasserstein_real"].value == pytest.approx(3.5)
    assert figures["w_score"].value == pytest.approx(0.5)
    interval, ratio = figures["wasserstein"].interval, figures["w_score"].interval
    assert interval is not None
    assert ratio is not None
    assert ratio["high"] == pytest.approx(interval["high"] / 3)
    assert (figures["wasserstein"].n_real, figures["wasserstein"].n_generated) == (3, 5)
    assert figures["wasserstein_real"].n_generated == 4
    assert found.details["generated"]["distances_hu"] == [1.0, 2.0]
    assert found.details["real"]["trace_hu"] == [0.0, 1.0]

    asked.clear()
    test = METRIC.compare(real, generated, replace(setting(), reference=True))
    assert list(test.figures) == ["wasserstein"]
    assert len(asked) == 1  # one critic,
    assert len(asked[0][0]) == 7  # on all volumes


def test_few_volumes_are_said() -> None:
    hu = blobs(6, 0)
    two = METRIC.compare(side(hu, ["train"] * 6), side(hu[:2]), setting()).figures["wasserstein"]
    assert two.value is None
    assert "A critic needs 3 volumes of each side; there are 6 and 2." in two.note
    found = METRIC.compare(side(hu, ["train"] * 5 + ["val"]), side(hu[:4]), setting()).figures
    assert found["wasserstein"].value is not None
    assert "Against all real volumes: 1 held-out ones are fewer than 3." in found["wasserstein"].note
    assert "From 4 volumes on the smaller side a critic generalises badly" in found["wasserstein"].note
    assert found["wasserstein_real"].value is None
    assert "there are 1 and 5" in found["wasserstein_real"].note


def test_small_volumes_are_kept_and_not_read_again() -> None:
    hu, chosen = blobs(3, 0), setting()
    known = replace(side(hu), seen={"wasserstein": [METRIC.of_volume(each, chosen) for each in hu]}, read=pytest.fail)
    with wasserstein._pooled(known, chosen) as found:
        np.testing.assert_allclose(found.read(np.array([2, 0])).numpy(), hu[[2, 0]] / 1000, atol=1e-3)
    assert METRIC.of_volume(np.zeros((64, 64, 64), np.float32), setting(64, size=None)) is None


@pytest.mark.parametrize(
    ("edge", "size", "expected"), [(8, 8, (1, 8)), (16, 8, (2, 8)), (24, 16, (2, 12)), (18, None, (1, 16))]
)
def test_volumes_are_pooled_and_cut_to_whole_blocks(edge: int, size: int | None, expected: tuple[int, int]) -> None:
    chosen = setting(edge, size=size)
    assert wasserstein._pooling(edge, size) == expected
    ramp = np.arange(edge**3, dtype=np.float32).reshape(1, edge, edge, edge) / edge**3 * 2000 - 1000
    with wasserstein._pooled(side(ramp), chosen) as found:
        read = found.read(np.array([0]))
    np.testing.assert_array_equal(METRIC.of_volume(ramp[0], chosen), read[0].numpy())
    factor, cut = expected
    assert read.shape == (1, cut, cut, cut)
    assert float(read[0, 0, 0, 0]) == pytest.approx(ramp[0, :factor, :factor, :factor].mean() / 1000, abs=1e-3)
    assert float(read[0, -1, -1, -1]) == pytest.approx(
        ramp[(0, *[slice(factor * (cut - 1), factor * cut)] * 3)].mean() / 1000, abs=1e-3
    )


def test_the_interval_adds_the_variances_of_volumes_and_of_critics() -> None:
    found = [Estimate(value, (8.0, 3.0), 1.0, []) for value in (1.0, 2.0, 4.0, 5.0)]
    interval = critic_interval(found, 4, 6)
    assert interval is not None
    spread = np.sqrt(8.0 / 4 + 3.0 / 6 + np.var([1.0, 2.0, 4.0, 5.0], ddof=1) / 4)
    assert (interval["low"], interval["high"]) == pytest.approx(stats.t.interval(0.95, 3, 3.0, spread))
    assert critic_interval(found[:1], 4, 6) is None
    assert critic_interval([replace(one, variances=(8.0, None)) for one in found], 4, 3) is None


def test_the_spread_of_volumes_is_that_of_a_linear_critic() -> None:
    levels = np.random.default_rng(0).normal(0.0, 100.0, 40).astype(np.float32)
    first, second = (part[:, None, None, None] + np.zeros((20, 8, 8, 8), np.float32) for part in np.split(levels, 2))
    found = estimate_distance(volumes(first), volumes(second + 400.0), EFFORT, seed=0)
    assert found.variances[0] == pytest.approx(0.01, rel=0.8)  # of the levels, (100 HU)²; ten volumes
    assert found.variances[1] == pytest.approx(0.01, rel=0.8)
    few = estimate_distance(volumes(first[:3]), volumes(second), replace(EFFORT, steps=1), seed=0)
    assert few.variances[0] is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps is 0; expected 1 or more"),
        ({"size": 2}, "size is 2; expected 4 or more voxels"),
        ({"reference_distance": 0.0}, "reference_distance is 0.0; expected a positive number"),
        ({"lr": float("nan")}, "lr is nan"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        WassersteinSettings(**changes)
