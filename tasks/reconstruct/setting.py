"""The grid that a model's volumes have, and operators on it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prdit_models.intensity import HounsfieldWindow
from prdit_models.inverse.grid import Grid3
from prdit_models.inverse.operator import OPERATORS, MeasurementOperator, operator_from_dict
from storage.artifacts import Ref
from storage.errors import InputError, as_input_error
from tasks.model.checkpoint import load_info
from tasks.model.view import ViewConfig
from tasks.sample.conditions import asked_grid
from tasks.sample.config import SampleConfig


@dataclass(frozen=True)
class Setting:
    """What a measurement is made for: the volumes of one model.

    Attributes:
        view: what the model sees of a stored volume.
        spacing_mm: voxel distance of level 0 of its training store.
        window: Hounsfield units it can show.
    """

    view: ViewConfig
    spacing_mm: float
    window: HounsfieldWindow

    @classmethod
    def of(cls, checkpoint: Ref, config: SampleConfig) -> "Setting":
        """That of a checkpoint, at the edge that is asked for.

        Raises: InputError: it makes no volumes of that edge, or its volumes have no Hounsfield units that a measurement could be
            compared with.
        """
        info = asked_grid(load_info(checkpoint), config)
        if info.window.follows_scan or info.axes != "zyx":
            raise InputError(
                f"The model maps Hounsfield units as {info.window.mapping!r} on axes {info.axes}: its HU are nominal, so a "
                "measurement cannot be compared with them. Use a model of a fixed window (intensity.mapping=window)."
            )
        return cls(info.view, info.spacing_mm, info.window)

    @property
    def grid(self) -> Grid3:
        """Voxels of the model's volumes."""
        return Grid3((self.view.size,) * 3, (self.view.voxel_mm(self.spacing_mm),) * 3)

    def key_fields(self) -> dict[str, Any]:
        """As JSON values, for a cache key."""
        return {
            "view": self.view.model_dump(mode="json"),
            "spacing_mm": self.spacing_mm,
            "window": asdict(self.window),
        }


def operator_on(values: Mapping[str, Any], grid: Grid3) -> MeasurementOperator:
    """An operator by its name and settings, as an `operator.yaml` has them.

    Raises: InputError: an unknown name, settings it does not have or refuses, or an adjoint that is none.
    """
    with as_input_error("operator: "):
        return operator_from_dict(values, grid)


def owners_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Packages of others that an operator is from."""
    return OPERATORS.owners(str(values.get("name")))
