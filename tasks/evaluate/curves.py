"""Curves of the report: losses of the trainings, HU histograms, spectra, anatomy; drawn without matplotlib's global state."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import DamagedArtifactError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, PALE, ACCENT, SECOND = "#1f2933", "#b8c2cc", "#0b6e6e", "#c2571a"
DPI = 170
_SMOOTHED_SHARE = 0.04  # of a curve
_GOLDEN = 0.6180339887  # its multiples are spread evenly between whole numbers
_SIDES = (("real", INK), ("generated", ACCENT))
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
    figure = new_figure(10.5, 3.4)
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
        style_axes(panel)
        panel.set_title(title, loc="left", fontsize=10, color=INK)
        panel.set_xlabel("step", fontsize=9)
        if panel.has_data():
            panel.set_yscale("log")
            panel.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("loss", fontsize=9)
    return png(figure)


def draw_anatomy(table: Sequence[dict[str, Any]]) -> bytes:
    """The values of every anatomy figure, a point per volume, both sides, the limits shaded: PNG.

    Args:
        table: rows of `tables.anatomy_table`.
    """
    columns = 4
    lines = -(-len(table) // columns)
    figure = new_figure(10.5, 1.35 * lines)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel in panels[len(table) :]:
        panel.set_axis_off()
    for panel, row in zip(panels, table, strict=False):
        sides = [np.array(row[f"{side}_values"], dtype=np.float64) for side in ("generated", "real")]
        seen = np.concatenate(sides) if any(map(len, sides)) else np.array(row["limits"])
        margin = 0.06 * (np.ptp(seen) or abs(seen[0]) or 1.0)
        panel.axvspan(*row["limits"], color="#eef5f4", linewidth=0)
        for line, (values, color) in enumerate(zip(sides, (ACCENT, INK), strict=True)):
            if not len(values):
                continue
            spread = (np.arange(len(values)) * _GOLDEN % 1 - 0.5) * 0.6  # apart, and the same each time
            panel.scatter(
                values, line + spread, s=9, color=color, alpha=float(np.clip(30 / len(values), 0.08, 0.8)), linewidths=0
            )
            panel.plot([np.median(values)] * 2, [line - 0.42, line + 0.42], color=color, linewidth=1.6)
        panel.set_xlim(seen.min() - margin, seen.max() + margin)
        panel.set_ylim(-0.6, 1.6)
        panel.set_yticks([0, 1], ["generated", "real"], fontsize=7)
        panel.set_title(_short_title(row), loc="left", fontsize=7.5, color=INK)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
        panel.tick_params(axis="x", labelsize=7, colors=INK)
        panel.tick_params(axis="y", length=0, colors=INK)
    return png(figure)


def _short_title(row: dict[str, Any]) -> str:
    unit = f", {row['unit']}" if row["unit"] else ""
    most = 34 - len(unit)
    title = row["title"] if len(row["title"]) <= most else row["title"][: most - 1].rstrip() + "…"
    return f"{title}{unit}"


def draw_histograms(hu: dict[str, Any]) -> bytes:
    """Share of voxels by HU, both sides, log axis, with the bands of tissue: PNG.

    Args:
        hu: details of the metric `hu`.
    """
    figure, panel = _one_panel()
    edges = hu["edges_hu"]
    sides = [(hu[f"share_{side}"], color, side) for side, color in _SIDES]
    for values, color, side in sides:
        panel.stairs(values, edges, color=color, linewidth=1.4, label=side)
    if max(max(values) for values, _, _ in sides) > 0:
        panel.set_yscale("log")
    for number, band in enumerate(hu.get("bands", {}).values()):
        low, high = max(band["low_hu"], edges[0]), min(band["high_hu"], edges[-1])
        if low < high:
            panel.axvspan(low, high, color=("#f1f5f7", "#ffffff")[number % 2], linewidth=0, zorder=0)
            place = ((low + high) / 2, 1.0)
            panel.annotate(
                band["title"],
                place,
                xycoords=("data", "axes fraction"),
                ha="center",
                va="bottom",
                fontsize=8,
                color=INK,
            )
    panel.set_xlim(edges[0], edges[-1])
    panel.set_xlabel("HU (values outside the window sit in the outermost bins)", fontsize=9)
    panel.set_ylabel("share of voxels", fontsize=9)
    panel.legend(frameon=False, fontsize=8)
    return png(figure)


def draw_spectrum(spectrum: dict[str, Any]) -> bytes:
    """Mean power by spatial frequency and the middle 80 % of volumes, both sides: PNG.

    Args:
        spectrum: details of the metric `spectrum`.
    """
    figure, panel = _one_panel()
    frequency = spectrum["frequency_per_mm"]
    for side, color in _SIDES:
        panel.fill_between(
            frequency, spectrum[side]["p10_db"], spectrum[side]["p90_db"], color=color, alpha=0.15, linewidth=0
        )
        panel.plot(frequency, spectrum[side]["mean_db"], color=color, linewidth=1.4, label=side)
    panel.set_xlim(frequency[0], frequency[-1])
    panel.set_xlabel("spatial frequency, cycles per mm", fontsize=9)
    panel.set_ylabel("power, dB of 1 HU²·mm³", fontsize=9)
    panel.legend(frameon=False, fontsize=8)
    return png(figure)


def draw_likeness(memorisation: dict[str, Any], ms_ssim: dict[str, Any]) -> bytes | None:
    """Distances to the nearest training volume, and MS-SSIM of pairs, as histograms: PNG, or None where neither was measured.

    Args:
        memorisation, ms_ssim: details of these metrics; empty where they were left out.
    """
    wanted = []
    if distances := memorisation.get("distances_hu"):
        sides = [("held-out volumes", distances["held_out"], INK), ("samples", distances["generated"], ACCENT)]
        wanted.append(("root mean square to the nearest training volume, HU", sides, memorisation.get("threshold_hu")))
    if pairs := [(side, ms_ssim[side]["values"], color) for side, color in _SIDES if side in ms_ssim]:
        wanted.append(("MS-SSIM of two volumes of a side", pairs, None))
    if not wanted:
        return None
    figure = new_figure(10.5, 2.6)
    for panel, (label, values, limit) in zip(figure.subplots(1, len(wanted), squeeze=False)[0], wanted, strict=True):
        _draw_shares(panel, label, values, limit)
    return png(figure)


def draw_critics(wasserstein: dict[str, Any]) -> bytes:
    """What the critics estimate while they are trained (mean over seeds), and the estimate of each at the end, both sides: PNG.

    Args:
        wasserstein: details of the metric `wasserstein`.
    """
    figure, panel = _one_panel()
    for side, color, label in (("real", INK, "real: training to held-out"), ("generated", ACCENT, "generated")):
        found = wasserstein.get(side) or {}
        if not found:
            continue
        if trace := found.get("trace_hu"):
            place = np.arange(1, len(trace) + 1) / len(trace)
            panel.plot(place, trace, color=color, linewidth=1.4, label=label)
        values = found.get("distances_hu", [])
        panel.scatter([1.02] * len(values), values, s=16, color=color, linewidths=0, label=None if trace else label)
    panel.set_xlabel("share of a critic's training; points: estimates on volumes it has not seen", fontsize=9)
    panel.set_ylabel("distance, HU", fontsize=9)
    panel.legend(frameon=False, fontsize=8)
    return png(figure)


def _draw_shares(panel: Any, label: str, sides: Sequence[tuple[str, list[float], str]], limit: float | None) -> None:
    """Histograms of the values of two sides, as shares of each."""
    seen = np.array([value for _, values, _ in sides for value in values] + ([limit] if limit is not None else []))
    edges = np.linspace(seen.min(), seen.max() + 1e-9, 31)
    for name, values, color in sides:
        if values:
            share = np.histogram(values, edges)[0] / len(values)
            panel.stairs(share, edges, color=color, linewidth=1.4, fill=True, alpha=0.25)
            panel.stairs(share, edges, color=color, linewidth=1.2, label=f"{name} (n = {len(values)})")
    if limit is not None:
        panel.axvline(limit, color=SECOND, linewidth=1.2, linestyle="--", label="nearer: called a copy")
    style_axes(panel)
    panel.set_xlabel(label, fontsize=9)
    panel.set_ylabel("share", fontsize=9)
    panel.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3)


def _one_panel() -> tuple["Figure", Any]:
    figure = new_figure(10.5, 2.9)
    panel = figure.subplots()
    style_axes(panel)
    return figure, panel


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches."""
    from matplotlib.figure import Figure  # here: most processes that import stages draw nothing

    return Figure(figsize=(width, height), layout="constrained")


def style_axes(panel: Any) -> None:
    """Thin axes, a grid of heights."""
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.tick_params(labelsize=8, colors=INK, which="both")
    panel.grid(axis="y", color="#e5e9ed", linewidth=0.6)
    panel.set_axisbelow(True)


def png(figure: "Figure") -> bytes:
    """The figure as PNG; equal figures, equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()
