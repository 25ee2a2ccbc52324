"""Tables that other packages add rows to: what is found, and what is refused in one sentence."""

from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from prdit_models import registry
from prdit_models.diffusion.process import PROCESSES
from prdit_models.diffusion.sampler import SAMPLERS
from prdit_models.families.family import FAMILIES
from prdit_models.inverse.guides import GUIDES
from prdit_models.metrics.metric import METRICS
from prdit_models.registry import Registry

OURS = {"square": "math:sqrt"}


class Point(EntryPoint):
    """An entry point of a named distribution."""

    owner = "toy-package"

    @property
    def dist(self) -> SimpleNamespace:  # type: ignore[override]
        return SimpleNamespace(name=self.owner, version="1.2")


def table(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str], needs: tuple[str, ...] = ()) -> Registry[object]:
    found = [Point(name, value, "prdit.things") for name, value in points]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "prdit.things" else [])
    return Registry("thing", "prdit.things", OURS, needs)


def test_rows_of_other_packages_stand_behind_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    things = table(monkeypatch, ("zeta", "math:ceil"), ("alpha", "math:floor"))
    assert things.names() == ("square", "alpha", "zeta")
    assert things["alpha"](2.7) == 2  # type: ignore[operator]
    assert "zeta" in things
    assert "beta" not in things


def test_what_others_bring_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    things = table(monkeypatch, ("alpha", "math:floor"))
    assert things.owners("alpha", "square", "beta") == {"thing alpha": "toy-package 1.2"}


def test_an_unknown_name_is_answered_by_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^Unknown thing 'beta'; there are square, alpha\.$"):
        table(monkeypatch, ("alpha", "math:floor"))["beta"]


@pytest.mark.parametrize(
    ("first", "message"), [("square", "by prdit .math:sqrt."), ("alpha", "by toy-package 1.2 .math:floor.")]
)
def test_a_name_registered_twice_is_refused(monkeypatch: pytest.MonkeyPatch, first: str, message: str) -> None:
    points = [("alpha", "math:floor"), (first, "math:ceil")]
    things = table(monkeypatch, *points)
    with pytest.raises(
        ValueError,
        match=rf"thing '{first}' is registered twice: {message} and by toy-package 1.2 .math:ceil.*Uninstall",
    ):
        things.names()


def test_one_distribution_found_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert table(monkeypatch, ("alpha", "math:floor"), ("alpha", "math:floor")).names() == ("square", "alpha")


@pytest.mark.parametrize("place", ["no_such_module:X", "math:no_such_name"])
def test_a_row_that_cannot_be_imported_says_whose_it_is(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    with pytest.raises(
        ValueError, match=rf"'alpha' of toy-package 1.2 cannot be imported from '{place}'.*uninstall toy-package"
    ):
        table(monkeypatch, ("alpha", place))["alpha"]


def test_a_thing_that_lacks_something_says_what(monkeypatch: pytest.MonkeyPatch) -> None:
    things = table(monkeypatch, ("alpha", "math:floor"), needs=("__call__", "generate", "validate"))
    with pytest.raises(
        ValueError, match=r"'alpha' of toy-package 1.2 \(math:floor\) lacks generate, validate; a thing has __call__"
    ):
        things["alpha"]


@pytest.mark.parametrize("ours", [FAMILIES, PROCESSES, SAMPLERS, GUIDES, METRICS])
def test_every_row_of_ours_is_there(ours: Registry[object]) -> None:
    for name in ours.names():
        assert ours[name] is ours[name]
