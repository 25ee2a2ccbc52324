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


def test_an_unknown_mapping_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'histogram' is unknown.*published-lidc"):
        HounsfieldWindow.of_mapping(-1000, 1000, "histogram")


def test_published_mappings_are_nominal_windows_both_ways() -> None:
    """HU of a sample come through the nominal window: [0, 1] for RAD, [-1, 1] for LIDC."""
    x = torch.tensor([0.0, 0.5, 1.0])
    assert HounsfieldWindow.of_mapping(-1000, 1000, "published-rad").to_hu(x).tolist() == [-1000.0, 0.0, 1000.0]
    lidc = HounsfieldWindow.of_mapping(-1000, 1400, "published-lidc")
    assert lidc.to_hu(x).tolist() == [200.0, 800.0, 1400.0]
    assert lidc.to_model(torch.tensor([200.0, 5000.0])).tolist() == [0.0, 1.0]


def test_a_scan_scaled_by_itself() -> None:
    """Eight values 0, 100 … 700: quantile 0.999 of them is 699.3, and it becomes the upper end."""
    scan = torch.arange(0, 800, 100).reshape(2, 2, 2)
    lidc = HounsfieldWindow.of_mapping(-1000, 1000, "published-lidc")
    expected = [2 * min(v, 699.3) / 699.3 - 1 for v in range(0, 800, 100)]
    assert lidc.of_scan(scan, 2).flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert float(lidc.of_scan(scan, 1)) == pytest.approx(sum(expected) / 8, abs=1e-6)
    rad = HounsfieldWindow.of_mapping(-1000, 500, "published-rad")
    assert rad.of_scan(scan, 2).flatten().tolist() == pytest.approx([min(v, 500) / 500 for v in range(0, 800, 100)])
    window = HounsfieldWindow().of_scan(scan, 1)
    assert float(window) == pytest.approx(0.35)


def test_a_scan_of_one_value_becomes_the_lower_end() -> None:
    for mapping, lower in (("published-lidc", -1.0), ("published-rad", 0.0)):
        air = HounsfieldWindow.of_mapping(-1000, 1000, mapping).of_scan(torch.full((4, 4, 4), -1024), 2)
        assert air.unique().tolist() == [lower]


def test_a_view_must_be_a_cube_the_size_divides() -> None:
    for shape, size in (((4, 4, 2), 2), ((4, 4, 4), 3), ((4, 4, 4), 0)):
        with pytest.raises(ValueError, match=r"cannot be brought to size"):
            HounsfieldWindow().of_scan(torch.zeros(shape), size)
