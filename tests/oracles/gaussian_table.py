"""The table of docs/samplers.md: `python -m tests.oracles.gaussian_table` rewrites its generated part (a minute)."""

from pathlib import Path

from prdit_models.diffusion.sampler import SCHEDULES, Sampler, samplers_of
from tests.oracles.gaussian import moments

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "samplers.md"
BEGIN, END = "<!-- begin Gaussian table -->", "<!-- end Gaussian table -->"
STEPS = (5, 10, 20, 50, 1000)


def table() -> str:
    """Error of mean and standard deviation for every sampler, schedule and number of evaluations, as Markdown."""
    lines = [
        "| sampler | schedule | " + " | ".join(f"n = {n}" for n in STEPS) + " |",
        "|---|---|" + "---|" * len(STEPS),
    ]
    for name in samplers_of("cosine"):
        for schedule in SCHEDULES:
            cells = []
            for steps in STEPS:
                found = moments(Sampler(name, steps, schedule))
                shown = f"{found.mean_error:+.4f}, {100 * found.relative_std_error:+.2f} %"
                cells.append(shown if found.evaluations == steps else f"{shown} ({found.evaluations} ev.)")
            lines.append(f"| `{name}` | {schedule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
