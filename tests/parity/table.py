"""Write docs/parity.md: `python -m tests.parity.table` (reads `PRDIT_PARITY_DIR`)."""

import sys
import time
from pathlib import Path

from storage.files import write_text_atomic
from tests.conftest import REPOSITORY
from tests.parity import registry, sets
from tests.parity.measure import Measure
from tests.parity.test_parity import _folder

INTRODUCTION = Path(__file__).with_name("introduction.md")


def _nearness(measure: Measure) -> float:
    if measure.tolerance == 0.0:
        return 0.0 if measure.error == 0.0 else float("inf")
    return measure.error / measure.tolerance if measure.error == measure.error else float("inf")


def _row(folder: Path, entry: sets.Entry) -> tuple[str, bool]:
    family = registry.family_of(entry["id"])
    if family.check is None:
        return f"| `{entry['id']}` | {family.status} | {family.note} | | | | |\n", True
    measures = family.check(folder, entry)
    worst = max(measures, key=_nearness)
    passed = all(measure.passed for measure in measures)
    tolerance = "exact" if worst.tolerance == 0.0 else f"{worst.tolerance:.1e}"
    verdict = "agrees" if passed else "**differs**"
    return (
        f"| `{entry['id']}` | {family.status} | {worst.what} | {worst.error:.1e} | {tolerance} | {len(measures)} | {verdict} |\n",
        passed,
    )


def main() -> int:
    folder = _folder()
    started = time.monotonic()
    rows = [_row(folder, entry) for entry in sets.entries(folder).values()]
    agreeing = all(passed for _, passed in rows)
    set_name = sets.load_manifest(folder).get("set", "unnamed")
    footer = f"\nParity set: {set_name}, {len(rows)} entries.\n"
    text = INTRODUCTION.read_text() + "".join(row for row, _ in rows) + footer
    write_text_atomic(REPOSITORY / "docs" / "parity.md", text)
    sys.stderr.write(f"docs/parity.md: {len(rows)} entries in {time.monotonic() - started:.0f} s\n")
    return 0 if agreeing else 1


if __name__ == "__main__":
    raise SystemExit(main())
