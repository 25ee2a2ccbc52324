"""The memorisation report on volumes of which some are copies, and on others that are none."""

from functools import lru_cache

import numpy as np
import pytest
from scipy import ndimage

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.memorisation import METRIC, Found, MemorisationSettings, nearest_figures, spread_figures
from prdit_models.metrics.metric import Comparison, Hu, Setting, Side
from prdit_models.metrics.neighbours import Neighbour
from tests.phantoms import phantom_box

SIZE = 32
NUM_TRAINING, NUM_HELD_OUT = 8, 4


@lru_cache
def phantom(patient: int) -> Hu:
    """A phantom patient in a box of 256 mm, 32³ voxels, saturated to the window."""
    return phantom_box(patient, SIZE)


def setting(**changes: object) -> Setting:
    values = {
        "window": HounsfieldWindow(),
        "voxel_mm": 8.0,
        "size": SIZE,
        "trained_on_split": True,
        "settings": {"memorisation": MemorisationSettings(num_closest=3)},
    }
    return Setting(**(values | changes))


def side(volumes: dict[str, Hu], roles: tuple[str, ...] = ()) -> Side:
    """What the evaluation keeps of volumes; features that say nothing."""
    kept = [METRIC.of_volume(hu, setting()) for hu in volumes.values()]
    return Side(
        tuple(volumes), np.ones((len(volumes), 2), np.float32), {"memorisation": kept}, roles, volumes.__getitem__
    )


def compared(generated: dict[str, Hu], **changes: object) -> Comparison:
    real = {f"v{k}": phantom(k) for k in range(NUM_TRAINING + NUM_HELD_OUT)}
    roles = ("train",) * NUM_TRAINING + ("val",) * NUM_HELD_OUT
    return METRIC.compare(side(real, roles), side(generated), setting(**changes))


def copy_of(patient: int, shift: tuple[int, int, int], seed: int) -> Hu:
    """What a model draws that has memorised a patient: moved as training boxes are, softer, with noise of its own."""
    soft = ndimage.gaussian_filter(np.roll(phantom(patient), shift, (0, 1, 2)), 0.4)
    return np.clip(soft + np.random.default_rng(seed).normal(0, 20, soft.shape), -1000, 1000).astype(np.float32)


def test_a_model_that_has_memorised_two_patients_is_said_to_copy_them() -> None:
    shifts = [(0, 0, 0), (2, -1, 0), (-2, 2, 1), (1, 0, -2)]
    generated = {f"s{k}": copy_of((1, 6)[k % 2], shifts[k], k) for k in range(4)} | {"s4": phantom(20)}
    found = compared(generated, num_subsamples=10)
    figures, details = found.figures, found.details
    assert figures["copy_rate"].value == pytest.approx(4 / 5)
    assert figures["copy_rate_held_out"].value == 0.0
    assert figures["copy_rate"].interval is not None
    assert found.warnings[0].startswith("Samples may be copies: 4 of 5 are nearer than ")
    assert "2 of 8 training volumes are repeated so" in found.warnings[0]
    assert details["repeated"] == {"v1": 2, "v6": 2}
    nearest = details["nearest_training"]
    assert [nearest[f"s{k}"]["volume_id"] for k in range(4)] == ["v1", "v6", "v1", "v6"]
    assert [tuple(nearest[f"s{k}"]["shift"]) for k in range(4)] == shifts
    assert [row["copy"] for row in details["closest"]] == [True] * 3
    distances = [row["distance_hu"] for row in details["closest"]]
    assert distances == sorted(distances)
    assert figures["nearest_training_distance_min"].value == distances[0]
    assert len(details["distances_hu"]["held_out"]) == NUM_HELD_OUT


def test_patients_of_their_own_and_blurred_ones_are_not_called_copies() -> None:
    generated = {f"s{k}": phantom(30 + k) for k in range(4)}
    for volumes in (generated, {name: ndimage.gaussian_filter(hu, 1.0) for name, hu in generated.items()}):
        found = compared(volumes)
        assert found.figures["copy_rate"].value == 0.0
        assert found.warnings == ()
        assert found.details["repeated"] == {}
    mean = np.mean([phantom(k) for k in range(NUM_TRAINING)], axis=0)
    assert compared({"s0": mean, "s1": mean}).figures["copy_rate"].value == 0.0  # alike, but copies of no one


def test_mirrored_copies_are_found_where_asked() -> None:
    generated = {"s0": phantom(2)[..., ::-1].copy(), "s1": phantom(30)}
    assert compared(generated).figures["copy_rate"].value == 0.0
    both = {"memorisation": MemorisationSettings(mirrored=True)}
    found = compared(generated, settings=both)
    assert found.figures["copy_rate"].value == 0.5
    row = found.details["closest"][0]
    assert (row["training"], row["distance_hu"], row["mirrored"]) == ("v2", 0.0, True)


def test_without_the_training_volumes_or_held_out_ones_there_is_no_rate() -> None:
    found = compared({"s0": phantom(1), "s1": phantom(2)}, trained_on_split=False)
    assert set(found.figures) == {"pairwise_distance", "pairwise_distance_real"}
    assert "was not trained on this split" in found.details["left_out"]
    alone = METRIC.compare(
        side({"v0": phantom(0), "v1": phantom(1)}, ("train", "train")),
        side({"s0": phantom(0), "s1": phantom(2)}),
        setting(),
    )
    assert alone.figures["copy_rate"].value is None
    assert "No held-out volumes" in alone.figures["copy_rate"].note
    assert alone.figures["nearest_training_distance_min"].value == 0.0
    assert alone.details["closest"][0] == {
        "generated": "s0", "training": "v0", "distance_hu": 0.0, "shift": [0, 0, 0], "mirrored": False, "copy": False,
    }  # fmt: skip


def test_medians_threshold_and_warning_are_those_of_the_distances() -> None:
    def at(*distances: float) -> list[Neighbour]:
        return [Neighbour(f"v{k}", each, (0, 0, 0)) for k, each in enumerate(distances)]

    found = Found(at(10.0, 30.0, 80.0), at(50.0, 90.0), 3, 0.5)
    values = {name: figure.value for name, figure in nearest_figures(found).items()}
    assert values == {
        "nearest_training_distance": 30.0,
        "nearest_training_distance_min": 10.0,
        "nearest_training_distance_held_out": 70.0,
        "copy_rate": pytest.approx(2 / 3),
        "copy_rate_held_out": 0.0,
    }
    assert found.threshold_hu == 35.0
    assert "Only 2: a rough scale" in nearest_figures(found)["nearest_training_distance_held_out"].note
    assert "2 of 3 are nearer than 35 HU" in found.warning
    assert Found(at(10.0, 80.0), at(20.0, 90.0), 3, 0.5).warning == ""  # held-out volumes as often
    assert Found(at(35.0, 80.0), at(50.0, 90.0), 3, 0.5).warning == ""
    assert Found(at(0.0), [], 3, 0.5).warning == ""  # nothing to compare with


def test_spread_is_the_median_distance_of_two_volumes_of_a_side() -> None:
    flat = [np.full((2, 2, 2), value, dtype=np.float16) for value in (0.0, 10.0, 40.0)]
    figures = spread_figures(flat, [flat[1]] * 3)
    assert figures["pairwise_distance_real"].value == pytest.approx(30.0)  # of 10, 30, 40
    assert figures["pairwise_distance"].value == pytest.approx(0.0, abs=1e-3)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"copy_ratio 1\.5"):
        MemorisationSettings(copy_ratio=1.5)
    with pytest.raises(ValueError, match="num_candidates is 0"):
        MemorisationSettings(num_candidates=0)
