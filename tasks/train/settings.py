"""Validation of plain settings dataclasses: unknown keys, wrong types and impossible values are named by key."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from storage.errors import InputError

T = TypeVar("T")


class SettingsError(InputError):
    """Settings that cannot be used; one line per problem, with keys relative to the settings."""


def settings_of(kind: type[T], values: Any, where: str) -> T:
    """Settings of a frozen dataclass from a mapping.

    Args:
        kind: the dataclass.
        values: a mapping, or settings of that kind already.
        where: key of the settings, for messages.
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
        raise SettingsError(f"{where}: expected a mapping with {', '.join(known)}; got {values!r}")
    if unknown := [key for key in values if key not in known]:
        lines = [f"{where}.{key}: unknown key. Known here: {', '.join(sorted(known))}" for key in unknown]
        raise SettingsError("\n".join(lines))
    checked = validated(kind, frozen=True, config=ConfigDict(allow_inf_nan=False))
    try:
        found: Any = TypeAdapter(checked).validate_python(dict(values))
    except ValidationError as error:
        raise SettingsError("\n".join(_line(problem, where) for problem in error.errors())) from error
    return kind(**{field.name: getattr(found, field.name) for field in dataclasses.fields(found)})


def _line(problem: Any, where: str) -> str:
    key = ".".join((where, *(str(part) for part in problem["loc"])))
    if problem["type"] == "value_error":
        return f"{key}: {problem['ctx']['error']}"
    return f"{key}: {problem['msg']}, got {problem['input']!r}"
