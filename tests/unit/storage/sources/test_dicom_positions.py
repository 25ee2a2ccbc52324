"""Where slices lie: even, rounded, uneven within the limit, gaps, changes of distance; every limit is stated."""

import numpy as np
import pytest

from storage.errors import UnusableSeriesError
from storage.sources.dicom_positions import Line, fit_line
from storage.verdicts import counted

JITTER = 0.1  # of the slice distance
Z = np.array([0.0, 0.0, 1.0])


def line(
    z_mm: np.ndarray, *, unit: float = 1e-6, aside: np.ndarray | None = None, tilt: float = 0.0, x_mm: float = -30.0
) -> Line:
    """Slices at depths, shifted along y by `tilt` × depth and by `aside`."""
    y = tilt * z_mm + (0 if aside is None else aside)
    positions = np.stack([np.full_like(z_mm, x_mm), y, z_mm], axis=1)
    return fit_line(positions, Z, [(unit,) * 3] * len(z_mm), JITTER, "Series 1")


def refused(z_mm: np.ndarray, **how: object) -> tuple[str, str]:
    with pytest.raises(UnusableSeriesError) as error:
        line(z_mm, **how)  # type: ignore[arg-type]
    return error.value.reason, str(error.value)


def test_even_slices_keep_their_exact_step() -> None:
    found = line(-17.25 + 2.5 * np.arange(24))
    assert found.slice_mm is None
    assert found.note == ""
    assert found.step_mm.tolist() == [0, 0, 2.5]
    assert found.origin_mm.tolist() == [-30, 0, -17.25]


@pytest.mark.parametrize(
    ("step", "digits", "num"),
    [
        (0.75, 1, 24),
        (0.625, 1, 300),
        (1.25, 1, 64),
        (2.5, 0, 40),
        (7.25, 0, 24),
        (0.3333, 3, 50),
        (1.25, 0, 160),
        (1.5, 0, 40),
    ],
)
def test_rounded_positions_give_the_mean_step(step: float, digits: int, num: int) -> None:
    """Half a unit of the last digit from a line: the step is right to that half unit over the length, each slice to a unit."""
    true = -100.03 + step * np.arange(num)
    found = line(np.round(true, digits), unit=10.0**-digits)
    assert found.slice_mm is None
    unit = 10.0**-digits
    assert found.step_mm[2] == pytest.approx(step, abs=2 * unit / num)
    assert np.abs(found.origin_mm[2] + found.step_mm[2] * np.arange(num) - true).max() <= unit


def test_whole_millimetres_may_be_written_with_a_zero() -> None:
    found = line(np.round(-81.1 + 1.25 * np.arange(130)), unit=0.1)  # "-81.0"
    assert found.slice_mm is None
    assert found.step_mm[2] == pytest.approx(1.25, abs=0.02)


def test_rounding_of_a_tilted_series_is_of_each_coordinate() -> None:
    true = 1.25 * np.arange(60)
    found = line(np.round(true, 1), unit=0.1, tilt=0.3, aside=np.round(0.3 * true, 1) - 0.3 * np.round(true, 1))
    assert found.step_mm[1:] == pytest.approx([0.375, 1.25], abs=2e-3)
    assert "0.1 mm" in found.note


@pytest.mark.parametrize("missing", [(9,), (9, 30), (13, 14)])
def test_a_unit_as_large_as_the_step_excuses_no_missing_slice(missing: tuple[int, ...]) -> None:
    assert refused(np.delete(1.0 * np.arange(40), missing), unit=1.0)[0] == "missing_slices"


def test_a_unit_as_large_as_the_step_excuses_no_other_distance() -> None:
    assert refused(np.cumsum([0.0] + [1.0] * 30 + [2.0] * 30), unit=1.0)[0] == "inconsistent_spacing"


@pytest.mark.parametrize("off", [1.0, -1.0])
def test_one_slice_that_is_off_by_a_unit_is_not_rounded(off: float) -> None:
    """Half a unit from an even line, but all others are on one."""
    z = 2.0 * np.arange(40)
    z[17] += off
    assert refused(z, unit=1.0)[0] in ("inconsistent_spacing", "missing_slices")


def test_a_line_of_halves_is_rounded_up_and_down() -> None:
    true = 0.5 + 3.0 * np.arange(30)
    found = line(np.round(true), unit=1.0)  # to even digits
    assert found.slice_mm is None
    assert np.abs(found.origin_mm[2] + found.step_mm[2] * np.arange(30) - true).max() < 0.1


@pytest.mark.parametrize("share", [0.02, 0.05, 0.09])
def test_jitter_within_the_limit_is_kept(share: float) -> None:
    chance = np.random.default_rng(int(100 * share))
    z = 3.0 * (np.arange(30) + chance.uniform(-share, share, 30))
    found = line(z)
    assert found.slice_mm is not None
    assert found.origin_mm[2] + np.asarray(found.slice_mm) == pytest.approx(z, abs=1e-9)
    assert np.linalg.norm(found.step_mm) == pytest.approx((z[-1] - z[0]) / 29)
    assert "from even positions" in found.note


def test_jitter_of_a_tilted_series_is_along_the_step() -> None:
    z = 3.0 * np.arange(20)
    z[7] += 0.25
    found = line(z, tilt=np.tan(np.deg2rad(18)))
    assert found.slice_mm is not None
    direction = found.step_mm / np.linalg.norm(found.step_mm)
    assert direction == pytest.approx([0, np.sin(np.deg2rad(18)), np.cos(np.deg2rad(18))], abs=1e-6)
    places = found.origin_mm + np.asarray(found.slice_mm)[:, None] * direction
    assert places[7] == pytest.approx([-30, z[7] * np.tan(np.deg2rad(18)), z[7]], abs=1e-6)


def test_less_than_a_hundredth_of_a_millimetre_is_even() -> None:
    z = 1.0 * np.arange(20)
    z[3] += 0.015  # half of it from the nearest even positions
    assert line(z).slice_mm is None


@pytest.mark.parametrize("share", [0.15, -0.15, 0.2, -0.2, 0.4])
def test_more_jitter_than_the_limit_is_refused(share: float) -> None:
    """By its name, whichever of the two distances is the more frequent."""
    z = 2.5 * (np.arange(24) + share * (-1.0) ** np.arange(24))
    reason, message = refused(z)
    assert reason == "inconsistent_spacing"
    assert "ingest.max_jitter = 0.1" in message
    assert "issing" not in message


@pytest.mark.parametrize("missing", [(9,), (9, 10, 11), (1,), (22,), (5, 17, 18)])
def test_gaps_are_missing_slices(missing: tuple[int, ...]) -> None:
    reason, message = refused(np.delete(2.5 * np.arange(24), missing))
    assert reason == "missing_slices"
    assert f"about {counted(len(missing), 'slice')} missing" in message


@pytest.mark.parametrize(
    "steps",
    [
        [3.0] * 12 + [6.0] * 12,
        [6.0] * 12 + [3.0] * 12,
        [3.0] * 20 + [6.0] * 4,
        [8.0] * 8 + [5.0] * 16 + [8.0] * 8,
        [6.0] * 9 + [8.0] * 9,
    ],
)
def test_another_distance_is_no_gap(steps: list[float]) -> None:
    reason, message = refused(np.cumsum([0.0, *steps]))
    assert reason == "inconsistent_spacing"
    assert "etch the missing" not in message


def test_slices_beside_the_line_are_refused() -> None:
    aside = np.zeros(20)
    aside[[4, 11]] = 0.6  # the limit is 0.1 × 2.5 mm
    assert refused(2.5 * np.arange(20), aside=aside)[0] == "inconsistent_position"
    aside[[4, 11]] = 0.2
    found = line(2.5 * np.arange(20), aside=aside)
    assert found.slice_mm is None
    assert "beside a straight line" in found.note
