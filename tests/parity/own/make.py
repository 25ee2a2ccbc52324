"""Freeze the oracle's numbers: `python -m tests.parity.own.make` writes `values.json`.

Only after a case was added or changed on purpose: a number that moved otherwise is what the file is there to catch.
"""

import json
import sys

import torch

from storage.files import write_text_atomic
from tests.parity.own.cases import CASES
from tests.parity.own.frozen import VALUES, summary


def main() -> None:
    torch.set_num_threads(1)
    rows = (f"{json.dumps(name)}: {json.dumps(summary(case.oracle()))}" for name, case in CASES.items())
    write_text_atomic(VALUES, "{\n" + ",\n".join(rows) + "\n}\n")
    sys.stderr.write(f"{VALUES.name}: {len(CASES)} cases, {VALUES.stat().st_size / 1e3:.0f} kB\n")


if __name__ == "__main__":
    main()
