"""What `prdit ingest` says of its verdicts on a terminal: totals by reason, then the first items of each."""

from pathlib import Path
from typing import Any

from storage.documents.verdicts import LISTS, Entry, IngestReport
from tasks.ingest.report import place_of, summary_rows
from tasks.run.printable import one_line

SHOWN_PER_REASON = 5


def verdict_text(report: IngestReport, page: Path) -> str:
    """The report as text: a table of totals, the first exclusions of each reason, and where all are.

    Args:
        report: with paths.
        page: the quality page.
    """
    lines = [f"store {report.store} (snapshot {report.snapshot or 'none'})", ""]
    rows = summary_rows(report)
    width = max(len(row["reason"]) for row in rows)
    lines += [f"{row['number']:>8}  {row['verdict']:<11}  {row['reason']:<{width}}".rstrip() for row in rows]
    for row in rows:
        if row["reason"]:
            lines += _items(getattr(report, row["verdict"]), row["reason"], row["number"])
    warned = [f"  {one_line(note)}" for note in report.notes]
    if warned:
        lines += ["", f"notes: {len(warned)}", *warned[:SHOWN_PER_REASON]]
        if len(warned) > SHOWN_PER_REASON:
            lines.append(f"  … and {len(warned) - SHOWN_PER_REASON} more, in the page")
    return "\n".join([*lines, "", f"page with pictures: {one_line(page)}"])


def without_pictures(value: dict[str, Any]) -> dict[str, Any]:
    """The report as JSON without the pictures of refused scans, which are in the page."""
    for verdict in LISTS:
        for entry in value[verdict]:
            entry.pop("thumbnail", None)
    return value


def _items(entries: list[Entry], reason: str, number: int) -> list[str]:
    """The first items of a verdict with a reason."""
    entries = [entry for entry in entries if entry.reason == reason]
    lines = ["", f"{reason} ({number})", *(f"  {_item(entry)}" for entry in entries[:SHOWN_PER_REASON])]
    if number > SHOWN_PER_REASON:
        lines.append(f"  … and {number - SHOWN_PER_REASON} more: in the page, or with --json")
    return lines


def _item(entry: Entry) -> str:
    name, message = one_line(entry.series_uid or entry.path or "unnamed"), one_line(entry.message or "")
    behind = f" [{'; '.join(entry.behind)}]" if entry.behind else ""
    place = f" ({found})" if (found := place_of(entry)) else ""
    return (message if name in message else f"{name}: {message}") + behind + place
