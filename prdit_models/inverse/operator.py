"""The interface of a measurement operator, the table of operators, and the check of an adjoint."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from prdit_models.inverse.grid import Grid3
from prdit_models.registry import Registry, made_of

MAX_ADJOINT_ERROR = 1e-5


class MeasurementOperator(Protocol):
    """An affine map from a volume in HU to a measurement: y = A·x + b + noise.

    Frozen dataclasses whose fields are settings, and `grid`, the voxels of the volumes they take.

    Attributes:
        name: as in the table of operators.
        unit: of a measurement: `HU`, or `mm` (water-equivalent path length: 1 + HU/1000, integrated along a ray).
        grid: shape and spacing of the volumes.
        noise_std: standard deviation of the measurement's white Gaussian noise, in its unit; 0: none.
    """

    name: ClassVar[str]
    unit: ClassVar[str]

    @property
    def grid(self) -> Grid3: ...  # noqa: D102
    @property
    def noise_std(self) -> float: ...  # noqa: D102

    def measurement_shape(self, volume_shape: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Shape of one measurement, without the batch, of volumes (D, H, W) (the grid's)."""

    def forward(self, volume: Tensor) -> Tensor:
        """A·x + b of volumes in HU, (B, 1, D, H, W) to (B, *measurement_shape), differentiable."""

    def adjoint(self, measurement: Tensor) -> Tensor:
        """Aᵀ·y of the linear part, (B, *measurement_shape) to (B, 1, D, H, W), differentiable."""

    def to_dict(self) -> dict[str, Any]:
        """Name and settings as JSON values, without the grid: what `operator_from_dict` makes the operator of."""


OPERATORS: Registry[type[MeasurementOperator]] = Registry(
    "operator",
    "prdit.operators",
    {
        "downsampling": "prdit_models.inverse.downsampling:Downsampling",
        "mask": "prdit_models.inverse.mask:Mask",
        "blur": "prdit_models.inverse.blur:Blur",
        "thick-slices": "prdit_models.inverse.thick_slices:ThickSlices",
        "projection": "prdit_models.inverse.projection:Projection",
        "sparse-view": "prdit_models.inverse.sparse_view:SparseView",
    },
    needs=("unit", "measurement_shape", "forward", "adjoint", "to_dict"),
)


def operator_from_dict(values: Mapping[str, Any], grid: Grid3) -> MeasurementOperator:
    """The operator of `to_dict`, or of an `operator.yaml`, on a grid. One that is not ours has its adjoint checked.

    Args:
        values: `name`, and the operator's settings.
        grid: of the volumes.
    Raises: ValueError: no name, an unknown one, settings it does not have or refuses, or an adjoint that is none.
    """
    settings = dict(values)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"The operator has the name {name!r}; expected name: one of {', '.join(OPERATORS.names())}.")
    kind: Any = OPERATORS[name]
    operator: MeasurementOperator = made_of(f"the operator {name!r}", kind, settings, grid=grid)
    if OPERATORS.owners(name):
        check_adjoint(operator)
    return operator


def simulate(operator: MeasurementOperator, volume: Tensor, generator: torch.Generator) -> Tensor:
    """A measurement of volumes (B, 1, D, H, W) in HU, with the operator's noise.

    Args:
        operator: what is measured.
        volume: in HU.
        generator: on the CPU, where the noise is drawn, so that every device gets the same.
    Returns: shape (B, *measurement_shape), in the operator's unit.
    """
    exact = operator.forward(volume)
    if operator.noise_std == 0:
        return exact
    noise = torch.randn(exact.shape, generator=generator, dtype=exact.dtype)
    return exact + operator.noise_std * noise.to(exact.device)


def adjoint_error(
    operator: MeasurementOperator, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> float:
    """|<A·x, y> - <x, Aᵀ·y>| / (|A·x|·|y|) for random x and y.

    Half of y is along A·x: the products of independent vectors are so small that an adjoint wrong by a factor near 1 would pass.

    Args:
        operator: any; the linear part of its forward is forward(x) - forward(0).
        generator: draws the vectors, on the CPU.
        dtype: of the computation.
    Returns: 0 for an exact adjoint; NaN where either map returns values that are not finite.
    """
    shape = (1, 1, *operator.grid.shape)
    # as large as HU are, so that forward(x) - forward(0) keeps its digits
    volume = 1000 * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    with torch.no_grad():
        image = (operator.forward(volume) - operator.forward(torch.zeros_like(volume))).double()
        if not image.any():
            return 0.0 if not operator.adjoint(torch.ones_like(image, dtype=dtype)).any() else 1.0
        noise = torch.randn(image.shape, generator=generator, dtype=torch.float64)
        measurement = (image / image.norm() + noise / noise.norm()).to(dtype)
        back = operator.adjoint(measurement).double()
    measurement = measurement.double()
    difference = (image * measurement).sum() - (volume.double() * back).sum()
    return float(difference.abs() / (image.norm() * measurement.norm()))


def check_adjoint(operator: MeasurementOperator, tolerance: float = MAX_ADJOINT_ERROR) -> None:
    """Refuse an operator whose adjoint is none: guided sampling with it would go astray without a sign of it.

    Raises: ValueError: the error of the adjoint is above the tolerance, or not finite.
    """
    error = adjoint_error(operator, torch.Generator().manual_seed(0))
    if not error <= tolerance:
        raise ValueError(
            f"The operator {operator.name!r} has an adjoint error of {error:.3g}; expected at most {tolerance:g}: "
            "<A·x, y> has to equal <x, Aᵀ·y> for forward(x) = A·x + b. Check that forward is affine, and that adjoint transposes "
            "its linear part, without b (prdit_models.inverse.operator.adjoint_error measures it)."
        )
