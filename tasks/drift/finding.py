"""One reason to hold a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

_NAMED = 4


@dataclass(frozen=True)
class Finding:
    """One reason to hold a batch.

    Attributes:
        name: of the check, such as `hu_shift`.
        value, limit: what was measured, and what was allowed.
        sentence: what a person reads: measured, allowed, which volumes (by id).
        volumes: ids of those that it is about.
    """

    name: str
    value: float
    limit: float
    sentence: str
    volumes: tuple[str, ...] = ()


def named(volumes: Sequence[str]) -> str:
    """Some ids, the first few of many."""
    shown = ", ".join(volumes[:_NAMED])
    return shown + (f" and {len(volumes) - _NAMED} more" if len(volumes) > _NAMED else "")
