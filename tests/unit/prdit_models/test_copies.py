"""The nearest volume of a set, against volumes whose distances are known."""

import numpy as np
import pytest

from prdit_models.metrics.copies import nearest, pairwise

RNG = np.random.default_rng(3)
REFERENCES = RNG.normal(-500, 300, (4, 8, 8, 8)).astype(np.float32)


def rms(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt(((first.astype(np.float64) - second) ** 2).mean()))


def test_distance_is_the_root_mean_square_to_the_nearest() -> None:
    distances, indices = nearest(np.stack([REFERENCES[2] + 5, REFERENCES[0]]), REFERENCES[1:])
    by_hand = [rms(REFERENCES[0], reference) for reference in REFERENCES[1:]]
    assert distances == pytest.approx([5, min(by_hand)], rel=1e-5)
    assert indices.tolist() == [1, int(np.argmin(by_hand))]


def test_a_moved_copy_is_found_only_within_the_shifts_tried() -> None:
    moved = np.roll(REFERENCES[1], (2, -1, 0), axis=(0, 1, 2))[None]
    distances, indices = nearest(moved, REFERENCES, max_shift=2)
    assert (distances[0], indices[0]) == (0.0, 1)
    assert nearest(moved, REFERENCES, max_shift=1)[0][0] > 50


def test_pairs_are_those_of_the_root_mean_square() -> None:
    expected = [rms(REFERENCES[i], REFERENCES[j]) for i in range(4) for j in range(i + 1, 4)]
    assert pairwise(REFERENCES) == pytest.approx(expected, rel=1e-5)
    assert pairwise(np.stack([REFERENCES[0]] * 2))[0] == pytest.approx(0, abs=0.5)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(n, D, H, W\)"):
        nearest(REFERENCES[:1], REFERENCES[:, :4])
    with pytest.raises(ValueError, match=r"m >= 1"):
        nearest(REFERENCES[:1], REFERENCES[:0])
    with pytest.raises(ValueError, match=r"expected 0 to 7"):
        nearest(REFERENCES[:1], REFERENCES, max_shift=8)
