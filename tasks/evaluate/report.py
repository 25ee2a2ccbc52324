"""The report: one self-contained HTML page from measured figures, pictures and the chain of provenance."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from storage.artifacts import Ref
from storage.files import write_bytes_atomic
from storage.geometry import Volume
from tasks.evaluate.curves import draw_histograms, draw_losses, read_metrics
from tasks.evaluate.lineage import LUNG_LIMIT, Node, package_versions, store_facts, trace
from tasks.evaluate.measures import HistogramSum
from tasks.evaluate.slices import WINDOWS, draw_volume, png_bytes
from tasks.sample.checkpoint import CheckpointInfo

TITLES = {
    "fid": "FID, all real volumes",
    "mmd": "MMD, all real volumes",
    "fid_val": "FID, held-out volumes only",
    "mmd_val": "MMD, held-out volumes only",
    "hu_mean_real": "Mean, real",
    "hu_mean_generated": "Mean, generated",
    "hu_std_real": "Standard deviation, real",
    "hu_std_generated": "Standard deviation, generated",
    "hu_std_ratio": "Standard deviation, generated / real",
    "hu_histogram_distance": "Wasserstein distance of HU histograms",
}
CARDS = {
    "fid": "FID",
    "mmd": "MMD",
    "hu_std_ratio": "HU spread, generated / real",
    "hu_histogram_distance": "HU histogram distance",
}
_LOSS_PREFIX = "val/loss_t"


@dataclass(frozen=True)
class ReportInput:
    """All the report is made from.

    Attributes:
        metrics: content of `metrics.json`.
        info: the sampled checkpoint.
        config: key fields of the evaluation's configuration.
        recipe: version of the evaluation.
        samples, store, split: references.
        histograms: HU histograms (real, generated).
        real, generated: (caption, HU (S, S, S)) of the volumes shown.
        repeat_command: the command that repeats the run, or None.
    """

    metrics: dict[str, Any]
    info: CheckpointInfo
    config: dict[str, Any]
    recipe: int
    samples: Ref
    store: Ref
    split: Ref
    histograms: tuple[HistogramSum, HistogramSum]
    real: list[tuple[str, NDArray[np.float32]]]
    generated: list[tuple[str, NDArray[np.float32]]]
    repeat_command: str | None


def write_pictures(report: ReportInput, folder: Path) -> dict[str, bytes]:
    """Draw every picture of the report and write it to `figures/`.

    Returns: PNG bytes by name: `losses`, `histogram`, `real-<i>`, `generated-<i>`.
    """
    rows = stage_rows(trace(report.samples, report.split, report.store))
    pictures = {"losses": draw_losses(rows), "histogram": draw_histograms(*report.histograms)}
    for side, volumes in (("real", report.real), ("generated", report.generated)):
        for place, (_, hu) in enumerate(volumes):
            pictures[f"{side}-{place}"] = png_bytes(draw_volume(_volume(hu, report.info.voxel_mm)))
    for name, data in pictures.items():
        write_bytes_atomic(folder / f"{name}.png", data)
    return pictures


def render(report: ReportInput, pictures: dict[str, bytes]) -> str:
    """The page as text. Nothing in it is fetched from elsewhere; every value is escaped.

    Args:
        report: what is said.
        pictures: of `write_pictures`.
    """
    nodes = trace(report.samples, report.split, report.store)
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
    metrics, figures = report.metrics, report.metrics["figures"]
    edge_mm = report.info.view.edge * report.info.spacing_mm
    return environment.get_template("report.html.j2").render(
        metrics=metrics,
        figures=figures,
        titles=TITLES,
        cards=CARDS,
        distances=[name for name in ("fid", "fid_val", "mmd", "mmd_val") if name in figures],
        hu=[name for name in figures if name.startswith("hu_")],
        windows=WINDOWS,
        info=report.info,
        stage=3 if report.info.kind == "checkpoint-refiner" else 2,
        config=report.config,
        recipe=report.recipe,
        lung_limit=LUNG_LIMIT,
        edge_mm=edge_mm,
        real=[(caption, pictures[f"real-{place}"]) for place, (caption, _) in enumerate(report.real)],
        generated=[(caption, pictures[f"generated-{place}"]) for place, (caption, _) in enumerate(report.generated)],
        losses=pictures["losses"],
        histogram=pictures["histogram"],
        per_time=per_time_table(stage_rows(nodes)),
        facts=store_facts(report.store, report.split),
        nodes=nodes,
        versions=package_versions(),
        repeat_command=report.repeat_command,
    )


def stage_rows(nodes: list[Node]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(title, rows of metrics.jsonl) of stages 1 and 2, then of every refinement; rows are empty where the file is gone."""
    titles = {"checkpoint-local": "Stage 1, local denoiser", "checkpoint-global": "Stage 2, global refiner"}
    found: dict[str, list[dict[str, Any]]] = {
        node.ref.kind: read_metrics(node.ref.path / "metrics.jsonl") for node in nodes if node.ref.kind in titles
    }
    refinements = [node.ref for node in reversed(nodes) if node.ref.kind == "checkpoint-refiner"]
    return [(title, found.get(kind, [])) for kind, title in titles.items()] + [
        ("Stage 3, one level up", read_metrics(ref.path / "metrics.jsonl")) for ref in refinements
    ]


def per_time_table(stages: list[tuple[str, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Last validation loss (EMA) of stages 1 and 2 by diffusion step: rows `{t, local, global, better}`."""
    last: list[dict[int, float]] = []
    for _, rows in stages[:2]:
        losses: dict[int, float] = {}
        for row in rows:
            losses |= {
                int(key.removeprefix(_LOSS_PREFIX)): float(value)
                for key, value in row.items()
                if key.startswith(_LOSS_PREFIX) and value is not None
            }
        last.append(losses)
    local, global_ = last
    return [
        {
            "t": t,
            "local": local.get(t),
            "global": global_.get(t),
            "better": t in local and t in global_ and global_[t] < local[t],
        }
        for t in sorted({*local, *global_})
    ]


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
    """A given quantity (a size, a window) without trailing zeros."""
    return f"{value:.6g}".replace("-", "−")


def interval(value: dict[str, Any] | None) -> str:
    """An interval as `low to high`."""
    return "–" if value is None else f"{number(value['low'])} to {number(value['high'])}"


def percent(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.2f} %"


def pretty(value: Any) -> str:
    """JSON for reading."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)


def data_uri(png: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
