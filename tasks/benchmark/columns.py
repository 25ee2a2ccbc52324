"""The columns of a benchmark's table, and where each number comes from."""

from dataclasses import dataclass

from prdit_models.metrics.distances import RANDOM_SUFFIX
from storage.documents.report import FigureRecord, Report


@dataclass(frozen=True)
class Column:
    """One number of a line.

    Attributes:
        name: in benchmark.json and the CSV.
        title, unit: in the table.
        better: `lower`, `higher`, or empty where neither is.
        figures: names of the evaluation's figures, the first that is there is taken; empty for costs.
        floor: name of the figure of real volumes to read it by; empty: the same figure of one half of them against the other.
        scale: the table shows the value divided by this.
    """

    name: str
    title: str
    unit: str = ""
    better: str = ""
    figures: tuple[str, ...] = ()
    floor: str = ""
    scale: float = 1.0


def _named(name: str) -> tuple[str, ...]:
    return name, name + RANDOM_SUFFIX


_MS_SSIM = ("ms_ssim", *(f"ms_ssim_{scales}_scales" for scales in (4, 3, 2)))
QUALITY = (
    Column("fid", "3D FID", better="lower", figures=_named("fid")),
    Column("kid", "KID", better="lower", figures=_named("kid")),
    Column("mmd", "MMD", better="lower", figures=_named("mmd")),
    Column(
        "wasserstein", "Wasserstein, critic", better="lower", figures=_named("wasserstein"), floor="wasserstein_real"
    ),
    Column("ms_ssim", "MS-SSIM of two", figures=_MS_SSIM, floor="ms_ssim_real"),
    Column("precision", "Precision", better="higher", figures=_named("precision")),
    Column("recall", "Recall", better="higher", figures=_named("recall")),
    Column("anatomy", "Could be a chest", "%", "higher", ("anatomy_pass_share",), "anatomy_pass_share_real", 0.01),
    Column("copies", "May be copies", "%", "lower", ("copy_rate",), "copy_rate_held_out", 0.01),
    Column(
        "nearest_training",
        "To nearest training volume",
        figures=_named("nearest_training_distance"),
        floor="nearest_training_distance_held_out",
    ),
)
COSTS = (
    Column("parameters", "Parameters", "M", scale=1e6),
    Column("flops_per_volume", "Training FLOPs per volume", "GFLOP", scale=1e9),
    Column("peak_memory", "Peak memory of training", "GiB", scale=2.0**30),
    Column("training_seconds", "Training", "s"),
    Column("training_steps", "Optimiser steps"),
    Column("volumes_seen", "Volumes seen"),
    Column("evaluations", "Evaluations per volume"),
    Column("sampling_seconds", "Sampling per volume", "s"),
)
COLUMNS = QUALITY + COSTS


def quality_of(report: Report) -> dict[str, float | None]:
    """The figures of an evaluation by column."""
    return {column.name: _value(report.figures, column.figures) for column in QUALITY}


def floor_of(report: Report) -> dict[str, float | None]:
    """The figures of real volumes by column: of one half against the other, or of all of them by themselves."""
    halves = report.references.get("floor", {})
    found: dict[str, float | None] = {}
    for column in QUALITY:
        if not column.floor:
            found[column.name] = _value(halves, column.figures)
            continue
        used = next((name for name in column.figures if name in report.figures), "")
        found[column.name] = _value(report.figures, (_beside(column, used), *_named(column.floor)))
    return found


def floor_note(report: Report) -> str:
    """What the floor's figures are of."""
    halves = report.references.get("floor", {})
    first = next((halves[name] for column in QUALITY for name in column.figures if name in halves), None)
    if first is None:
        return "There are too few real volumes for figures of one half of them against the other."
    return (
        f"Real against real: one half of the real volumes against the other (n = {first.n_real} and {first.n_generated}; the rows "
        f"have {report.n_real} and {report.n_generated}); MS-SSIM, anatomy, copies and nearest training volume: of all real, or of "
        "held-out volumes."
    )


def _beside(column: Column, used: str) -> str:
    """Name of the real counterpart of the figure that was taken: of MS-SSIM over as many scales."""
    return f"{used}_real" if column.name == "ms_ssim" and used else column.floor


def _value(figures: dict[str, FigureRecord], names: tuple[str, ...]) -> float | None:
    return next((figures[name].value for name in names if name in figures), None)
