"""The report's curves: what is in the details is drawn, in the colour of its side."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.evaluate.curves import (
    ACCENT,
    INK,
    SECOND,
    draw_anatomy,
    draw_critics,
    draw_histograms,
    draw_likeness,
    draw_spectrum,
)

HU = {
    "edges_hu": [-1000, 0, 1000],
    "share_real": [0.5, 0.5],
    "share_generated": [0.9, 0.1],
    "bands": {"air": {"title": "air", "low_hu": -1000, "high_hu": -900}},
}
SPECTRUM = {
    "frequency_per_mm": [0.1, 0.2, 0.3],
    "real": {"mean_db": [3, 2, 1], "p10_db": [2, 1, 0], "p90_db": [4, 3, 2]},
    "generated": {"mean_db": [3, 1, -4], "p10_db": [2, 0, -5], "p90_db": [4, 2, -3]},
}
CRITIC = {
    "generated": {"distances_hu": [30, 40], "trace_hu": [1, 20, 35]},
    "real": {"distances_hu": [5], "trace_hu": [1, 4, 5]},
}
MEMORISATION = {"distances_hu": {"generated": [10, 20, 90], "held_out": [80, 100]}, "threshold_hu": 45.0}
MS_SSIM = {"real": {"values": [0.2, 0.3]}, "generated": {"values": [0.8, 0.9]}}
ANATOMY = [
    {
        "title": "mean of the lungs",
        "unit": "HU",
        "limits": (-950, -740),
        "real_values": [-800, -820],
        "generated_values": [-700],
    },
    {"title": "air " * 20, "unit": "", "limits": (0, 1), "real_values": [], "generated_values": []},
]


def pixels(png: bytes, color: str) -> int:
    """Number of pixels of exactly a colour."""
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    return int((picture == [int(color[k : k + 2], 16) for k in (1, 3, 5)]).all(axis=-1).sum())


@pytest.mark.parametrize(
    ("draw", "details"),
    [
        (draw_histograms, HU),
        (draw_spectrum, SPECTRUM),
        (draw_critics, CRITIC),
        (draw_anatomy, ANATOMY),
        (lambda details: draw_likeness(details, MS_SSIM), MEMORISATION),
    ],
)
def test_both_sides_are_drawn_and_the_same_bytes_each_time(draw: Callable[[Any], bytes], details: Any) -> None:
    png = draw(details)
    assert min(pixels(png, INK), pixels(png, ACCENT)) > 100
    assert draw(details) == png


def test_only_what_was_measured_is_drawn() -> None:
    assert draw_likeness({}, {}) is None
    assert draw_likeness({"left_out": "not trained on this split", "closest": []}, {}) is None
    with_limit, without = (draw_likeness(MEMORISATION | {"threshold_hu": limit}, {}) for limit in (45.0, None))
    assert with_limit is not None
    assert without is not None
    assert pixels(with_limit, SECOND) > 50 > pixels(without, SECOND)
    one_side = draw_critics({"generated": CRITIC["generated"]})
    assert pixels(one_side, ACCENT) > 100
    assert draw_histograms(
        HU | {"share_real": [0.0, 0.0], "share_generated": [0.0, 0.0]}
    )  # nothing to take a logarithm of
