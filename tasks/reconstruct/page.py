"""The reconstruction as one self-contained HTML page; its style is the report's."""

import io
from collections.abc import Mapping
from statistics import median

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from storage.documents.measurement import Measurement
from storage.documents.reconstruction import Reconstruction
from storage.documents.samples import Samples
from tasks.evaluate.curves import ACCENT, DPI, INK, PALE
from tasks.evaluate.drawn import named
from tasks.evaluate.formats import number, percent, picture, plain
from tasks.model.slices import DisplayWindow, png_bytes
from tasks.reconstruct.comparison import Comparison
from tasks.reconstruct.pictures import BODY, in_a_row, measured_volume, shown_measurement, slices, through_lungs

Hu = NDArray[np.float32]
_ERROR = DisplayWindow("error", 400, 0)
_SPREAD = DisplayWindow("standard deviation", 300, 150)
_UNSAID = (None, 0, [0, 0])
TITLES = {
    "truth": "truth",
    "mean": "mean of the samples",
    "sample": "one sample",
    "nearest": "nearest measured value",
    "trilinear": "trilinear interpolation",
    "spline": "cubic spline",
    "fdk": "filtered backprojection (FDK)",
    "sirt": "SIRT",
}


def render(
    found: Reconstruction,
    measurement: Measurement,
    samples: Samples,
    volumes: Mapping[str, Hu],
    std: Hu | None,
    comparison: Comparison,
) -> str:
    """The page as text. It loads nothing from elsewhere; every value is escaped.

    Args:
        found: what was reconstructed.
        measurement: from what.
        samples: the list of samples.
        volumes: HU by name, as in `TITLES`; with `truth`, errors are shown too.
        std: standard deviation of the samples, HU; None of one sample.
        comparison: has the values of the measurement.
    """
    loader = ChoiceLoader([PackageLoader("tasks.reconstruct", "."), PackageLoader("tasks.evaluate", ".")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        {
            "number": number,
            "percent": percent,
            "picture": picture,
            "plain": plain,
            "named": named,
            "range": _range,
            "setting": _setting,
        }
    )
    return environment.get_template("page.html.j2").render(
        found=found,
        measurement=measurement,
        samples=samples,
        titles=TITLES,
        rows=_rows(volumes, std, samples.spacing_mm, comparison),
        calibration=_calibration(found.truth.coverage) if found.truth and found.truth.coverage else None,
    )


def _rows(
    volumes: Mapping[str, Hu], std: Hu | None, spacing_mm: float, comparison: Comparison
) -> list[list[tuple[str, bytes]]]:
    """Rows of (caption, PNG): truth and measurement, then every volume and its error."""
    truth = volumes.get("truth")
    at = through_lungs(volumes["mean"] if truth is None else truth, comparison.operator)

    def strip(title: str, hu: Hu, window: DisplayWindow = BODY) -> tuple[str, bytes]:
        return title, png_bytes(in_a_row(slices(hu, spacing_mm, window, at)))

    first = [] if truth is None else [strip("truth", truth)]
    if measured := shown_measurement(comparison.operator, comparison.values, at):
        first.append((_caption(comparison), png_bytes(in_a_row(measured))))
    found = [first] if first else []
    for name, hu in volumes.items():
        if name != "truth":
            error = [] if truth is None else [strip("its error, −200 to 200 HU", hu - truth, _ERROR)]
            found.append([strip(TITLES.get(name, name), hu), *error])
    if std is not None:
        spread = strip("standard deviation of the samples, 0 to 300 HU", std, _SPREAD)
        place = 1 + next(i for i, row in enumerate(found) if row[0][0] == TITLES["mean"])
        beside = (
            [] if truth is None else [strip("|mean − truth|, 0 to 300 HU", np.abs(volumes["mean"] - truth), _SPREAD)]
        )
        found.insert(place, [spread, *beside])
    return found


def _caption(comparison: Comparison) -> str:
    """Of the picture of a measurement."""
    volume = measured_volume(comparison.operator, comparison.values)
    if volume is None:
        return "what was measured: path lengths, long ones bright"
    return "what was measured" + ("; nothing where it is coloured" if np.isnan(volume).any() else "")


def _setting(value: object) -> str:
    """A setting of an operator in a few words; what is zero or left out of a view is not said."""
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key} {_setting(one)}" for key, one in value.items() if key == "angle_deg" or one not in _UNSAID
        )
    if isinstance(value, list | tuple):
        return ("; " if value and isinstance(value[0], Mapping) else ", ").join(map(_setting, value))
    return plain(value) if isinstance(value, float) else str(value)


def _range(values: list[float]) -> str:
    """Several values in a few words."""
    if len(values) == 1:
        return number(values[0])
    return f"{number(median(values))} ({number(min(values))} to {number(max(values))})"


def _calibration(coverage: Mapping[str, float]) -> bytes:
    """Share of voxels inside their intervals over what the intervals promise, PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=PALE, linewidth=1)
    axes.plot([float(level) for level in coverage], list(coverage.values()), "o-", color=ACCENT)
    axes.set_xlabel("nominal coverage", color=INK)
    axes.set_ylabel("voxels whose interval holds the truth", color=INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()
