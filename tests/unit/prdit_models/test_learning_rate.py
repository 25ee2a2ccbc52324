"""The learning rate's share over a training, against its definition written out."""

import pytest

from prdit_models.learning_rate import decay_factor


def test_constant_then_linear_to_zero() -> None:
    factors = [decay_factor(step, 10, 0.4) for step in range(10)]
    assert factors == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert [decay_factor(step, 4, 1.0) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert {decay_factor(step, 7, 0.0) for step in range(7)} == {1.0}


@pytest.mark.parametrize(("step", "decay"), [(0, 1.5), (0, -0.1), (10, 0.5), (-1, 0.5)])
def test_values_out_of_range_are_refused(step: int, decay: float) -> None:
    with pytest.raises(ValueError, match=r"expected"):
        decay_factor(step, 10, decay)
