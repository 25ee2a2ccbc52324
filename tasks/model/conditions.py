"""Numbers and categories that condition a model: names, encoding, and what may be asked for."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from storage.documents.checkpoint import Category, Number
from storage.errors import InputError

Condition = Number | Category

VOXEL_MM = "voxel_mm"  # voxel distance of what the model sees
FIELD_OF_VIEW_MM = "field_of_view_mm"  # in-plane extent of the stored scan, mean of x and y
SCAN_LENGTH_MM = "scan_length_mm"  # extent along z
PROPERTIES = (VOXEL_MM, FIELD_OF_VIEW_MM, SCAN_LENGTH_MM)  # of every volume, beside the columns of the snapshot


def width(conditions: Sequence[Condition]) -> int:
    """Inputs that they make: two of a number, one per value of a category."""
    return sum(2 if isinstance(one, Number) else len(one.values) for one in conditions)


def encoded(conditions: Sequence[Condition], row: Mapping[str, Any]) -> list[float]:
    """The inputs of one volume: (value - mean) / std and 1 of a number, 1 in its place of a category; zeros: not known.

    Args:
        conditions: of the model, in order.
        row: values by name; what is missing, or is no such value, is not known.
    """
    inputs: list[float] = []
    for one in conditions:
        if isinstance(one, Number):
            number = as_number(row.get(one.name))
            inputs += [0.0, 0.0] if number is None else [(number - one.mean) / one.std, 1.0]
        else:
            text = as_text(row.get(one.name))
            inputs += [float(value == text) for value in one.values]
    return inputs


def check_asked(conditions: Sequence[Condition], asked: Mapping[str, Any]) -> list[str]:
    """Refuse what a model was not trained with; sentences on numbers far from those of its training.

    Args:
        conditions: of the model.
        asked: values by name, as `sample.conditions` has them.
    Raises: InputError: an unknown name or category, or no number where one is expected; says what the model knows.
    """
    known, warnings = {one.name: one for one in conditions}, []
    if unknown := sorted(set(asked) - set(known)):
        raise InputError(
            f"sample.conditions names {', '.join(unknown)}, which this checkpoint was not trained with; it knows "
            f"{said(conditions)}."
        )
    for name, value in asked.items():
        one = known[name]
        if isinstance(one, Category):
            if as_text(value) not in one.values:
                raise InputError(
                    f"sample.conditions.{name} is {value!r}, a value that was not in the training; it knows {said([one])}."
                    f"{quoting(value)}"
                )
            continue
        number = as_number(value)
        if number is None:
            raise InputError(f"sample.conditions.{name} is {value!r}; expected a number ({said([one])}).")
        low, high = one.range
        if not low <= number <= high:
            warnings.append(
                f"sample.conditions.{name} is {number:g}; the training's values lie in about {low:.4g} to {high:.4g}, so what the "
                "model makes of it was never compared with a scan."
            )
    return warnings


def quoting(value: object) -> str:
    """What to do where a value may have been text that YAML reads otherwise (`yes` as true, `01` as 1); empty where it was not."""
    if isinstance(value, str) and value not in ("True", "False"):
        return ""
    return " YAML reads yes, no, on and off as true and false, and digits as a number: put the text in quotes."


def said(conditions: Sequence[Condition]) -> str:
    """What a model knows, for a message."""
    return "; ".join(_said(one) for one in conditions) or "no conditions"


def _said(one: Condition) -> str:
    if isinstance(one, Category):
        return f"{one.name}: {', '.join(one.values)}"
    return f"{one.name}: a number, about {one.range[0]:.4g} to {one.range[1]:.4g}"


def as_number(value: object) -> float | None:
    """A finite number, also one that is text (labels are); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def as_text(value: object) -> str:
    """A value as a category; empty where there is none."""
    return "" if value is None else str(value)
