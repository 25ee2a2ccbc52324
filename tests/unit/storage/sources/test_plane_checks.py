"""Single planes that are not of their scan: holes of a copy, values impossible beside the neighbours'."""

import numpy as np
import pytest

from storage.errors import UnusableSeriesError
from storage.geometry import FILL_HU
from storage.sources.plane_checks import check_each_plane
from storage.sources.plausible import recognise_fill
from storage.sources.source import Limits

Y, X = np.mgrid[:64, :64]
LUNG = (Y - 32) ** 2 + (X - 32) ** 2 < 20**2
CHEST = np.where(LUNG, -850, 40).astype(np.int32) + np.random.default_rng(0).integers(-60, 60, (64, 64))
LIVER = np.where(LUNG, 60, 40).astype(np.int32) + np.random.default_rng(1).integers(-60, 60, (64, 64))
FIVE_PERCENT = np.where((Y < 14) & (X < 14), -850, LIVER)
HOLE = np.full((64, 64), -1024, dtype=np.int32)


def check(*planes: np.ndarray, ends_in_fill: bool = False) -> tuple[str, ...]:
    counts = [recognise_fill(plane, Limits())[1] for plane in planes]
    hu = np.stack(planes)
    before = hu.copy()
    notes = check_each_plane(
        hu, counts, lambda k: (f"Scan x, file f{k}", f"f{k}"), lambda k: ends_in_fill and not counts[k].num_tissue
    )
    changed = [k for k in range(len(hu)) if (hu[k] != before[k]).any()]
    assert [np.unique(hu[k]).tolist() for k in changed] == [[FILL_HU]] * len(changed)
    assert notes == (
        (f"nothing but air in {len(changed)} of {len(hu)} slices, at the ends of the scan",) if changed else ()
    )
    return notes


def refusal(*planes: np.ndarray, ends_in_fill: bool = False) -> tuple[str, str | None]:
    with pytest.raises(UnusableSeriesError) as caught:
        check(*planes, ends_in_fill=ends_in_fill)
    return caught.value.reason, caught.value.file


HIGH = {
    "intercept of 30000": CHEST + 31024,
    "intercept of 8000": CHEST + 9024,
    "intercept of 500": CHEST + 1524,
    "slope of 1000": (CHEST + 1100) * 1000,
    "half of it beyond": CHEST + 30700,
    "negative values read as unsigned": np.where(CHEST < 0, CHEST + 65536, CHEST),
}


@pytest.mark.parametrize("name", HIGH)
@pytest.mark.parametrize("at", [0, 3, 5])
def test_one_plane_too_high(name: str, at: int) -> None:
    planes = [CHEST] * 6
    planes[at] = HIGH[name]
    assert refusal(*planes) == ("impossible_hu", f"f{at}")


def test_a_plane_with_its_bytes_in_the_wrong_order() -> None:
    swapped = (CHEST + 1024).astype(np.uint16).byteswap().astype(np.int32) - 1024
    for at in (0, 3, 5):
        planes = [CHEST] * 6
        planes[at] = swapped
        assert refusal(*planes) == ("impossible_hu", f"f{at}")


NOISE = np.random.default_rng(2).integers(-1024, 3072, (64, 64), dtype=np.int32)


def test_planes_of_noise() -> None:
    """Bytes in the wrong order, of which 12 bits are kept; decoded from a wrong place, wholly or from some row on."""
    stored = (CHEST + 1024).astype(np.uint16)
    swapped = (stored.byteswap() & 0xFFF).astype(np.int32) - 1024
    aside = np.frombuffer(stored.tobytes()[1:] + b"\0", np.uint16).reshape(stored.shape).astype(np.int32) % 4096 - 1024
    for noise in (NOISE, swapped, aside):
        for at in (0, 3, 5):
            planes = [CHEST] * 6
            planes[at] = noise
            assert refusal(*planes) == ("impossible_hu", f"f{at}")
    assert refusal(CHEST, CHEST, NOISE, NOISE[::-1], CHEST, CHEST) == ("impossible_hu", "f2")
    assert refusal(CHEST, CHEST, np.where(Y > 40, NOISE, CHEST), CHEST) == ("impossible_hu", "f2")
    check(*[NOISE] * 6)  # as with all planes that are alike, others judge the whole
    sharp = CHEST + np.random.default_rng(3).normal(0, 250, (6, 64, 64)).astype(np.int32)
    check(*sharp)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_planes_of_elsewhere(number: int) -> None:
    """Upside down, moved aside, or of another place, between planes that are like each other."""
    upper = np.where((Y - 20) ** 2 + (X - 32) ** 2 < 18**2, -850, LIVER)
    for foreign in (upper[::-1], np.roll(upper, 20, 1), LIVER):
        planes = [upper] * 3 + [foreign] * number + [upper] * 3
        assert refusal(*planes) == ("impossible_hu", "f3")
    check(*[upper] * 3, *[upper[::-1]] * 3)  # what follows, and stays
    check(*[np.roll(upper, 3 * k, 1) for k in range(8)])


@pytest.mark.parametrize("value", [-1024, FILL_HU, 0])
def test_a_plane_that_was_cut_short(value: int) -> None:
    cut = CHEST.copy()
    cut[48:] = value
    assert refusal(CHEST, CHEST, cut, CHEST) == ("no_content", "f2")
    cut[:58] = CHEST[:58]
    check(CHEST, CHEST, cut, CHEST)
    fill_below = np.where(Y > 40, value, CHEST)
    check(*[fill_below] * 4)


def test_planes_too_high_and_too_low_in_a_row() -> None:
    assert refusal(CHEST, CHEST, CHEST + 3000, CHEST + 3000, CHEST) == ("impossible_hu", "f2")
    low = np.where(LUNG, -1020, -900) + X % 2
    assert refusal(CHEST, low, low, CHEST) == ("impossible_hu", "f1")
    check(CHEST, CHEST, low)  # what lies beyond a phantom's end


@pytest.mark.parametrize("at", [0, 2, 5])
def test_one_plane_of_disjoint_values_without_air_anywhere(at: int) -> None:
    planes = [LIVER] * 6
    planes[at] = LIVER + 5000
    assert refusal(*planes) == ("impossible_hu", f"f{at}")
    assert refusal(*[LIVER + 5000 if k >= 4 else LIVER for k in range(6)]) == ("impossible_hu", "f4")
    check(*[LIVER + 50 * k for k in range(6)])


def test_what_a_patient_has() -> None:
    check(CHEST, CHEST, FIVE_PERCENT, LIVER, LIVER)  # a narrow field of view below the lungs
    check(LIVER, FIVE_PERCENT, CHEST)
    metal = CHEST.copy()
    metal[30, 30:40] = 32000
    check(CHEST, metal, CHEST)


@pytest.mark.parametrize("value", [-1024, -1000, -2000, 0, 40, 3071, 40000, FILL_HU])
@pytest.mark.parametrize("at", [(0,), (5,), (2, 3), (0, 1, 2, 3, 4)])
def test_planes_of_one_value_among_others(value: int, at: tuple[int, ...]) -> None:
    planes = [np.full_like(HOLE, value) if k in at else CHEST for k in range(6)]
    if value in (-1024, -1000) and at != (2, 3):
        assert check(*planes) == (f"nothing but air in {len(at)} of 6 slices, at the ends of the scan",)
    else:
        assert refusal(*planes) == ("no_content", f"f{at[0]}")


def test_planes_of_fill_at_the_ends_of_a_resampled_scan() -> None:
    fill = np.full_like(HOLE, FILL_HU)
    check(HOLE, HOLE, CHEST, CHEST, fill, ends_in_fill=True)
    assert refusal(HOLE, CHEST, HOLE, CHEST, fill, ends_in_fill=True) == ("no_content", "f2")
    assert refusal(HOLE * 0, CHEST, CHEST, ends_in_fill=True) == ("no_content", "f0")


def test_planes_of_air_beside_hardly_any_tissue() -> None:
    few = np.where((Y < 12) & (X < 12), 500, -1000)
    check(HOLE, few, HOLE, few, HOLE)
    assert refusal(few, HOLE * 0, few) == ("no_content", "f1")
    assert refusal(few, HOLE, CHEST) == ("no_content", "f1")


def test_a_mask_is_judged_as_a_whole() -> None:
    check(HOLE * 0, LUNG.astype(np.int32), LUNG.astype(np.int32), HOLE * 0)
    assert refusal(LUNG.astype(np.int32), HOLE, LUNG.astype(np.int32)) == ("no_content", "f1")


def test_scans_of_constant_planes_alone_are_judged_as_a_whole() -> None:
    check(*[HOLE + 100 * k for k in range(6)])
