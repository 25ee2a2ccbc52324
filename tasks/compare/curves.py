"""Curves of several runs in one picture: validation losses, HU histograms, power spectra; without matplotlib's global state."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.compare.runs import Run
from tasks.evaluate.curves import INK, new_figure, png, read_metrics, series, style_axes

COLORS = ("#0b6e6e", "#c2571a", "#5b4b9e", "#a3324b", "#4d7c0f", "#1d6fb8")
_LOSS = "val/loss_ema"


def draw_curves(runs: Sequence[Run]) -> bytes | None:
    """A panel each for the last training's validation loss, the HU histogram and the power spectrum, where runs have them.

    Returns: PNG, or None where no run has any.
    """
    drawn = [found for found in (_losses(runs), _histograms(runs), _spectra(runs)) if found is not None]
    if not drawn:
        return None
    figure = new_figure(12.0, 3.2)
    for panel, (curves, axis, height, log) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        for label, color, x, y in curves:
            panel.plot(x, y, color=color, linewidth=1.3, label=label, marker="o" if len(x) < 3 else None, markersize=3)
        if log:
            panel.set_yscale("log")
        style_axes(panel)
        panel.set_xlabel(axis, fontsize=9)
        panel.set_ylabel(height, fontsize=9)
        panel.legend(frameon=False, fontsize=8)
    return png(figure)


Curve = tuple[str, str, Any, Any]  # label, colour, x, y
Panel = tuple[list[Curve], str, str, bool]  # curves, x axis, y axis, whether that is logarithmic


def _losses(runs: Sequence[Run]) -> Panel | None:
    """Of the training whose weights were sampled."""
    curves = []
    for place, run in enumerate(runs):
        checkpoints = [node.ref for node in run.nodes if node.ref.kind == "checkpoint"]
        rows = read_metrics(checkpoints[0].path / "metrics.jsonl") if checkpoints else []
        steps, losses = series(rows, _LOSS)
        if len(steps):
            curves.append((run.label, _color(place), steps, losses))
    return (curves, "step of the last training", "validation loss, EMA", True) if curves else None


def _histograms(runs: Sequence[Run]) -> Panel | None:
    found = {run.label: run.report.details.get("hu", {}) for run in runs}
    found = {label: hu for label, hu in found.items() if "edges_hu" in hu}
    if not found:
        return None
    first = next(iter(found.values()))
    middles = {label: np.convolve(hu["edges_hu"], [0.5, 0.5], "valid") for label, hu in found.items()}
    curves = [("real", INK, middles[next(iter(found))], _positive(first["share_real"]))]
    curves += [
        (run.label, _color(place), middles[run.label], _positive(found[run.label]["share_generated"]))
        for place, run in enumerate(runs)
        if run.label in found
    ]
    return curves, "HU", "share of voxels", True


def _spectra(runs: Sequence[Run]) -> Panel | None:
    found = {run.label: run.report.details.get("spectrum", {}) for run in runs}
    found = {label: spectrum for label, spectrum in found.items() if "frequency_per_mm" in spectrum}
    if not found:
        return None
    first = next(iter(found.values()))
    curves = [("real", INK, first["frequency_per_mm"], first["real"]["mean_db"])]
    curves += [
        (run.label, _color(place), found[run.label]["frequency_per_mm"], found[run.label]["generated"]["mean_db"])
        for place, run in enumerate(runs)
        if run.label in found
    ]
    return curves, "spatial frequency, cycles per mm", "power, dB of 1 HU²·mm³", False


def _positive(shares: Sequence[float]) -> list[float | None]:
    """Shares as a logarithmic axis takes them: nothing where there is none."""
    return [share if share > 0 else None for share in shares]


def _color(place: int) -> str:
    return COLORS[place % len(COLORS)]
