"""What is done without a model: interpolation, filtered backprojection, SIRT, and the nearest value that was measured."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from prdit_models.inverse.fdk import circular_arc, fdk
from prdit_models.inverse.operator import MeasurementOperator
from prdit_models.inverse.sirt import sirt
from storage.spline import axis_weights
from tasks.reconstruct.placing import kept_of, places_of

_INTERPOLATIONS = {"trilinear": "linear", "spline": "cubic"}
Hu = NDArray[np.float32]


def baselines(
    operator: MeasurementOperator, measurement: torch.Tensor, limits_hu: tuple[float, float]
) -> dict[str, Hu]:
    """Volumes by the plain methods that fit an operator, by name, within limits.

    `nearest` for a mask; for other operators `sirt`, where a volume was measured `trilinear` and `spline` (natural cubic), and
    `fdk` where the views are evenly on an arc.

    Args:
        operator: of the measurement.
        measurement: shape (1, …).
        limits_hu: of the model's window.
    """
    found: dict[str, Hu] = {}
    kept = kept_of(operator)
    if kept is not None:
        values = operator.adjoint(measurement)[0, 0].numpy()
        nearest = ndimage.distance_transform_edt(~kept, return_distances=False, return_indices=True)
        return {"nearest": np.clip(values[tuple(nearest)], *limits_hu)}
    if operator.unit == "HU" and measurement.dim() == 4:
        for name, interpolation in _INTERPOLATIONS.items():
            found[name] = np.clip(_interpolated(operator, measurement[0].numpy(), interpolation), *limits_hu)
    if (arc := circular_arc(operator)) is not None:
        found["fdk"] = fdk(arc, measurement, limits_hu)[0, 0].numpy()
    start = float(measurement.mean()) if operator.unit == "HU" else limits_hu[0]
    found["sirt"] = sirt(operator, measurement, start_hu=start, limits_hu=limits_hu)[0, 0].numpy()
    return found


def _interpolated(operator: MeasurementOperator, values: Hu, interpolation: str) -> Hu:
    """A measured volume at the voxels' centres."""
    grid, found = operator.grid, values.astype(np.float64)
    for axis, (there, n, spacing) in enumerate(
        zip(places_of(operator), grid.shape, reversed(grid.spacing_mm), strict=True)
    ):
        samples = there.first_mm + np.arange(there.count, dtype=np.float64) * there.distance_mm
        weights = axis_weights(samples, np.arange(n, dtype=np.float64) * spacing, interpolation)
        found = np.moveaxis(np.tensordot(weights, np.moveaxis(found, axis, 0), axes=1), 0, axis)
    return found.astype(np.float32)
