"""The reconstruction as one self-contained HTML page; its style is the report's."""

import io
from collections.abc import Mapping

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from storage.documents.measurement import Measurement
from storage.documents.reconstruction import Reconstruction
from storage.documents.samples import Samples
from storage.geometry import Volume, to_int16_hu
from tasks.evaluate.curves import ACCENT, DPI, INK, PALE
from tasks.evaluate.drawn import named
from tasks.evaluate.formats import number, percent, picture, plain
from tasks.model.slices import GAP, LUNG, TILE, DisplayWindow, draw_plane, orthogonal_planes, png_bytes

Hu = NDArray[np.float32]
_ERROR = DisplayWindow("error", 400, 0)
_SPREAD = DisplayWindow("standard deviation", 300, 150)
TITLES = {
    "truth": "truth",
    "mean": "mean of the samples",
    "sample": "one sample",
    "nearest": "nearest measured value",
    "trilinear": "trilinear interpolation",
    "spline": "cubic spline",
    "sirt": "SIRT",
}


def render(
    found: Reconstruction, measurement: Measurement, samples: Samples, volumes: Mapping[str, Hu], std: Hu | None
) -> str:
    """The page as text. It loads nothing from elsewhere; every value is escaped.

    Args:
        found: what was reconstructed.
        measurement: from what.
        samples: the list of samples.
        volumes: HU by name, as in `TITLES`; with `truth`, errors are shown too.
        std: standard deviation of the samples, HU; None of one sample.
    """
    loader = ChoiceLoader([PackageLoader("tasks.reconstruct", "."), PackageLoader("tasks.evaluate", ".")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        {"number": number, "percent": percent, "picture": picture, "plain": plain, "named": named}
    )
    spacing = samples.spacing_mm
    rows = [(TITLES.get(name, name), _strip(hu, spacing, LUNG), "") for name, hu in volumes.items()]
    if (truth := volumes.get("truth")) is not None:
        rows += [
            (f"{TITLES.get(name, name)} − truth", _strip(hu - truth, spacing, _ERROR), "−200 to 200 HU")
            for name, hu in volumes.items()
            if name != "truth"
        ]
    if std is not None:
        rows.append(("standard deviation of the samples", _strip(std, spacing, _SPREAD), "0 to 300 HU"))
    return environment.get_template("page.html.j2").render(
        found=found,
        measurement=measurement,
        samples=samples,
        titles=TITLES,
        rows=rows,
        calibration=_calibration(found.truth.coverage) if found.truth and found.truth.coverage else None,
    )


def _strip(hu: Hu, spacing_mm: float, window: DisplayWindow) -> bytes:
    """Middle axial, coronal and sagittal slice in a row, PNG."""
    volume = Volume(to_int16_hu(hu.astype(np.float64)), (spacing_mm,) * 3, (0.0,) * 3)
    pictures = [draw_plane(plane, window) for plane in orthogonal_planes(volume)]
    strip = Image.new("L", (len(pictures) * (TILE + GAP) - GAP, max(each.height for each in pictures)), 255)
    for place, each in enumerate(pictures):
        strip.paste(each, (place * (TILE + GAP), 0))
    return png_bytes(strip)


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
