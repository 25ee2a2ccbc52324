"""MS-SSIM against its definition in float64, and the figures of collapsed and varied samples."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import ndimage

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.metric import Comparison, Hu, Setting, Side
from prdit_models.metrics.ms_ssim import METRIC, PUBLISHED_WEIGHTS, MsSsimSettings, ms_ssim, num_scales
from prdit_models.metrics.random_pairs import pair_spread, random_pairs
from prdit_models.metrics.threads import one_thread
from tests.oracles.ms_ssim import ms_ssim as literal


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The arrays are small: threads would wait for each other."""
    with one_thread():
        yield


def smooth(seed: int, shape: tuple[int, ...]) -> Hu:
    """Values around [0, 1], smooth, with grain."""
    rng = np.random.default_rng(seed)
    volume = ndimage.gaussian_filter(rng.normal(size=shape), 2) * 3 + 0.5 + rng.normal(0, 0.02, shape)
    return volume.astype(np.float32)


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_it_is_the_definition_on_odd_shapes_too(data_range: float) -> None:
    first, second = smooth(0, (49, 51, 60)), smooth(1, (49, 51, 60))
    found = ms_ssim(torch.from_numpy(first), torch.from_numpy(second), data_range)
    assert found == pytest.approx(literal(first, second, data_range), abs=2e-6)
    assert ms_ssim(torch.from_numpy(first), torch.from_numpy(first)) == 1.0


def test_fewer_scales_have_the_first_weights_and_sum_to_one() -> None:
    assert [num_scales(edge) for edge in (2, 4, 8, 16, 24, 32, 47, 48, 256)] == [0, 1, 2, 3, 4, 4, 4, 5, 5]
    first, second = (smooth(seed, (12, 12, 12)) for seed in (0, 1))
    for scales in (1, 2, 3):
        first_weights = np.array(PUBLISHED_WEIGHTS[:scales]) / sum(PUBLISHED_WEIGHTS[:scales])
        expected = literal(first, second, weights=tuple(first_weights))
        assert ms_ssim(torch.from_numpy(first), torch.from_numpy(second), scales=scales) == pytest.approx(
            expected, abs=2e-6
        )
        assert expected > 0
    first, second = torch.from_numpy(first), torch.from_numpy(second)
    with pytest.raises(ValueError, match="and 4 scales"):
        ms_ssim(first, second, scales=4)
    with pytest.raises(ValueError, match="expected two equal shapes"):
        ms_ssim(first, second[:6])


def test_pairs_are_different_unordered_and_all_where_few() -> None:
    assert random_pairs(4, 100, 0).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    drawn = random_pairs(1000, 200, 3)
    assert len(np.unique(drawn, axis=0)) == 200
    assert (drawn[:, 0] < drawn[:, 1]).all()
    assert drawn.max() > 900
    assert np.array_equal(drawn, random_pairs(1000, 200, 3))
    assert not np.array_equal(drawn, random_pairs(1000, 200, 4))


@pytest.mark.parametrize(("num_volumes", "most"), [(5, 200), (20, 60), (300, 100)])
def test_the_interval_of_a_mean_over_pairs_covers_its_expectation(num_volumes: int, most: int) -> None:
    """exp(-|u - v|²) of standard normal values: expectation 1/√5."""
    hits, trials = 0, 300
    for trial in range(trials):
        values = np.random.default_rng(trial).normal(size=num_volumes)
        pairs = random_pairs(num_volumes, most, trial)
        seen = np.exp(-np.square(values[pairs[:, 0]] - values[pairs[:, 1]]))
        spread = pair_spread(list(seen), pairs)
        assert spread is not None
        interval = spread.interval(float(seen.mean()))
        hits += interval["low"] <= 1 / np.sqrt(5) <= interval["high"]
    assert hits >= 0.9 * trials
    assert pair_spread([0.1] * 3, random_pairs(3, 9, 0)) is None


def compared(real: list[Hu], generated: list[Hu], **changes: object) -> Comparison:
    def side(volumes: list[Hu]) -> Side:
        names = tuple(map(str, range(len(volumes))))
        return Side(names, np.zeros((len(names), 1), np.float32), {}, read=lambda name: volumes[int(name)])

    values = {"settings": {"ms_ssim": MsSsimSettings(num_pairs=12)}, "size": len(real[0]), "num_subsamples": 5}
    return METRIC.compare(side(real), side(generated), Setting(HounsfieldWindow(), 8.0, **(values | changes)))


def test_samples_that_are_all_alike_have_a_high_one_beside_that_of_real_volumes() -> None:
    real = [smooth(k, (16, 16, 16)) * 2000 - 1000 for k in range(6)]
    alike = [real[0] + np.random.default_rng(k).normal(0, 5, real[0].shape).astype(np.float32) for k in range(6)]
    found = compared(real, alike)
    assert list(found.figures) == ["ms_ssim_3_scales", "ms_ssim_3_scales_real", "ms_ssim_3_scales_gap"]
    drawn, beside, gap = found.figures.values()
    assert drawn.value is not None
    assert beside.value is not None
    assert drawn.value > 0.95 > 0.6 > beside.value
    assert gap.value == pytest.approx(drawn.value - beside.value)
    first = random_pairs(6, 12, 0)[0].tolist()
    pair = [torch.from_numpy(np.clip(real[k] / 1000, -1, 1).astype(np.float32)) for k in first]
    assert found.details["real"]["values"][0] == pytest.approx(ms_ssim(*pair, scales=3), abs=1e-5)
    assert (found.details["num_scales"], found.details["generated"]["num_pairs"]) == (3, 12)
    assert beside.note == "Mean of 12 random pairs."
    assert beside.interval is not None
    assert 0 <= beside.interval["low"] < beside.value < beside.interval["high"] <= 1
    assert compared(real, alike, num_subsamples=0).figures["ms_ssim_3_scales"].interval is None


def test_full_names_are_those_of_the_published_scales_and_tiny_volumes_have_none() -> None:
    volumes = [smooth(k, (48, 48, 48)) * 1000 for k in range(2)]
    figures = compared(volumes, volumes).figures
    assert list(figures) == ["ms_ssim", "ms_ssim_real", "ms_ssim_gap"]
    assert (figures["ms_ssim_gap"].value, figures["ms_ssim_gap"].interval) == (None, None)
    assert figures["ms_ssim_gap"].note.startswith("Fewer than 5 volumes on a side")
    tiny = [np.zeros((4, 4, 4), np.float32)] * 2
    found = compared(tiny, tiny).figures["ms_ssim"]
    assert (found.value, found.note) == (None, "Volumes of 4 voxels have no second scale of 3 voxels.")
    assert set(METRIC.figures) >= {"ms_ssim", "ms_ssim_4_scales_gap", "ms_ssim_2_scales_real"}


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="num_pairs is 0"):
        MsSsimSettings(num_pairs=0)
