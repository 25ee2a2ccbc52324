"""Figures of `tests.bench.guided_show`: one sheet of slices per measurement, and one calibration plot."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from prdit_models.inverse.operator import MeasurementOperator
from tasks.evaluate.curves import ACCENT, INK, PALE, SECOND, new_figure, png, style_axes
from tasks.model.slices import DisplayWindow
from tasks.reconstruct.pictures import BODY, measured_volume, slices, through_lungs, views, voxels

CELL, LEFT, HEAD, GAP, COLUMNS = 116, 14, 16, 3, 4  # pixels; a sheet is at most 512 wide and high
BASELINES = {
    "nearest": "no model: nearest",
    "trilinear": "no model: trilinear",
    "spline": "no model: spline",
    "sirt": "no model: SIRT",
    "fdk": "no model: FDK",
}
SPREAD = DisplayWindow("spread", 300, 150)
FONT = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # has ³ and −, unlike Pillow's own
Hu = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """What a sheet shows, HU of shape (z, y, x) each.

    Attributes:
        operator, values: of the measurement; values of shape (1, …).
        measured: title of its picture.
        truth: that was measured.
        baseline: name and volume of the best one.
        mean, std: of the samples.
        samples: two of them.
        num_samples: there are.
    """

    operator: MeasurementOperator
    values: torch.Tensor
    measured: str
    truth: Hu
    baseline: tuple[str, Hu]
    mean: Hu
    std: Hu
    samples: list[Hu]
    num_samples: int


def sheet(case: Case) -> Image.Image:
    """Truth, measurement, best baseline and mean; two samples, spread and error of the mean: axial and coronal slices."""
    coarse = measured_volume(case.operator, case.values)
    at = through_lungs(case.truth, case.operator)
    mm = case.operator.grid.spacing_mm[0]

    def smooth(hu: Hu, window: DisplayWindow = BODY) -> list[Image.Image]:
        return slices(hu, mm, window, at, tile=CELL, marks=0)[:2]

    name, baseline = case.baseline
    measured = views(case.values, CELL) if coarse is None else voxels(coarse, mm, BODY, at, tile=CELL, marks=0)
    panels = {
        "truth (held out)": smooth(case.truth),
        case.measured: measured[:2],
        BASELINES[name]: smooth(baseline),
        f"mean of {case.num_samples} samples": smooth(case.mean),
        "sample 1": smooth(case.samples[0]),
        "sample 2": smooth(case.samples[1]),
        "std, 0–300 HU": smooth(case.std, SPREAD),
        "|mean − truth|": smooth(np.abs(case.mean - case.truth), SPREAD),
    }
    return _assembled(panels)


def _assembled(panels: Mapping[str, list[Image.Image]]) -> Image.Image:
    """Panels in rows of `COLUMNS`, an axial slice above a coronal one."""
    blocks = -(-len(panels) // COLUMNS)
    height = HEAD + 2 * (CELL + GAP)
    picture = Image.new("RGB", (LEFT + COLUMNS * (CELL + GAP), blocks * height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.truetype(FONT, 10)
    for number, (title, pair) in enumerate(panels.items()):
        block, column = divmod(number, COLUMNS)
        left, top = LEFT + column * (CELL + GAP), block * height
        draw.text((left + CELL / 2, top + HEAD / 2), title, fill=INK, font=font, anchor="mm")
        for row, each in enumerate(pair):
            picture.paste(each, (left, top + HEAD + row * (CELL + GAP)))
            if column == 0:
                picture.paste(_upright(("axial", "coronal")[row], font), (0, top + HEAD + row * (CELL + GAP)))
    return picture


def _upright(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """A word that runs upwards beside a panel."""
    label = Image.new("RGB", (CELL, LEFT), "white")
    ImageDraw.Draw(label).text((CELL / 2, LEFT / 2), text, fill=INK, font=font, anchor="mm")
    return label.rotate(90, expand=True)


def calibration(coverage: Mapping[str, Mapping[str, float]]) -> bytes:
    """Observed over nominal coverage, one line per task, PNG of at most 512 pixels.

    Args:
        coverage: by task, share of voxels inside their intervals by nominal coverage as text.
    """
    figure = new_figure(3.0, 2.8)
    panel = figure.subplots()
    style_axes(panel)
    panel.plot([0, 1], [0, 1], color=PALE, linewidth=1, label="calibrated")
    for (name, shares), color in zip(coverage.items(), (ACCENT, SECOND, INK, "#8a5fa8"), strict=False):
        panel.plot(
            [float(level) for level in shares], list(shares.values()), "o-", color=color, markersize=3, label=name
        )
    panel.set_xlabel("nominal coverage of the interval", fontsize=8)
    panel.set_ylabel("voxels whose interval holds the truth", fontsize=8)
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    panel.legend(frameon=False, fontsize=7, loc="lower right")
    return png(figure)
