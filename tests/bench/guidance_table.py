"""Guides on Gaussian data against the exact posterior: `python -m tests.bench.guidance_table` (some minutes on one core).

Prints JSON and rewrites the generated part of docs/guided.md. The data, the denoiser and the posterior are those of
`tests/oracles/gaussian_posterior.py`.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.sampling import Sampler
from prdit_models.diffusion.steering import DivergedError
from prdit_models.inverse.guides import GUIDES
from tests.oracles import operators
from tests.oracles.gaussian_posterior import NOISE_HU, SIZE, STD, Problem, fit

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "guided.md"
BEGIN, END = "<!-- begin guidance table -->", "<!-- end guidance table -->"
STEPS = (10, 40, 160)
SOLVER = {"solver_steps": 60, "solver_tolerance": 1e-8}
UNBOUNDED = {"within_window": False}  # the data's own values go beyond the window
VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("`projection`", "projection", SOLVER | {"data_std": STD}),
    ("`projection`, `data_std` 1", "projection", SOLVER | {"data_std": 1.0}),
    ("`pigdm`", "pigdm", SOLVER | {"data_std": STD}),
    ("`dps`", "dps", {}),
    ("`tf`", "tf", {}),
)


def _problems() -> dict[tuple[str, str], Problem]:
    half = torch.zeros(SIZE, SIZE, SIZE, dtype=torch.bool)
    half[: SIZE // 2] = True
    made = {
        "means of 2³": operators.block_means(NOISE_HU),
        "half of the voxels": operators.mask(half, NOISE_HU),
        "two views": operators.ray_sums(0.1),
    }
    return {
        (data, name): Problem.of(operator, data == "correlated")
        for data in ("white", "correlated")
        for name, operator in made.items()
    }


def rows() -> list[dict[str, Any]]:
    """One row for each kind of data, operator, guide and number of steps."""
    process, found = CosineProcess(), []
    for (data, operator), problem in _problems().items():
        for label, name, settings in (("none", "", {}), *VARIANTS):
            for steps in STEPS if name else STEPS[-1:]:
                guide = GUIDES[name](problem.measured, **UNBOUNDED, **settings) if name else None
                row: dict[str, Any] = {"data": data, "operator": operator, "guide": label, "n": steps}
                try:
                    row |= asdict(fit(problem, process, Sampler("dpmpp-2m", steps), guide))
                except DivergedError as error:
                    row["diverged"] = str(error)
                found.append(row)
                sys.stderr.write(f"{row}\n")
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Markdown of `rows`."""
    cells: dict[tuple[str, str, str], dict[int, str]] = {}
    for row in found:
        shown = "diverges"
        if "diverged" not in row:
            shown = f"{row['mean_error']:.2f} / {100 * row['std_error']:+.0f} % / {row['covariance_error']:.2f}"
        cells.setdefault((row["data"], row["operator"], row["guide"]), {})[row["n"]] = shown
    lines = [
        "| data | measurement | guide | " + " | ".join(f"n = {n}" for n in STEPS) + " |",
        "|---|---|---|" + "---|" * len(STEPS),
    ]
    for key, by_steps in cells.items():
        lines.append("| " + " | ".join([*key, *(by_steps.get(n, "") for n in STEPS)]) + " |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    found = rows()
    sys.stdout.write(json.dumps(found) + "\n")
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
