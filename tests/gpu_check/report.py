"""What the check finds: rows with a verdict, a table for people, JSON. Imports nothing but the standard library."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Fact = float | int | str | list[float] | None

VERDICTS = (
    "skipped",
    "measured",
    "agrees",
    "differs",
    "failed",
)  # a part has the last of its rows' verdicts in this order
BAD = ("differs", "failed")
_WIDTH, _LINE = 40, 150


@dataclass(frozen=True)
class Row:
    """One finding.

    Attributes:
        what: was looked at.
        verdict: one of `VERDICTS`; `measured` where nothing is compared.
        error: how far off, in the unit of the limit.
        limit: how far is allowed.
        facts: further numbers by name, units in the names; lists are for the JSON alone.
        note: a sentence.
        group: rows of one group are one line of the table; the JSON has them all.
    """

    what: str
    verdict: str
    error: float | None = None
    limit: float | None = None
    facts: dict[str, Fact] = field(default_factory=dict)
    note: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict is {self.verdict!r}; expected one of {list(VERDICTS)}.")


@dataclass(frozen=True)
class PartResult:
    """The outcome of one part.

    Attributes:
        name, title: of the part.
        rows: in the order they were found.
        seconds: the part took.
        reason: why it failed or was skipped; empty otherwise.
        failed: it raised, died or was stopped, whatever its rows say.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    seconds: float
    reason: str = ""
    failed: bool = False

    @property
    def verdict(self) -> str:
        """The last of its rows' in the order of `VERDICTS`; a part without rows was skipped."""
        if self.failed:
            return "failed"
        return max((row.verdict for row in self.rows), key=VERDICTS.index, default="skipped")


def compared(what: str, error: float, limit: float, *, note: str = "", group: str = "", **facts: Fact) -> Row:
    """A row that agrees if the error is within the limit; one that is not a number differs."""
    return Row(what, "agrees" if error <= limit else "differs", error, limit, facts, note, group)


def measured(what: str, *, note: str = "", **facts: Fact) -> Row:
    """A row that only reports."""
    return Row(what, "measured", facts=facts, note=note)


def skipped(what: str, note: str, *, group: str = "") -> Row:
    """A row that says what was left out, and why."""
    return Row(what, "skipped", note=note, group=group)


def to_json(value: Any) -> Any:
    """The same with numbers JSON does not know as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: to_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(entry) for entry in value]
    return value


def row_to_dict(row: Row) -> dict[str, Any]:
    """JSON-ready, without what is empty."""
    found: dict[str, Any] = to_json(asdict(row))
    return {key: value for key, value in found.items() if value not in (None, "", {})}


def row_from_dict(values: dict[str, Any]) -> Row:
    """The row `row_to_dict` wrote."""
    numbers = {key: float(values[key]) for key in ("error", "limit") if key in values}
    return Row(**{**values, **numbers})


def part_to_dict(part: PartResult) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "title": part.title,
        "verdict": part.verdict,
        "seconds": round(part.seconds, 2),
        **({"reason": part.reason} if part.reason else {}),
        "rows": [row_to_dict(row) for row in part.rows],
    }


def part_lines(part: PartResult) -> list[str]:
    """A part as lines of the table."""
    lines = [f"{part.name}: {part.title} ({part.seconds:.0f} s): {part.verdict}"]
    if part.reason:
        lines += [f"    {line}" for line in part.reason.splitlines()]
    done: set[str] = set()
    for row in part.rows:
        if not row.group:
            lines += _row_lines(row)
        elif row.group not in done:
            done.add(row.group)
            lines += _group_lines(row.group, [other for other in part.rows if other.group == row.group])
    return lines


def _row_lines(row: Row) -> list[str]:
    cells = [f"{name} {_shown(value)}" for name, value in row.facts.items() if not isinstance(value, list | None)]
    if row.error is not None and row.limit is not None:
        cells.insert(0, f"error {row.error:.2g} of {row.limit:.2g}")
    if row.note:
        cells.append(row.note)
    head = f"  {row.what:{_WIDTH}} {row.verdict:9} "
    return textwrap.wrap(head + "; ".join(cells), _LINE, subsequent_indent=" " * len(head), drop_whitespace=True) or [
        head
    ]


def _group_lines(group: str, rows: Sequence[Row]) -> list[str]:
    """How many agree and which comes nearest to its limit; what does not agree is listed below it."""
    agreeing = [row for row in rows if row.verdict == "agrees"]
    worst = max(rows, key=_nearness)
    verdict = max((row.verdict for row in rows), key=VERDICTS.index)
    shown = f"{len(agreeing)} of {len(rows)} agree; nearest to its limit: {worst.what}"
    if worst.error is not None and worst.limit is not None:
        shown += f", {worst.error:.2g} of {worst.limit:.2g}"
    lines = [f"  {group:{_WIDTH}} {verdict:9} {shown}"]
    return lines + [line for row in rows if row.verdict in BAD for line in _row_lines(row)]


def _nearness(row: Row) -> float:
    if row.error is None or row.limit is None:
        return -1.0
    if not row.error <= row.limit:
        return math.inf
    return row.error / row.limit if row.limit else 0.0


def _shown(value: Fact) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def summary_line(parts: Iterable[PartResult], seconds: float) -> str:
    """All parts in one line."""
    by_verdict: dict[str, list[str]] = {}
    for part in parts:
        by_verdict.setdefault(part.verdict, []).append(part.name)
    shown = "; ".join(
        f"{verdict}: {', '.join(by_verdict[verdict])}" for verdict in VERDICTS[::-1] if verdict in by_verdict
    )
    return f"{shown}. {seconds:.0f} s."
