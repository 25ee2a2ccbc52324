"""Every operator of the table with settings, on a grid of odd edges and three different distances."""

from typing import Any

from prdit_models.inverse.grid import Grid3

GRID = Grid3((13, 10, 17), (1.0, 0.8, 2.5))
SOURCE: dict[str, Any] = {"source_to_isocentre_mm": 100.0, "source_to_detector_mm": 150.0}
VIEWS: dict[str, Any] = {
    "views": [{"angle_deg": 0.0}, {"angle_deg": 50.0, "tilt_deg": 20.0, "detector_offset_mm": [3.0, -2.0]}],
    "detector_shape": [11, 13],
    "detector_pitch_mm": [3.0, 2.0],
    "isocentre_mm": [1.0, -2.0, 0.5],
}
BOX = {"size_mm": [5.0, 3.0, 8.0], "centre_mm": [1.0, 0.0, -4.0]}
CASES: dict[str, dict[str, Any]] = {
    "downsampling": {"name": "downsampling", "factor": [17, 5, 1]},
    "box": {"name": "mask", "region": "box", **BOX},
    "half": {"name": "mask", "region": "half", "side": "left"},
    "outside-box": {"name": "mask", "region": "outside-box", **BOX},
    "outside-cylinder": {"name": "mask", "region": "outside-cylinder", "size_mm": 7.0},
    "blur": {"name": "blur", "fwhm_mm": 3.0},
    "blur-air": {"name": "blur", "fwhm_mm": [3.0, 4.0, 9.0], "boundary": "air"},
    "thick-slices": {"name": "thick-slices", "thickness_mm": 6.0, "distance_mm": 4.0, "noise_std": 5.0},
    "thick-gaussian": {"name": "thick-slices", "thickness_mm": 5.0, "profile": "gaussian"},
    "series": {"name": "thick-slices", "thickness_mm": 5.0, "first_mm": -0.7, "num_slices": 4},
    "cone": {"name": "projection", **VIEWS, **SOURCE},
    "fan": {"name": "projection", "beam": "fan", **VIEWS, **SOURCE},
    "parallel": {"name": "projection", "beam": "parallel", **VIEWS},
    "sparse-fan": {"name": "sparse-view", "num_views": 7, **SOURCE},
    "sparse-cone": {"name": "sparse-view", "num_views": 3, "beam": "cone", "arc_deg": 90.0, **SOURCE},
    "sparse-parallel": {"name": "sparse-view", "num_views": 5, "beam": "parallel", "start_deg": 10.0},
}
