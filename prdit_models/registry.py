"""Tables of named things to which an installed package can add a row."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
from typing import Any, Generic, TypeVar

T = TypeVar("T")
# types that are checked before a thing sees them, by annotation, and their words
_NUMBERS: dict[Any, tuple[Any, str]] = {
    int: (int, "a whole number"),
    float: (int | float, "a number"),
}


class Registry(Generic[T]):
    """Named things: prdit's rows, and those of other installed packages.

    A row says where the thing is, `package.module:NAME`; it is imported when it is asked for by name. Another package adds one as
    an entry point of the table's group (docs/extending.md):

        [project.entry-points."prdit.families"]
        toy = "toy_package:TOY"

    Args:
        what: one of the things in words, for messages.
        group: entry-point group.
        rows: prdit's own.
        needs: attributes that a thing must have.
    """

    def __init__(self, what: str, group: str, rows: Mapping[str, str], needs: Sequence[str] = ()) -> None:
        self.what = what
        self.group = group
        self._rows = dict(rows)
        self._needs = tuple(needs)
        self._found: dict[str, T] = {}

    def names(self) -> tuple[str, ...]:
        """Every name, prdit's own first.

        Raises: ValueError: a name is registered twice.
        """
        return tuple(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> T:
        """The thing of a name.

        Raises: ValueError: no such name, a row that cannot be imported, or a thing that lacks a needed attribute.
        """
        if name in self._found:
            return self._found[name]
        if name not in self._places:
            raise ValueError(f"Unknown {self.what} {name!r}; there are {', '.join(self._places)}.")
        place, owner = self._places[name]
        try:
            found: T = resolve_name(place)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"The {self.what} {name!r} of {owner} cannot be imported from {place!r} ({type(error).__name__}: {error}). "
                f"Repair or uninstall {owner}."
            ) from error
        if missing := [need for need in self._needs if not hasattr(found, need)]:
            raise ValueError(
                f"The {self.what} {name!r} of {owner} ({place}) lacks {', '.join(missing)}; a {self.what} has "
                f"{', '.join(self._needs)}."
            )
        self._found[name] = found
        return found

    def owners(self, *names: str) -> dict[str, str]:
        """Package and version of those of some names that are not ours: part of the identity of what is computed with them."""
        owners = {name: self._places[name][1] for name in names if name in self._places}
        return {f"{self.what} {name}": owner for name, owner in owners.items() if owner != "prdit"}

    @cached_property
    def _places(self) -> dict[str, tuple[str, str]]:
        """(place, owner) by name."""
        places = {name: (place, "prdit") for name, place in self._rows.items()}
        for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
            owner = _owner(point)
            if point.name in places:
                place, first = places[point.name]
                if (place, first) == (point.value, owner):  # one distribution found twice on the path
                    continue
                raise ValueError(
                    f"The {self.what} {point.name!r} is registered twice: by {first} ({place}) and by {owner} ({point.value}). "
                    "Uninstall one of the two, or have it renamed."
                )
            places[point.name] = (point.value, owner)
        return places


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an installed package"


def made_of(what: str, kind: Callable[..., T], settings: Mapping[str, Any], *given: Any, **named: Any) -> T:
    """A thing of a table, made of the settings that a person wrote.

    Args:
        what: the thing in words, for messages: "the guide 'dps'".
        kind: makes it.
        settings: by name.
        given, named: arguments that are no settings.
    Raises: ValueError: a setting that it does not have, lacks or refuses.
    """
    parameters = list(inspect.signature(kind).parameters.values())[len(given) :]
    own = [each for each in parameters if each.name not in named and each.kind is not each.VAR_KEYWORD]
    known = ", ".join(each.name for each in own) or "none"
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    for key in settings:
        if not isinstance(key, str) or key in named or not (takes_any or any(key == each.name for each in own)):
            raise ValueError(f"{_capital(what)} has no setting {key!r}; it has {known}.")
    for each in own:
        expected = _NUMBERS.get(each.annotation)
        if expected is None or each.name not in settings:
            continue
        value = settings[each.name]
        if isinstance(value, bool) or not isinstance(value, expected[0]):
            raise ValueError(f"{each.name} of {what} is {value!r}; expected {expected[1]}.")
    required = [each.name for each in own if each.default is each.empty and each.kind is not each.VAR_POSITIONAL]
    if missing := [name for name in required if name not in settings]:
        raise ValueError(f"{_capital(what)} needs {', '.join(missing)}; its settings are {known}.")
    try:
        return kind(*given, **settings, **named)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{_capital(what)} cannot be made of {dict(settings)}: {error}.") from error


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
