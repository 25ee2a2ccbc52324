"""A measurement as what volumes are drawn towards."""

from dataclasses import dataclass, field
from typing import Any

import torch

from prdit_models.inverse.grid import Grid3
from prdit_models.inverse.guides import GUIDES, guide_from_dict
from prdit_models.inverse.model_range import InModelRange
from prdit_models.inverse.operator import MeasurementOperator
from storage.artifacts import Ref
from storage.documents.measurement import Measurement
from storage.documents.samples import Guided
from storage.errors import InputError, as_input_error
from storage.geometry import Float3
from tasks.model.checkpoint import CheckpointInfo
from tasks.reconstruct.config import ReconstructConfig
from tasks.reconstruct.measure import load_measurement
from tasks.reconstruct.setting import operator_on


@dataclass(frozen=True)
class MeasuredTarget:
    """See `tasks.sample.draw.Target`: a reference and settings cross to workers, arrays are read there.

    Attributes:
        measurement: verified by the stage; its path is absolute.
        document: of it.
        settings: name, strength and further settings of the guide; those left out have their defaults.
    """

    measurement: Ref
    document: Measurement = field(hash=False)
    settings: dict[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, measurement: Ref, config: ReconstructConfig) -> "MeasuredTarget":
        """The target that a configuration asks for.

        Raises: InputError: no measurement, or a guide without such settings; StorageError: it is missing or damaged.
        """
        document, _ = load_measurement(measurement)
        if doubled := sorted({"name", "strength"} & config.guide_settings.keys()):
            raise InputError(f"guide_settings has {', '.join(doubled)}, which is set by guide and strength.")
        strength = {} if config.strength is None else {"strength": config.strength}
        absolute = measurement.model_copy(update={"uri": str(measurement.path.resolve())})
        found = cls(absolute, document, {"name": config.guide, **strength, **config.guide_settings})
        with as_input_error("guide: "):
            if config.guide not in GUIDES:
                raise ValueError(f"{config.guide!r} is none; there are {', '.join(GUIDES.names())}.")
        return found

    @property
    def operator(self) -> MeasurementOperator:
        """The operator, made again."""
        grid = self.document.grid
        return operator_on(self.document.operator, Grid3(grid.shape, grid.spacing_mm))

    @property
    def origin_mm(self) -> Float3:
        """See `Target`."""
        return self.document.grid.origin_mm

    @property
    def guided(self) -> Guided:
        """See `Target`; the settings are complete, so that a default that changes later changes nothing of what is recorded."""
        known = GUIDES[self.settings["name"]]
        fields = {"strength": known.strength} | self.settings
        return Guided(
            measurement=self.measurement.digest,
            guide=fields.pop("name"),
            strength=fields.pop("strength"),
            settings=fields,
        )

    def guide(self, info: CheckpointInfo, device: torch.device) -> Any:
        """See `Target`.

        Raises: InputError: the measurement is of another grid than the model's volumes, or the guide refuses its settings.
        """
        grid = self.document.grid
        shape, spacing = (info.view.size,) * 3, info.voxel_mm
        if grid.shape != shape or any(abs(each - spacing) > 1e-6 * spacing for each in grid.spacing_mm):
            raise InputError(
                f"The measurement is of volumes of {' × '.join(map(str, grid.shape))} voxels of {grid.spacing_mm[0]:g} mm; the "
                f"model makes {' × '.join(map(str, shape))} of {spacing:g} mm. Measure for this model (the same --model), or use "
                "the other one."
            )
        _, values = load_measurement(self.measurement)
        with as_input_error():
            return guide_from_dict(self.settings, InModelRange(self.operator, info.window, values.to(device)))
