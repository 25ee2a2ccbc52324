import numpy as np
import pytest
import torch

from prdit_models.ema import ema_decay, ema_update
from prdit_models.intensity import HounsfieldWindow


def test_decay_warms_up_to_its_ceiling() -> None:
    assert ema_decay(0, 0.9999) == pytest.approx(1 / 10)
    assert ema_decay(90, 0.9999) == pytest.approx(91 / 100)
    assert ema_decay(10**6, 0.9999) == 0.9999
    assert ema_decay(0, 0.9999, warmup=False) == 0.9999
    with pytest.raises(ValueError, match=r"decay is 1\.0"):
        ema_decay(0, 1.0)
    with pytest.raises(ValueError, match="step is -1"):
        ema_decay(-1, 0.9)


def test_warm_average_forgets_its_start() -> None:
    """After 300 steps towards constant weights: Π (1+n)/(10+n) of the start is left, against 97 % by the constant."""
    warm, published, weight = torch.zeros(1), torch.zeros(1), torch.ones(1)
    left = 1.0
    for step in range(300):
        ema_update([warm], [weight], ema_decay(step, 0.9999))
        ema_update([published], [weight], ema_decay(step, 0.9999, warmup=False))
        left *= (1 + step) / (10 + step)
    assert float(warm) == pytest.approx(1 - left, abs=1e-6)
    assert left < 1e-12
    assert float(published) == pytest.approx(1 - 0.9999**300, rel=1e-4)


def test_frozen_weights_stay_bit_for_bit() -> None:
    weight = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    average = weight.clone()
    for _ in range(50):
        ema_update([average], [weight], 0.9999)
    assert torch.equal(average, weight)


def test_sides_must_match() -> None:
    with pytest.raises(ValueError, match="1 tensors cannot follow 2"):
        ema_update([torch.zeros(2)], [torch.zeros(2), torch.zeros(2)], 0.9)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_window_maps_and_saturates(kind: type) -> None:
    hu = (
        kind([-1000, -500, 0, 1000, -1024, 3071]).astype(np.int16)
        if kind is np.array
        else kind([-1000, -500, 0, 1000, -1024, 3071])
    )
    assert HounsfieldWindow().to_model(hu).tolist() == [-1.0, -0.5, 0.0, 1.0, -1.0, 1.0]
    assert HounsfieldWindow(-160, 240).to_model(hu).tolist() == pytest.approx([-1, -1, -0.2, 1, -1, 1])


def test_window_extremes_of_int16_do_not_wrap() -> None:
    assert HounsfieldWindow().to_model(np.array([-32768, 32767], dtype=np.int16)).tolist() == [-1.0, 1.0]


def test_window_back_to_hu_is_not_clipped() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0, 1.5])
    assert HounsfieldWindow().to_hu(x).tolist() == [-1000.0, 0.0, 1000.0, 1500.0]
    inside = torch.arange(-1000, 1001, 7)
    torch.testing.assert_close(
        HounsfieldWindow().to_hu(HounsfieldWindow().to_model(inside)), inside.float(), atol=2e-4, rtol=0
    )


def test_window_must_be_a_window() -> None:
    with pytest.raises(ValueError, match="must lie below"):
        HounsfieldWindow(100, 100)
