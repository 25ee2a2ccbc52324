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
from tasks.run.runners import Local
from tests.corpus.classic import Scan, save, scan, write
from tests.corpus.member import Place
from tests.corpus.readers import of_volume
from tests.corpus.world import WORLDS, Geometry, Hu, World, compare
from tests.factories import small_ingest

WORLD = WORLDS[0]
LIMITS = {"spacing_mm": 6.0, "num_levels": 1, "max_slice_mm": 20.0}
FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Every way in which three axes can be named and turned: 24 that a slice can have as rows, columns and their normal, and 24 whose
# slices run the other way, which is the same stack read backwards.
SIGNED = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1.0, -1.0), repeat=3)
]


_root = ""


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.property.test_ingest._root", str(tmp_path))
    caplog.set_level(logging.CRITICAL)
    warnings.simplefilter("ignore")


def small(**changes: object) -> Geometry:
    """Ten small slices."""
    return Geometry(spacing_mm=(7.0, 8.0, 6.0), shape=(10, 11, 12)).turned(**changes)


def config() -> IngestConfig:
    """Few small slices are enough."""
    return small_ingest(**LIMITS)


def ingested(made: Scan, order: list[int], names: str = "{:03d}.dcm") -> tuple[str, VolumeStore]:
    """The id of the volume of slices that are written in an order, and its store."""
    root = Path(tempfile.mkdtemp(dir=_root))
    for number, k in enumerate(order):
        write(root / "source" / names.format(number), made.slices[k])
    report = ingest(root / "source", root / "store", config(), runner=Local(1))
    (entry,) = report.committed
    assert (report.skipped, report.quarantined) == ([], [])
    return str(entry.volume_id), VolumeStore.open(root / "store")


def darker(world: World) -> Hu:
    """HU around those that divide air from tissue: a few slices have both."""
    return lambda places: world.hu(places) - 180


def place_of(world: World = WORLD) -> Place:
    """Where the scans' UIDs come from."""
    return Place(Path("unused"), world, "property")


@FEW
@given(st.permutations(range(10)), st.sampled_from(["{:d}", "IM{:05d}", "z{:d}.dcm"]))
def test_order_and_names_of_files_change_nothing(order: list[int], names: str) -> None:
    made = scan(place_of(), hu=darker(WORLD), geometry=small())
    volume_id, store = ingested(made, list(order), names)
    first_id, first = ingested(made, list(range(10)))
    assert volume_id == first_id
    np.testing.assert_array_equal(store.read_level(volume_id).hu, first.read_level(first_id).hu)


def test_every_signed_permutation_of_the_axes(tmp_path: Path) -> None:
    """In one source; HU differ by a constant, because a stack read backwards is the same volume."""
    truths = {}
    for number, (order, signs) in enumerate(SIGNED):
        axes = np.zeros((3, 3))
        axes[list(order), range(3)] = signs
        geometry = small(row=tuple(axes[:, 0]), column=tuple(axes[:, 1]), step=tuple(6.0 * axes[:, 2]))
        place = Place(tmp_path / "source" / str(number), WORLD, f"axes {number}")
        made = scan(place, geometry=geometry, hu=lambda places, more=number: darker(WORLD)(places) + more)  # type: ignore[misc]
        save(place, made.slices)
        truths[place.uid("series", 1)] = made.right()
    report = ingest(tmp_path / "source", tmp_path / "store", config(), runner=Local(1))
    assert (report.skipped, report.quarantined) == ([], [])
    store = VolumeStore.open(tmp_path / "store")
    found = {
        entry.series_uid: compare(store.read_level(str(entry.volume_id)), truths[str(entry.series_uid)])
        for entry in report.committed
    }
    assert {uid: one.problems for uid, one in found.items() if one.problems} == {}
    assert found.keys() == truths.keys()


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
    made = scan(place_of(world), hu=darker(world), geometry=geometry.turned(centre_mm=centre))
    volume_id, store = ingested(made, list(range(10)))
    assert compare(store.read_level(volume_id), made.right()).problems == []


@FEW
@given(
    st.sampled_from([0.05, 1 / 16, 0.1, 0.333]),
    st.floats(-1100, -900),
    st.booleans(),
    st.sampled_from([-1.0, 1.0]),
)
def test_hu_come_back_whatever_they_are_stored_as(slope: float, intercept: float, signed: bool, sign: float) -> None:
    """Slope, intercept and sign of the representation: HU differ by the rounding of what is stored alone."""
    intercept = round(intercept, 3)
    slope, intercept = sign * slope, intercept if sign > 0 else intercept + 1000
    geometry = small()
    made = scan(place_of(), hu=darker(WORLD), geometry=geometry, slope=slope, intercept=intercept, signed=signed)
    volume_id, store = ingested(made, list(range(10)))
    world = geometry.positions[3:7] + geometry.matrix[:3, :2] @ (6.0, 5.0)
    rounding = 0.5 + abs(slope) / 2  # of the grid's HU, and of what is stored
    np.testing.assert_allclose(
        of_volume(store.read_level(volume_id), world), darker(WORLD)(world), atol=rounding + 0.35
    )
    assert compare(store.read_level(volume_id), made.right(inside=1.0 + abs(slope))).problems == []
