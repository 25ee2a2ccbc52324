"""The nearest volume of a set, against volumes whose distances are known."""

import numpy as np
import pytest

from prdit_models.metrics.copies import nearest

RNG = np.random.default_rng(3)
REFERENCES = RNG.normal(0, 100, (4, 8, 8, 8)).astype(np.float32)


def test_distance_is_the_root_mean_square_to_the_nearest() -> None:
    distance, index = nearest(REFERENCES[2] + 5, REFERENCES)
    assert (distance, index) == (pytest.approx(5, abs=1e-4), 2)
    by_hand = [np.sqrt(((REFERENCES[0] - reference.astype(np.float64)) ** 2).mean()) for reference in REFERENCES[1:]]
    distance, index = nearest(REFERENCES[0], REFERENCES[1:])
    assert distance == pytest.approx(min(by_hand), rel=1e-5)
    assert index == int(np.argmin(by_hand))


def test_a_moved_copy_is_found_only_within_the_shifts_tried() -> None:
    moved = np.roll(REFERENCES[1], (2, -1, 0), axis=(0, 1, 2))
    assert nearest(moved, REFERENCES, max_shift=2)[0] == pytest.approx(0, abs=1e-4)
    assert nearest(moved, REFERENCES, max_shift=2)[1] == 1
    assert nearest(moved, REFERENCES, max_shift=1)[0] > 50


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(D, H, W\)"):
        nearest(REFERENCES[0], REFERENCES[:, :4])
    with pytest.raises(ValueError, match=r"n >= 1"):
        nearest(REFERENCES[0], REFERENCES[:0])
    with pytest.raises(ValueError, match=r"expected 0 to 7"):
        nearest(REFERENCES[0], REFERENCES, max_shift=8)
