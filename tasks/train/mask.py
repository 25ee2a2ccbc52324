"""The coarse mask that a training shows beside its volumes: which, how coarse, and that of each volume as it is shown."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from prdit_models.coarse_mask import CHANNELS, mask_of_volume
from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.anatomy import AIR_HU
from storage.documents.checkpoint import CoarseMask
from storage.errors import InputError
from tasks.model.checkpoint import CheckpointInfo
from tasks.model.view import ViewConfig
from tasks.run.config import StageConfig

_WHOLE = 1e-6  # voxels that a cell may differ from whole ones


class MaskConfig(StageConfig):
    """The coarse mask that a model is shown beside the noisy volume."""

    of: Literal["body-and-lungs"] = Field(
        "body-and-lungs", description="what it shows: two channels, the body (lungs included) and the lungs"
    )
    cell_mm: float = Field(
        16.0,
        gt=0,
        description="edge of its cells, a whole number of the model's voxels; a cell holds a share from 0 to 1",
    )


def coarse_mask(config: MaskConfig, window: HounsfieldWindow, axes: str, voxel_mm: float) -> CoarseMask:
    """The mask of a training as its checkpoint records it.

    Args:
        config: which.
        window: how HU become the model's range.
        axes: of the model.
        voxel_mm: voxel distance of what it sees.
    Raises: InputError: cells that are no whole voxels, or volumes whose HU show no body.
    """
    cell = round(config.cell_mm / voxel_mm)
    if cell < 1 or abs(config.cell_mm / voxel_mm - cell) > _WHOLE:
        raise InputError(
            f"mask.cell_mm is {config.cell_mm:g}; the model's voxels are {voxel_mm:g} mm, and a cell is made of whole ones. Use "
            f"{max(1, cell) * voxel_mm:g}."
        )
    if window.follows_scan or axes != "zyx" or not window.lower_hu < AIR_HU < window.upper_hu:
        raise InputError(
            f"mask is set, but the model maps Hounsfield units as {window.mapping!r} from {window.lower_hu:g} to "
            f"{window.upper_hu:g} on axes {axes}: body and lungs are told apart at {AIR_HU:g} HU of a fixed window. Train the "
            "local denoiser below with intensity.mapping=window and a window that has this value, or leave the mask out."
        )
    return CoarseMask(channels=CHANNELS, cell=cell)


@dataclass(frozen=True)
class Masker:
    """Makes the mask of a volume out of what the model is shown of it, whatever was changed before.

    Attributes:
        mask: as the checkpoint records it.
        window, view: of the model.
        spacing_mm: voxel distance of the store's level 0.
    """

    mask: CoarseMask
    window: HounsfieldWindow
    view: ViewConfig
    spacing_mm: float

    @classmethod
    def by(cls, info: CheckpointInfo) -> "Masker | None":
        """That of a training that makes such a checkpoint; None where it shows no mask."""
        return None if info.mask is None else cls(info.mask, info.window, info.view, info.spacing_mm)

    def of(self, volume: Tensor, edge: int = 0) -> Tensor:
        """Shares of cells, shape (M, S/cell, S/cell, S/cell), of a volume in model range.

        Args:
            volume: as the model is shown it, shape (1, S, S, S).
            edge: which of the view's edges it has.
        """
        voxel_mm = self.view.at(self.view.edges[edge]).voxel_mm(self.spacing_mm)
        hu = self.window.to_hu(volume[0].numpy())
        return mask_of_volume(np.ascontiguousarray(hu), voxel_mm, self.mask.cell)

    def batch(self, volumes: Tensor) -> Tensor:
        """Of several volumes at the first edge, shape (B, M, …); of none, one without rows."""
        return torch.stack([self.of(volume) for volume in volumes]) if len(volumes) else torch.empty(0, *self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the mask of one volume."""
        return (len(self.mask.channels), *(self.view.size // self.mask.cell,) * 3)
