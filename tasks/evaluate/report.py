"""The report: one self-contained HTML page from measured figures, pictures and the chain of provenance."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from prdit_models.metrics.anatomy import Limit
from prdit_models.metrics.distances import RANDOM_SUFFIX
from prdit_models.metrics.histogram import HistogramSum
from prdit_models.metrics.metric import METRICS
from storage.artifacts import Ref
from storage.documents.report import FigureRecord, Report
from storage.errors import StorageError
from storage.files import write_bytes_atomic
from storage.geometry import Volume
from tasks.evaluate.curves import draw_histograms, draw_losses, read_metrics
from tasks.evaluate.lineage import LUNG_LIMIT, Node, package_versions, store_facts, trace
from tasks.model.checkpoint import CheckpointInfo, load_info
from tasks.model.slices import WINDOWS, draw_volume, png_bytes

ANATOMY_CARDS = {  # a figure and the one it is compared with
    "anatomy_pass_share": ("Samples that could be a chest", "anatomy_pass_share_real"),
    "nearest_training_distance": ("Samples to nearest training volume", "nearest_training_distance_held_out"),
    "pairwise_distance": ("Between two samples", "pairwise_distance_real"),
}
CARDS = {
    "fid": "FID",
    "mmd": "MMD",
    "hu_std_ratio": "HU spread, generated / real",
    "hu_histogram_distance": "HU histogram distance",
}
RANDOM_WORDS = " (random features)"
OWN_METRICS = ("anatomy", "copies", "distances", "hu")  # whose figures have sections of the page
_LOSS_PREFIX = "val/loss_"


@dataclass(frozen=True)
class ReportInput:
    """Everything the report is made from.

    Attributes:
        metrics: what was measured.
        info: the sampled checkpoint.
        config: key fields of the evaluation's configuration.
        recipe: version of the evaluation.
        samples, snapshot, split: references.
        histograms: HU histograms (real, generated).
        real, generated: (caption, HU (S, S, S)) of the volumes shown.
        nearest: the training volumes nearest to the generated ones shown.
        repeat_command: the command that repeats the run, or None.
    """

    metrics: Report
    info: CheckpointInfo
    config: dict[str, Any]
    recipe: int
    samples: Ref
    snapshot: Ref
    split: Ref
    histograms: tuple[HistogramSum, HistogramSum]
    real: list[tuple[str, NDArray[np.float32]]]
    generated: list[tuple[str, NDArray[np.float32]]]
    nearest: list[tuple[str, NDArray[np.float32]]]

    @property
    def shown(self) -> dict[str, list[tuple[str, NDArray[np.float32]]]]:
        """The volumes with pictures, by the name of their group."""
        return {"real": self.real, "generated": self.generated, "nearest": self.nearest}

    repeat_command: str | None


def write_pictures(report: ReportInput, folder: Path) -> dict[str, bytes]:
    """Draw every picture of the report and write it to `figures/`.

    Returns: PNG bytes by name: `losses`, `histogram`, `real-<i>`, `generated-<i>`, `nearest-<i>`.
    """
    rows = training_rows(trace(report.samples, report.split, report.snapshot))
    pictures = {"losses": draw_losses(rows), "histogram": draw_histograms(*report.histograms)}
    for side, volumes in report.shown.items():
        for place, (_, hu) in enumerate(volumes):
            pictures[f"{side}-{place}"] = png_bytes(draw_volume(_volume(hu, report.info.voxel_mm)))
    for name, data in pictures.items():
        write_bytes_atomic(folder / f"{name}.png", data)
    return pictures


def render(report: ReportInput, pictures: dict[str, bytes]) -> str:
    """The page as text. It loads nothing from elsewhere; every value is escaped.

    Args:
        report: what the page shows.
        pictures: of `write_pictures`.
    """
    nodes = trace(report.samples, report.split, report.snapshot)
    environment = Environment(
        loader=PackageLoader("tasks.evaluate", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, plain=plain, interval=interval, picture=data_uri, percent=percent, pretty=pretty
    )
    environment.filters.update(whole_percent=whole_percent, span=span, short=short)
    metrics, figures = report.metrics, report.metrics.figures
    edge_mm = report.info.view.edge * report.info.spacing_mm
    return environment.get_template("report.html.j2").render(
        metrics=metrics,
        figures=figures,
        title=title,
        anatomy_cards={name: card for name, card in ANATOMY_CARDS.items() if name in figures},
        cards=cards(figures),
        distances=[name for name in figures if name in METRICS["distances"].titles],
        anatomy=anatomy_table(metrics),
        hu=[name for name in figures if name in METRICS["hu"].titles],
        others=other_figures(figures),
        windows=WINDOWS,
        info=report.info,
        family=report.info.of_family.title,
        config=report.config,
        recipe=report.recipe,
        lung_limit=LUNG_LIMIT,
        edge_mm=edge_mm,
        **{
            side: [(caption, pictures[f"{side}-{place}"]) for place, (caption, _) in enumerate(volumes)]
            for side, volumes in report.shown.items()
        },
        losses=pictures["losses"],
        histogram=pictures["histogram"],
        per_time=loss_table(comparable(nodes)),
        facts=store_facts(report.snapshot, report.split),
        nodes=nodes,
        versions=package_versions(),
        repeat_command=report.repeat_command,
    )


Rows = list[dict[str, Any]]


def training_rows(nodes: list[Node]) -> list[tuple[str, Rows]]:
    """(title, rows of metrics.jsonl) of the trainings in order; rows are empty where the file is missing."""
    checkpoints = [node for node in reversed(nodes) if node.ref.kind == "checkpoint"]
    return [(_training_title(node), read_metrics(node.ref.path / "metrics.jsonl")) for node in checkpoints]


def comparable(nodes: list[Node]) -> list[tuple[str, Rows]]:
    """Those of `training_rows` whose losses can be compared: volumes of the size of the first training's."""
    checkpoints = [node for node in nodes if node.ref.kind == "checkpoint"]
    try:
        sizes = {_training_title(node): load_info(node.ref).view.size for node in checkpoints}
    except (StorageError, ValueError):
        return []
    found = training_rows(nodes)
    return [(name, rows) for name, rows in found if sizes[name] == sizes[found[0][0]]]


def _training_title(node: Node) -> str:
    stage = node.record.stage.removeprefix("train-") if node.record else ""
    words = node.title.removeprefix("Checkpoint: ")
    return f"{words} ({stage})" if stage and stage not in words else words


def title(name: str) -> str:
    """A figure's title: as its metric gives it, else the name itself."""
    titles = {figure: text for metric in METRICS.names() for figure, text in METRICS[metric].titles.items()}
    return titles.get(name, name)


def other_figures(figures: dict[str, FigureRecord]) -> list[str]:
    """Figures without a section of their own on the page: those of other packages' metrics."""
    ours = {figure for metric in OWN_METRICS for figure in METRICS[metric].titles}
    return [name for name in figures if name not in ours and not name.startswith("anatomy_")]


def cards(figures: dict[str, FigureRecord]) -> dict[str, str]:
    """The figures on cards, in the order of `CARDS`, with their titles."""
    found = {name.removesuffix(RANDOM_SUFFIX): name for name in figures}
    return {
        found[base]: text + RANDOM_WORDS * found[base].endswith(RANDOM_SUFFIX)
        for base, text in CARDS.items()
        if base in found
    }


def anatomy_table(metrics: Report) -> list[dict[str, Any]]:
    """One row per figure: title, unit, limits, (low, median, high) of both sides, how many generated are outside, distance."""
    section, rows = metrics.details["anatomy"], []
    for name, limit in section.get("limits", {}).items():
        allowed = Limit(**limit)
        row: dict[str, Any] = {"title": limit["title"], "unit": limit["unit"]}
        row["limits"] = allowed.bounds(metrics.voxel_mm)
        for side in ("real", "generated"):
            values = [v for seen in section[side].values() if (v := seen["figures"][name]) is not None]
            row[side] = np.quantile(values, [0, 0.5, 1]).tolist() if values else None
        row["outside"] = sum(name in seen["failed"] for seen in section["generated"].values())
        row["distance"] = metrics.figures[f"anatomy_{name}_distance"].value
        rows.append(row)
    return rows


def loss_table(trainings: list[tuple[str, Rows]]) -> dict[str, Any]:
    """Last validation losses (EMA) of trainings by time: `{titles, rows: [{part, losses, better}]}`.

    `better` says whether the last training's loss is below the first's; there is a table only where two can be compared.
    """
    last: list[dict[str, float]] = []
    for _, rows in trainings:
        losses: dict[str, float] = {}
        for row in rows:
            losses |= {
                key.removeprefix(_LOSS_PREFIX): float(value)
                for key, value in row.items()
                if key.startswith(_LOSS_PREFIX) and key != "val/loss_ema" and value is not None
            }
        last.append(losses)
    shared = sorted(set.intersection(*map(set, last))) if len(last) > 1 else []
    table = [
        {"part": part, "losses": [losses[part] for losses in last], "better": last[-1][part] < last[0][part]}
        for part in shared
    ]
    return {"titles": [name for name, _ in trainings], "rows": table}


def _volume(hu: NDArray[np.float32], voxel_mm: float) -> Volume:
    limits = np.iinfo(np.int16)
    rounded = np.clip(np.rint(hu), limits.min, limits.max).astype(np.int16)
    return Volume(rounded, (voxel_mm,) * 3, (0.0,) * 3)


def number(value: float | None) -> str:
    """A figure with four significant digits; a dash where there is none."""
    if value is None:
        return "–"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3e}"
    digits = max(0, 3 - int(np.floor(np.log10(abs(value))))) if value else 0
    return f"{value:.{digits}f}".replace("-", "−")


def plain(value: float) -> str:
    """A configured quantity (a size, a window) without trailing zeros."""
    return f"{value:.6g}".replace("-", "−")


def interval(value: dict[str, Any] | None) -> str:
    """An interval as `low to high`."""
    return "–" if value is None else f"{number(value['low'])} to {number(value['high'])}"


def percent(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.2f} %"


def whole_percent(value: float) -> str:
    """A share of volumes as a percentage."""
    return f"{100 * value:.0f} %"


def span(values: list[float] | None) -> str:
    """Lowest, median and highest value of a side as `median (lowest to highest)`."""
    return "–" if values is None else f"{short(values[1])} ({short(values[0])} to {short(values[2])})"


def short(value: float) -> str:
    """A figure with three significant digits, whole from 100 on."""
    return (f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", "−")


def pretty(value: Any) -> str:
    """JSON for reading."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)


def data_uri(png: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
