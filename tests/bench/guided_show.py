"""Guided sampling on a held-out patient: `python -m tests.bench.guided_show STORE CHECKPOINT VOLUME --workdir DIR`.

One checkpoint, four measurements of one volume: coarser voxels, a side cut off, thick slices, two radiographs. Each is
reconstructed by the stages behind `prdit reconstruct` (cached in DIR). Prints JSON and tables, and writes figures into DIR/show;
with `--docs` into docs/img, and the tables into docs/guided.md and docs/benchmarks.md.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from storage.artifacts import Ref, committed_ref
from storage.checkpoints import load_tensors
from storage.documents.reconstruction import Accuracy, Reconstruction, Truth
from storage.snapshots import newest
from storage.volume_store import VolumeStore
from tasks.reconstruct.baselines import baselines
from tasks.reconstruct.comparison import Drawn
from tasks.reconstruct.config import ReconstructConfig
from tasks.reconstruct.measure import StoredVolume, load_measurement, measure_stage
from tasks.reconstruct.setting import Setting, operator_on
from tasks.reconstruct.stage import reconstruct_stage
from tasks.reconstruct.truth import truth_of
from tasks.run.stage import RunContext
from tests.bench.guided_figures import Case, calibration, sheet

REPOSITORY = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- begin guided show -->", "<!-- end guided show -->"
TISSUES = ("all", "air", "lung", "fat", "soft", "bone")


@dataclass(frozen=True)
class Task:
    """A measurement that is shown.

    Attributes:
        title: in tables.
        measured: above its picture.
        operator: name and settings, for volumes of 256 mm.
    """

    title: str
    measured: str
    operator: dict[str, Any]


TASKS = {
    "super-resolution": Task(
        "16³ → 32³ voxels", "measured: 16³", {"name": "downsampling", "factor": 2, "noise_std": 10.0}
    ),
    "infilling": Task(
        "left side cut off",
        "measured: half",
        {"name": "mask", "region": "half", "side": "left", "centre_mm": [20.0, 0.0, 0.0], "noise_std": 10.0},
    ),
    "thick-slices": Task(
        "slices of 24 mm → 8 mm", "measured: 24 mm", {"name": "thick-slices", "thickness_mm": 24.0, "noise_std": 10.0}
    ),
    "x-rays": Task(
        "two radiographs → CT",
        "measured: X-rays",
        {
            "name": "projection",
            "views": [{"angle_deg": 0.0}, {"angle_deg": 90.0}],
            "detector_shape": [128, 128],
            "detector_pitch_mm": 3.2,
            "source_to_isocentre_mm": 1500.0,
            "source_to_detector_mm": 1800.0,
            "noise_std": 2.0,
        },
    ),
}


@dataclass(frozen=True)
class Shown:
    """A task that was reconstructed."""

    task: Task
    found: Reconstruction
    case: Case

    @property
    def truth(self) -> Truth:
        """What is known of a simulated measurement."""
        assert self.found.truth is not None
        return self.found.truth


def reconstructed(name: str, checkpoint: Ref, source: StoredVolume, config: ReconstructConfig, workdir: Path) -> Shown:
    """One task through both stages, and what its figure shows."""
    task, setting, context = TASKS[name], Setting.of(checkpoint, config), RunContext(workdir=workdir)
    measured = measure_stage(source, task.operator, setting, context).ref
    outcome = reconstruct_stage(checkpoint, measured, config, context, silent)
    sys.stderr.write(f"{name}: {outcome.ref.path}\n")
    directory = outcome.ref.path
    document, values = load_measurement(measured)
    assert document.simulated is not None
    drawn, estimate = Drawn(directory, setting), load_tensors(directory / Reconstruction.ESTIMATE)
    found, operator = Reconstruction.load(directory), operator_on(document.operator, setting.grid)
    assert found.truth is not None
    plain = baselines(operator, values, (setting.window.lower_hu, setting.window.upper_hu))
    best = max(plain, key=lambda each: found.truth.accuracy[each].psnr_db if found.truth else 0.0)
    case = Case(
        operator=operator,
        values=values,
        measured=task.measured,
        truth=truth_of(measured, document.simulated, setting),
        baseline=(best, plain[best]),
        mean=estimate["mean"],
        std=estimate["std"],
        samples=[drawn.read(each) for each in drawn.ids[:2]],
        num_samples=found.num_samples,
    )
    return Shown(task, found, case)


def silent(done: int, total: int) -> None:
    """Tells nobody how far a stage is: a task takes a minute."""


def rows(shown: dict[str, Shown]) -> Iterator[dict[str, Any]]:
    """Figures of every volume of every task, baselines last."""
    for name, each in shown.items():
        for kind, figures in each.truth.accuracy.items():
            noise = each.found.noise_std
            yield {
                "task": name,
                "volume": kind,
                "psnr_db": figures.psnr_db,
                "ssim": figures.ssim,
                "error_hu": figures.error_hu,
                "residual_over_noise": figures.residual / noise,
            }


def likeness(shown: dict[str, Shown]) -> dict[str, Any]:
    """By task: coverage, and median distances of the samples to training volumes and truth (HU, root mean square)."""
    found = {}
    for name, each in shown.items():
        like = each.truth.likeness
        assert like is not None
        found[name] = {
            "coverage": each.truth.coverage,
            "residual_over_noise_of_samples": fmean(each.found.residuals) / each.found.noise_std,
            "to_training": median(like.to_training),
            "to_truth": median(like.to_truth),
            "truth_to_training": like.truth_to_training,
        }
    return found


def brief_table(shown: dict[str, Shown]) -> str:
    """Markdown for docs/guided.md: a row per task."""
    lines = [
        "| measured | mean of the samples | one sample | best without a model | 90 % intervals hold | residual / noise |",
        "|---|---|---|---|---|---|",
    ]
    for each in shown.values():
        figures, best = each.truth.accuracy, each.case.baseline[0]
        cells = [_brief(figures["mean"]), _brief(figures["sample"]), f"{_brief(figures[best])} ({best})"]
        ratio = fmean(each.found.residuals) / each.found.noise_std
        lines.append(
            f"| {each.task.title} | {' | '.join(cells)} | {100 * each.truth.coverage['0.9']:.0f} % | {ratio:.1f} |"
        )
    return "\n".join(lines)


def full_table(shown: dict[str, Shown]) -> str:
    """Markdown for docs/benchmarks.md: every volume of every task, then coverage and likeness."""
    lines = [
        "| measured | volume | PSNR, dB | SSIM | "
        + " | ".join(f"{tissue}, HU" for tissue in TISSUES)
        + " | residual / noise |",
        "|---|---|" + "---|" * (len(TISSUES) + 3),
    ]
    for row in rows(shown):
        errors = " | ".join(
            "–" if row["error_hu"][tissue] is None else f"{row['error_hu'][tissue]:.0f}" for tissue in TISSUES
        )
        lines.append(
            f"| {TASKS[row['task']].title} | {row['volume']} | {row['psnr_db']:.1f} | {row['ssim']:.3f} | {errors} | "
            f"{row['residual_over_noise']:.1f} |"
        )
    lines += [
        "",
        "| measured | 50 % | 80 % | 90 % | 95 % | samples to training | samples to truth | truth to training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, each in likeness(shown).items():
        inside = " | ".join(f"{100 * share:.0f} %" for share in each["coverage"].values())
        distances = " | ".join(f"{each[key]:.0f}" for key in ("to_training", "to_truth", "truth_to_training"))
        lines.append(f"| {TASKS[name].title} | {inside} | {distances} |")
    return "\n".join(lines)


def _brief(figures: Accuracy) -> str:
    return f"{figures.psnr_db:.1f} dB, {figures.ssim:.2f}, {figures.error_hu['all']:.0f} HU"


def replace(document: Path, text: str) -> None:
    """Put text between the markers of a document.

    Raises: ValueError: it has none.
    """
    before = document.read_text(encoding="utf-8")
    if BEGIN not in before or END not in before:
        raise ValueError(f"{document} needs {BEGIN!r} and {END!r} on lines of their own")
    head, tail = before.partition(BEGIN)[0], before.partition(END)[2]
    document.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.guided_show")
    parser.add_argument("store", type=Path)
    parser.add_argument("checkpoint", type=Path, help="directory of the checkpoint")
    parser.add_argument("volume", help="id of a held-out volume of the store")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--guide", default="projection")
    parser.add_argument(
        "--docs", action="store_true", help="also write docs/img, docs/guided.md and docs/benchmarks.md"
    )
    arguments = parser.parse_args()
    checkpoint = committed_ref(arguments.checkpoint)
    if checkpoint is None:
        parser.error(f"{arguments.checkpoint} is not the directory of a checkpoint")
    source = StoredVolume(newest(VolumeStore.open(arguments.store)), arguments.volume)
    config = ReconstructConfig(num_volumes=arguments.samples, guide=arguments.guide, num_steps=50, nifti=False)
    shown = {name: reconstructed(name, checkpoint, source, config, arguments.workdir) for name in TASKS}
    figures = REPOSITORY / "docs" / "img" if arguments.docs else arguments.workdir / "show"
    figures.mkdir(parents=True, exist_ok=True)
    for name, each in shown.items():
        sheet(each.case).save(figures / f"guided-{name}.png", optimize=True)
    (figures / "guided-calibration.png").write_bytes(
        calibration({each.task.title: each.truth.coverage for each in shown.values()})
    )
    if arguments.docs:
        replace(REPOSITORY / "docs" / "guided.md", brief_table(shown))
        replace(REPOSITORY / "docs" / "benchmarks.md", full_table(shown))
    sys.stderr.write(f"{brief_table(shown)}\n\n{full_table(shown)}\n")
    sys.stdout.write(json.dumps({"rows": list(rows(shown)), "samples": likeness(shown)}) + "\n")


if __name__ == "__main__":
    main()
