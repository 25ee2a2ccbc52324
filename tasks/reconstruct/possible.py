"""Whether a measurement in mm of water can be one: what is far from any body's path lengths is in another unit."""

import numpy as np
from numpy.typing import NDArray

from prdit_models.inverse.operator import MeasurementOperator
from storage.errors import InputError

_NOISES = 5.0  # standard deviations by which noise may leave the range
_LOWEST_MM = -50.0  # beside the body, where the intensity without it is known to some percent
_HIGHEST_MM = 1000.0  # twice the width of a large chest


def check_possible(values: NDArray[np.float32], operator: MeasurementOperator) -> None:
    """Refuse path lengths that no body has.

    Args:
        values: of the measurement; of operators in HU they are not looked at.
        operator: of them.
    Raises: InputError: the values are no mm of water.
    """
    if operator.unit != "mm":
        return
    noise = _NOISES * operator.noise_std
    low, high = float(values.min()), float(values.max())
    if _LOWEST_MM - noise <= low and high <= _HIGHEST_MM + noise:
        return
    raise InputError(
        f"The measurement has values from {low:.4g} to {high:.4g}; expected mm of water along each ray, 0 beside a body and at "
        f"most {_HIGHEST_MM:g} in it. Intensities I become line integrals by -log(I/I0), and these mm of water when divided by the "
        "attenuation of water, about 0.02 per mm."
    )
