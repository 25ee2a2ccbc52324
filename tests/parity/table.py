"""Write docs/parity.md: `python -m tests.parity.table` (reads `PRDIT_PARITY_DIR`).

Without the recorded arrays the table of our own set goes to the standard output, and the document stays as it is.
"""

import sys
import time
from pathlib import Path

import torch

from storage.files import write_text_atomic
from tests.parity import registry, sets
from tests.parity.location import REPOSITORY, is_parity_set, parity_folder
from tests.parity.measure import Measure
from tests.parity.own.cases import CASES, Case
from tests.parity.own.frozen import MACHINE, against_frozen

INTRODUCTION = Path(__file__).with_name("introduction.md")
OWN = """
## Our own set

The same without the recorded arrays (`tests/parity/own`): all values of each case against the literal float64 restatement
(`tests/oracles/prdit_literal.py`), the product in float64 and in float32, and both against numbers frozen in the repository. The
restatement itself is held to a quarter of the recorded tolerances (`tests/parity/test_oracle.py`).

| case | worst comparison in float64 | max error | worst in float32 | max error | tolerance | n | verdict |
|---|---|---|---|---|---|---|---|
"""


def _nearness(measure: Measure) -> float:
    if measure.tolerance == 0.0:
        return 0.0 if measure.error == 0.0 else float("inf")
    return measure.error / measure.tolerance if measure.error == measure.error else float("inf")


def _verdict(measures: list[Measure]) -> tuple[str, bool]:
    passed = all(measure.passed for measure in measures)
    return "agrees" if passed else "**differs**", passed


def _row(folder: Path, entry: sets.Entry) -> tuple[str, bool]:
    family = registry.family_of(entry["id"])
    if family.check is None:
        return f"| `{entry['id']}` | {family.status} | {family.note} | | | | |\n", True
    measures = family.check(folder, entry)
    worst = max(measures, key=_nearness)
    verdict, passed = _verdict(measures)
    tolerance = "exact" if worst.tolerance == 0.0 else f"{worst.tolerance:.1e}"
    return (
        f"| `{entry['id']}` | {family.status} | {worst.what} | {worst.error:.1e} | {tolerance} | {len(measures)} | {verdict} |\n",
        passed,
    )


def _own_row(case: Case) -> tuple[str, bool]:
    reference = case.oracle()
    live = case.measures(reference)
    measures = live + against_frozen(case, reference, "oracle", MACHINE)
    verdict, passed = _verdict(measures)
    cells = []
    for precision in ("float64", "float32"):
        found = [measure for measure in live if measure.what.endswith(precision)]
        worst = max(found, key=_nearness) if found else None
        cells.append(f"{worst.what.rpartition(', ')[0]} | {worst.error:.1e}" if worst else " | ")
        tolerance = f"{worst.tolerance:.1e}" if worst else ""
    return f"| {case.name} | {' | '.join(cells)} | {tolerance} | {len(measures)} | {verdict} |\n", passed


def _own() -> tuple[str, bool]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny arrays
    rows = [_own_row(case) for case in CASES.values()]
    torch.set_num_threads(before)
    return OWN + "".join(row for row, _ in rows), all(passed for _, passed in rows)


def main() -> int:
    folder = parity_folder()
    started = time.monotonic()
    own, own_agrees = _own()
    if not is_parity_set(folder):
        sys.stdout.write(own)
        sys.stderr.write(
            f"No parity set at {folder} (PRDIT_PARITY_DIR): our own set alone, docs/parity.md unchanged.\n"
        )
        return 0 if own_agrees else 1
    rows = [_row(folder, entry) for entry in sets.entries(folder).values()]
    agreeing = own_agrees and all(passed for _, passed in rows)
    set_name = sets.load_manifest(folder).get("set", "unnamed")
    footer = f"\nParity set: {set_name}, {len(rows)} entries.\n"
    text = INTRODUCTION.read_text() + "".join(row for row, _ in rows) + footer + own
    write_text_atomic(REPOSITORY / "docs" / "parity.md", text)
    sys.stderr.write(f"docs/parity.md: {len(rows)} entries in {time.monotonic() - started:.0f} s\n")
    return 0 if agreeing else 1


if __name__ == "__main__":
    raise SystemExit(main())
