"""Validation of plain settings dataclasses: unknown keys, wrong types and impossible values are named by key."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from prdit_models.registry import Registry
from storage.errors import InputError

T = TypeVar("T")
_LIST, _MAPPING = "a list, such as [one, two]", "a mapping, such as {key: value}"
_EXPECTED = {"tuple_type": _LIST, "list_type": _LIST, "dict_type": _MAPPING, "model_type": _MAPPING}


class SettingsError(InputError):
    """Settings that cannot be used; one line per problem, with keys relative to the settings."""


def settings_of(kind: type[T], values: Any, where: str = "") -> T:
    """Settings of a frozen dataclass from a mapping.

    Args:
        kind: the dataclass.
        values: a mapping, or settings of that kind already.
        where: key of the settings, for messages; empty where they are the value that is checked.
    Raises: SettingsError: an unknown key, a wrong type, or a value the dataclass refuses; every problem is listed.
    """
    if not dataclasses.is_dataclass(kind):
        raise SettingsError(
            f"{where}: {kind!r} is no dataclass, so it has no settings to check. Its package has to make it one."
        )
    if isinstance(values, kind):
        return values
    known = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(values, Mapping):
        raise SettingsError(f"{where}: expected a mapping with {', '.join(known) or 'nothing in it'}; got {values!r}")
    if unknown := [key for key in values if key not in known]:
        there = f"Known here: {', '.join(sorted(known))}" if known else "There are no settings here"
        lines = [f"{_key(where, key)}: unknown key. {there}" for key in unknown]
        raise SettingsError("\n".join(lines))
    checked = validated(kind, frozen=True, config=ConfigDict(allow_inf_nan=False))
    try:
        found: Any = TypeAdapter(checked).validate_python(dict(values))
    except ValidationError as error:
        raise SettingsError("\n".join(_line(problem, where) for problem in error.errors())) from error
    return kind(**{field.name: getattr(found, field.name) for field in dataclasses.fields(found)})


def named_settings(table: Registry[type[T]], default: str, value: Any) -> T:
    """Settings of one row of a table, from its name or from a mapping of `name` and its settings.

    Args:
        table: of frozen dataclasses, each with its `name`.
        default: the name where a mapping has none.
        value: what a configuration has, or settings of a row already.
    Raises: ValueError: no such row, or settings that cannot be used; every problem is listed.
    """
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        if getattr(value, "name", None) in table:
            known: T = value
            return known
        raise ValueError(f"expected a name ({', '.join(table.names())}) or a mapping with a name, got {value!r}")
    settings = dict(value)
    return settings_of(table[str(settings.pop("name", default))], settings)


def named_values(settings: Any) -> dict[str, Any]:
    """The other way round: a row's name and settings as JSON values."""
    return {"name": settings.name} | dataclasses.asdict(settings)


def _line(problem: Any, where: str) -> str:
    key = _key(where, *problem["loc"])
    if problem["type"] == "value_error":
        return f"{key}: {problem['ctx']['error']}"
    return f"{key}: {wrong(problem)}"


def wrong(problem: Any) -> str:
    """What pydantic found wrong with a value, in the words of YAML, and the value."""
    expected = _EXPECTED.get(problem["type"])
    return f"{f'expected {expected}' if expected else problem['msg']}, got {problem['input']!r}"


def _key(*parts: Any) -> str:
    return ".".join(str(part) for part in parts if part != "")
