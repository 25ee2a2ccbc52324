"""Curves of the report: losses of the trainings and HU histograms, drawn without matplotlib's global state."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from prdit_models.metrics.histogram import HistogramSum
from storage.errors import DamagedArtifactError

INK, PALE, ACCENT, SECOND = "#1f2933", "#b8c2cc", "#0b6e6e", "#c2571a"
DPI = 170
_SMOOTHED_SHARE = 0.04  # of a curve
Points = tuple[NDArray[np.float64], NDArray[np.float64]]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`; empty where there is none.

    Raises: DamagedArtifactError: a line is not JSON, or not an object with a step.
    """
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DamagedArtifactError(f"{path} has a line that is not JSON ({error}). Train the stage again.") from error
    if not all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows):
        raise DamagedArtifactError(f"{path} has a line that is no object with a step. Train the stage again.")
    return rows


def series(rows: Sequence[dict[str, Any]], name: str) -> Points:
    """Steps and finite values of one metric, in the order of the rows."""
    pairs = [(row["step"], row[name]) for row in rows if row.get(name) is not None and np.isfinite(row[name])]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred moving mean over a share of the values (at least 1), shortened at the ends instead of padded."""
    half = int(len(values) * _SMOOTHED_SHARE / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    first, last = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    mean: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return mean


def draw_losses(stages: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> bytes:
    """Loss curves, one panel per training on a common log axis: train (raw and smoothed), validation (raw weights and EMA).

    Args:
        stages: (title, rows of metrics.jsonl) in order.
    Returns: PNG.
    """
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    panels = figure.subplots(1, len(stages), sharey=True, squeeze=False)[0]
    for panel, (title, rows) in zip(panels, stages, strict=True):
        steps, losses = series(rows, "train/loss")
        if len(steps):
            panel.plot(steps, losses, color=PALE, linewidth=0.7)
            panel.plot(steps, smooth(losses), color=INK, linewidth=1.4, label="train (smoothed)")
        for name, color, marker, label in (
            ("val/loss", SECOND, "o", "validation, raw weights"),
            ("val/loss_ema", ACCENT, "s", "validation, EMA"),
        ):
            steps, losses = series(rows, name)
            if len(steps):
                panel.plot(steps, losses, color=color, linewidth=1.1, marker=marker, markersize=3.5, label=label)
        _style_axes(panel)
        panel.set_title(title, loc="left", fontsize=10, color=INK)
        panel.set_xlabel("step", fontsize=9)
        if panel.has_data():
            panel.set_yscale("log")
            panel.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("loss", fontsize=9)
    return _png(figure)


def draw_histograms(real: HistogramSum, generated: HistogramSum) -> bytes:
    """Share of voxels by HU, both sides, log axis: PNG."""
    figure = Figure(figsize=(10.5, 2.9), layout="constrained")
    panel = figure.subplots()
    for side, color, label in ((real, INK, "real"), (generated, ACCENT, "generated")):
        panel.stairs(side.density, side.edges, color=color, linewidth=1.4, label=f"{label} (n = {side.num_volumes})")
    if (real.counts.sum() + generated.counts.sum()) > 0:
        panel.set_yscale("log")
    _style_axes(panel)
    panel.set_xlabel("HU (values outside the window sit in the outermost bins)", fontsize=9)
    panel.set_ylabel("share of voxels", fontsize=9)
    panel.legend(frameon=False, fontsize=8)
    return _png(figure)


def _style_axes(panel: Any) -> None:
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.tick_params(labelsize=8, colors=INK, which="both")
    panel.grid(axis="y", color="#e5e9ed", linewidth=0.6)
    panel.set_axisbelow(True)


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()
