"""Properties of ingest: the order of files changes nothing, any orientation keeps HU at their place, stored HU come back."""

import itertools
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tests.corpus.classic import Scan, scan, write
from tests.corpus.member import Place
from tests.corpus.readers import of_volume
from tests.corpus.world import WORLDS, Geometry, World, compare
from tests.factories import small_ingest

WORLD = WORLDS[0]
LIMITS = {"spacing_mm": 6.0, "num_levels": 1, "num_workers": 1, "max_slice_mm": 20.0}
FEW = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Every way in which three axes can be named and turned: 24 that a slice can have as rows, columns and their normal, and 24 whose
# slices run the other way, which is the same stack read backwards.
SIGNED = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1.0, -1.0), repeat=3)
]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    warnings.simplefilter("ignore")


def small(**changes: object) -> Geometry:
    """Ten small slices."""
    return Geometry(spacing_mm=(7.0, 8.0, 6.0), shape=(10, 11, 12)).turned(**changes)


def config() -> IngestConfig:
    """Few small slices are enough."""
    return small_ingest(**LIMITS)


def ingested(made: Scan, order: list[int], names: str = "{:03d}.dcm") -> tuple[str, VolumeStore]:
    """The id of the volume of slices that are written in an order, and its store; both last as long as the process."""
    root = Path(tempfile.mkdtemp(prefix="prdit-property-"))
    for number, k in enumerate(order):
        write(root / "source" / names.format(number), made.slices[k])
    report = ingest(root / "source", root / "store", config())
    (entry,) = report.committed
    assert (report.skipped, report.quarantined) == ([], [])
    return str(entry.volume_id), VolumeStore.open(root / "store")


def place_of(world: World = WORLD) -> Place:
    """Where the scans' UIDs come from."""
    return Place(Path("unused"), world, "property")


@FEW
@given(st.permutations(range(10)), st.sampled_from(["{:d}", "IM{:05d}", "z{:d}.dcm"]))
def test_order_and_names_of_files_change_nothing(order: list[int], names: str) -> None:
    made = scan(place_of(), geometry=small())
    volume_id, store = ingested(made, list(order), names)
    first_id, first = ingested(made, list(range(10)))
    assert volume_id == first_id
    np.testing.assert_array_equal(store.read_level(volume_id).hu, first.read_level(first_id).hu)


@pytest.mark.parametrize(("order", "signs"), SIGNED)
def test_every_signed_permutation_of_the_axes(order: tuple[int, int, int], signs: tuple[float, float, float]) -> None:
    axes = np.zeros((3, 3))
    for k in range(3):
        axes[order[k], k] = signs[k]
    row, column = tuple(axes[:, 0]), tuple(axes[:, 1])
    made = scan(place_of(), geometry=small(row=row, column=column, step=tuple(6.0 * axes[:, 2])))
    volume_id, store = ingested(made, list(range(10)))
    assert compare(store.read_level(volume_id), made.right()).problems == []


@FEW
@given(
    st.tuples(*[st.floats(-25, 25)] * 3),
    st.tuples(*[st.floats(5.0, 9.0)] * 3),
    st.tuples(*[st.floats(-300, 300)] * 3),
)
def test_any_rotation_spacing_and_place(
    angles: tuple[float, float, float], spacing: tuple[float, float, float], centre: tuple[float, float, float]
) -> None:
    turned = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(angles)):
        one = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        turned = one @ turned
    spacing = tuple(round(v, 4) for v in spacing)
    geometry = small(row=tuple(turned[:, 0].round(9)), column=tuple(turned[:, 1].round(9)), spacing_mm=spacing)
    world = World(0, geometry.turned(centre_mm=centre), geometry, "{:d}", shuffled=False)
    made = scan(place_of(world), geometry=geometry.turned(centre_mm=centre))
    volume_id, store = ingested(made, list(range(10)))
    assert compare(store.read_level(volume_id), made.right()).problems == []


@FEW
@given(
    st.sampled_from([1 / 64, 0.05, 1 / 16, 0.1, 0.333]),
    st.floats(-1100, -900),
    st.booleans(),
    st.sampled_from([-1.0, 1.0]),
)
def test_hu_come_back_whatever_they_are_stored_as(slope: float, intercept: float, signed: bool, sign: float) -> None:
    """Slope, intercept and sign of the representation: HU differ by the rounding of what is stored alone."""
    intercept = round(intercept, 3)
    slope, intercept = sign * slope, intercept if sign > 0 else intercept + 2000
    geometry = small()
    made = scan(place_of(), geometry=geometry, slope=slope, intercept=intercept, signed=signed)
    volume_id, store = ingested(made, list(range(10)))
    world = geometry.positions[3:7] + geometry.matrix[:3, :2] @ (6.0, 5.0)
    rounding = 0.5 + abs(slope) / 2  # of the grid's HU, and of what is stored
    np.testing.assert_allclose(of_volume(store.read_level(volume_id), world), WORLD.hu(world), atol=rounding + 0.35)
    assert compare(store.read_level(volume_id), made.right(inside=1.0 + abs(slope))).problems == []
