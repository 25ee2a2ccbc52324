"""Sparse-view CT: the views of one arc, fewer than a reconstruction needs."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from prdit_models.inverse.grid import is_number, positive
from prdit_models.inverse.linear import AIR_HU, LinearOperator
from prdit_models.inverse.projection import Projection, check_size
from prdit_models.inverse.rays import BEAMS, View


@dataclass(frozen=True, kw_only=True)
class SparseView(LinearOperator):
    """`Projection` with views evenly over an arc, and a detector that sees the whole volume.

    The detector's pitch is that of the voxels' shadows at the isocentre, its rows and columns cover the volume in every view; of
    parallel and fan beams every slice of the volume has its own row.

    Attributes:
        num_views: how many.
        arc_deg: of the views, the end left out: view i is at start_deg + i · arc_deg / num_views. Less than 180: limited-angle CT.
        start_deg: angle of the first view, see `View`.
        beam: `parallel`, `fan` or `cone`, see `Projection`.
        source_to_isocentre_mm, source_to_detector_mm: of fan and cone beams.

    Raises: ValueError: at construction, as `Projection`.
    """

    num_views: int
    arc_deg: float = 360.0
    start_deg: float = 0.0
    beam: str = "fan"
    source_to_isocentre_mm: float | None = None
    source_to_detector_mm: float | None = None
    name: ClassVar[str] = "sparse-view"
    unit: ClassVar[str] = "mm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.num_views) is not int or self.num_views < 1:
            raise ValueError(f"num_views is {self.num_views!r}; expected a whole number of at least 1.")
        if not 0 < positive(self.arc_deg, "arc_deg", "degrees") <= 360:
            raise ValueError(f"arc_deg is {self.arc_deg!r}; expected at most 360 degrees.")
        if not is_number(self.start_deg):
            raise ValueError(f"start_deg is {self.start_deg!r}; expected degrees.")
        if self.beam not in BEAMS:
            raise ValueError(f"beam is {self.beam!r}; expected one of {', '.join(BEAMS)}.")
        distances = (self.source_to_isocentre_mm, self.source_to_detector_mm)
        if self.beam != "parallel" and None in distances:
            raise ValueError(
                f"A {self.beam} beam has source_to_isocentre_mm {distances[0]} and source_to_detector_mm {distances[1]}; it needs "
                "both, such as 595 and 1085.6, or take beam: parallel."
            )
        for distance in ("source_to_isocentre_mm", "source_to_detector_mm"):
            if getattr(self, distance) is not None:
                positive(getattr(self, distance), distance, "mm")
        _ = self.projection

    @property
    def reference_hu(self) -> float:
        """Air, which attenuates nothing."""
        return AIR_HU

    @cached_property
    def projection(self) -> Projection:
        """The same operator, view by view."""
        x_mm, y_mm, z_mm = self.grid.extent_mm
        pitch_z, pitch_xy = self.grid.spacing_mm[2], min(self.grid.spacing_mm[:2])
        radius = math.hypot(x_mm, y_mm) / 2
        width, height = 2 * radius, z_mm
        to_isocentre, to_detector = self.source_to_isocentre_mm, self.source_to_detector_mm
        if self.beam != "parallel" and to_isocentre is not None and to_detector is not None:
            if radius >= to_isocentre:
                raise ValueError(
                    f"source_to_isocentre_mm is {to_isocentre:g}, and the volume reaches to {radius:.0f} mm from its axis; "
                    "enlarge it, or crop the volume."
                )
            magnification = to_detector / to_isocentre
            width = 2 * to_detector * radius / math.sqrt(to_isocentre**2 - radius**2)  # the tangents of the circle
            pitch_xy *= magnification
            if self.beam == "cone":
                height, pitch_z = z_mm * to_detector / (to_isocentre - radius), pitch_z * magnification
        shape = (math.ceil(height / pitch_z - 1e-9), math.ceil(width / pitch_xy - 1e-9))
        check_size(self.num_views, shape)  # before as many views are made
        return Projection(
            grid=self.grid,
            noise_std=self.noise_std,
            views=tuple(View(self.start_deg + i * self.arc_deg / self.num_views) for i in range(self.num_views)),
            detector_shape=shape,
            detector_pitch_mm=(pitch_z, pitch_xy),
            beam=self.beam,
            source_to_isocentre_mm=to_isocentre,
            source_to_detector_mm=to_detector,
        )

    def _shape(self) -> tuple[int, ...]:
        return self.projection.measurement_shape()

    def _linear(self, volume: Tensor) -> Tensor:
        return self.projection._linear(volume)

    def _transposed(self, measurement: Tensor) -> Tensor:
        return self.projection._transposed(measurement)
