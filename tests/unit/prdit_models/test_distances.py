"""KID and nearest-neighbour figures by their definitions, figures from pairs, sides, names and notes."""

import numpy as np
import pytest

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.distances import FeatureDistance
from prdit_models.metrics.kid import kernel_inception_distance
from prdit_models.metrics.metric import METRICS, Comparison, Setting, Side
from prdit_models.metrics.mmd import maximum_mean_discrepancy
from prdit_models.metrics.prdc import NeighbourSettings, precision_recall_density_coverage

ROWS = ("fid", "kid", "mmd", "prdc")
BASE = {"fid", "kid", "mmd", "mmd_unbiased", "precision", "recall", "density", "coverage"}


def sets(n: int, m: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(2.0, 1.0, size=(n, d)), rng.normal(2.2, 1.2, size=(m, d))


def metric(row: str) -> FeatureDistance:
    found = METRICS[row]
    assert isinstance(found, FeatureDistance)
    return found


def side(features: np.ndarray, num_held_out: int = 0) -> Side:
    roles = ("train",) * (len(features) - num_held_out) + ("val",) * num_held_out
    return Side(tuple(map(str, range(len(features)))), features, {}, roles)


def compared(row: str, real: Side, generated: Side, **changes: object) -> Comparison:
    values = {"window": HounsfieldWindow(-1000, 1000), "voxel_mm": 1.0, "size": 8, "features": "sha256:0"} | changes
    return METRICS[row].compare(real, generated, Setting(**values))


def test_kid_by_the_definition() -> None:
    real, generated = sets(7, 5, 3)

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        values = [
            (float(u @ v) / 3 + 1) ** 3 for i, u in enumerate(a) for j, v in enumerate(b) if not (same and i == j)
        ]
        return float(np.mean(values))

    by_hand = mean(real, real, True) + mean(generated, generated, True) - 2 * mean(real, generated, False)
    assert kernel_inception_distance(real, generated) == pytest.approx(by_hand, rel=1e-12)


def test_unbiased_mmd_by_the_definition() -> None:
    real, generated = sets(7, 5, 3)
    result = maximum_mean_discrepancy(real, generated)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-result.gamma * ((a[:, None] - b[None]) ** 2).sum(-1))

    within = [kernel(x, x)[~np.eye(len(x), dtype=bool)].mean() for x in (real, generated)]
    assert result.unbiased == pytest.approx(sum(within) - 2 * kernel(real, generated).mean(), rel=1e-9)


@pytest.mark.parametrize("k", [1, 3])
def test_neighbour_figures_by_the_definition(k: int) -> None:
    real, generated = sets(12, 9, 2)

    def distance(u: np.ndarray, v: np.ndarray) -> float:
        return float(np.linalg.norm(u - v))

    def reach(a: np.ndarray) -> list[float]:
        return [sorted(distance(u, v) for v in a)[k] for u in a]

    balls, other = reach(real), reach(generated)
    inside = np.array([[distance(u, v) <= r for v in generated] for u, r in zip(real, balls, strict=True)])
    expected = {
        "precision": inside.any(0).mean(),
        "recall": np.mean([any(distance(u, v) <= r for v, r in zip(generated, other, strict=True)) for u in real]),
        "density": inside.sum() / (k * 9),
        "coverage": inside.any(1).mean(),
    }
    assert 0 < expected["precision"] < 1
    assert precision_recall_density_coverage(real, generated, k) == pytest.approx(expected)


def test_neighbour_figures_of_known_sets() -> None:
    line = np.arange(10.0)[:, None]
    found = precision_recall_density_coverage(line, line, 1)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)
    assert set(precision_recall_density_coverage(line, line + 100, 1).values()) == {0.0}
    within = precision_recall_density_coverage(line, 4.4 + 0.01 * line, 1)  # all between the volumes at 4 and at 5
    assert within == {"precision": 1.0, "recall": 0.0, "density": 2.0, "coverage": 0.2}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(("n", "m", "d"), [(20, 15, 200), (30, 40, 6)])
def test_figures_from_pairs_equal_those_from_features(row: str, n: int, m: int, d: int) -> None:
    real, generated = sets(n, m, d)
    of, own = metric(row), metric(row).settings()
    rows, columns = np.arange(3, n), np.arange(m - 2)
    part = of.of_pairs(of.pairs(real, generated).part(rows, columns), own)
    assert part == pytest.approx(of.values(real[rows], generated[columns], own), rel=1e-9)


def test_names_say_side_and_random_features() -> None:
    real, generated = sets(20, 16, 4)
    figures = {}
    for row in ROWS:
        found = compared(row, side(real, 12), side(generated)).figures
        assert not found.keys() & figures.keys()
        assert found.keys() <= metric(row).figures.keys()
        figures |= found
    suffix = "_random_features"
    assert figures.keys() == {name + val + suffix for name in BASE for val in ("", "_val")}
    assert {(f.n_real, f.n_generated) for name, f in figures.items() if "_val" in name} == {(12, 16)}
    only = compared("fid", side(real, 1), side(generated), random_features=False).figures
    assert list(only) == ["fid"]
    assert only["fid"].value == metric("fid").values(real, generated, None)["fid"]


def test_too_few_volumes_are_a_note() -> None:
    real, generated = sets(14, 14, 4)
    options = {"random_features": False, "num_subsamples": 10}
    few = compared("fid", side(real[:4]), side(generated), **options).figures["fid"]
    assert (few.interval, few.note) == (None, "Only 4 volumes on a side: too few for an interval, biased by so few.")
    some = compared("kid", side(real), side(generated), **options).figures["kid"]
    assert some.interval is not None
    assert some.note == "14 volumes on the smaller side: compare only with runs of the same n."
    two = compared("mmd", side(real[:2]), side(generated), **options).figures
    assert {figure.value for figure in two.values()} == {None}
    assert "bandwidth is undefined" in two["mmd_unbiased"].note
    below = compared("prdc", side(real[:5]), side(generated), **options).figures["recall"]
    assert below.value is None
    assert below.note.startswith("A side has 5 volumes; the distance to neighbour 5 needs at least 6.")
    assert compared("prdc", side(real[:11]), side(generated), **options).figures["recall"].interval is None
    assert compared("prdc", side(real[:12]), side(generated), **options).figures["recall"].interval is not None


def test_duplicates_give_a_value_without_an_interval() -> None:
    real, generated = sets(8, 8, 4)
    real[1:5] = real[0]  # half of the pairs are apart, but not in every subsample
    figure = compared("mmd", side(real), side(generated), num_subsamples=30, random_features=False).figures["mmd"]
    assert figure.value is not None
    assert figure.interval is None
    assert figure.note.startswith("No interval: The median squared distance of 4 real volumes is 0")


def test_references_have_no_intervals_and_settings_are_read() -> None:
    real, generated = sets(16, 16, 4)
    options = {"random_features": False, "num_subsamples": 10}
    assert compared("fid", side(real), side(generated), reference=True, **options).figures["fid"].interval is None
    settings = {"prdc": NeighbourSettings(1)}
    found = compared("prdc", side(real), side(generated), settings=settings, **options).figures
    assert {name: figure.value for name, figure in found.items()} == precision_recall_density_coverage(
        real, generated, 1
    )
    with pytest.raises(ValueError, match="nearest is 0"):
        NeighbourSettings(0)


def test_volumes_that_are_not_finite_are_refused() -> None:
    real, generated = sets(6, 6, 4)
    generated[2, 1] = np.inf
    for row in ROWS:
        with pytest.raises(ValueError, match=r"generated features of 1 volume\(s\) are not finite"):
            compared(row, side(real), side(generated))
