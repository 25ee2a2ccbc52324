"""X-ray projections: radiographs and tomographic views as line integrals through the volume."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from prdit_models.inverse.booleans import booleans_of, text_of
from prdit_models.inverse.grid import Float3, Grid3, is_number, position, positive
from prdit_models.inverse.linear import AIR_HU, LinearOperator
from prdit_models.inverse.rays import BEAMS, Bundle, Detector, View, backproject, bundles, check_view, project

_MAX_KEPT_RAYS = 2**22  # whose sampling tables are kept between calls: 120 MB in float32
_MAX_VALUES = 2**30  # of a measurement: 4 GB in float32
_DISTANCES = ("source_to_isocentre_mm", "source_to_detector_mm")


@dataclass(frozen=True, kw_only=True)
class Projection(LinearOperator):
    """Water-equivalent path lengths along the rays of some views: ∫ (1 + HU/1000) ds in mm, with air (-1000 HU) around the volume.

    What a radiograph shows after -ln(I/I₀), divided by the attenuation of water: no scatter, no beam hardening.

    Attributes:
        views: one measurement each, as `View`s or mappings of their fields.
        detector_shape: pixels (rows, columns), of every view.
        detector_pitch_mm: distance of pixels, or (rows, columns). A ray goes to each pixel's centre, so pixels should not be
            coarser than the voxels' shadows.
        beam: `cone`: one source per view; `fan`: one flat fan per detector row (an ideal CT slice by slice); `parallel`.
        source_to_isocentre_mm, source_to_detector_mm: of fan and cone beams, for views that do not have their own.
        isocentre_mm: what the views turn about, from the volume's centre (x, y, z), for views that do not have their own.
        measured: which pixels have a value, booleans (views, rows, columns), or their text as `to_dict` writes it; None: all.
            The others are 0 whatever the volume is, and must be 0 in a measurement: they change nothing.

    Raises: ValueError: at construction, for views without geometry, or a volume that is not between source and detector.
    """

    views: tuple[View, ...]
    detector_shape: tuple[int, int]
    detector_pitch_mm: float | tuple[float, float]
    beam: str = "cone"
    source_to_isocentre_mm: float | None = None
    source_to_detector_mm: float | None = None
    isocentre_mm: Float3 = (0.0, 0.0, 0.0)
    measured: Any = None
    name: ClassVar[str] = "projection"
    unit: ClassVar[str] = "mm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beam not in BEAMS:
            raise ValueError(f"beam is {self.beam!r}; expected one of {', '.join(BEAMS)}.")
        shape: Any = self.detector_shape
        if not isinstance(shape, tuple | list) or len(shape) != 2 or any(type(n) is not int or n < 1 for n in shape):
            raise ValueError(f"detector_shape is {shape!r}; expected whole numbers of pixels (rows, columns).")
        object.__setattr__(self, "detector_shape", tuple(shape))
        pitch: Any = self.detector_pitch_mm
        pair = tuple(pitch) if isinstance(pitch, tuple | list) else (pitch, pitch)
        if len(pair) != 2 or not all(is_number(p) and p > 0 for p in pair):
            raise ValueError(f"detector_pitch_mm is {pitch!r}; expected a positive number of mm, or (rows, columns).")
        object.__setattr__(self, "detector_pitch_mm", (float(pair[0]), float(pair[1])))
        object.__setattr__(self, "isocentre_mm", position(self.isocentre_mm, "isocentre_mm"))
        for distance in _DISTANCES:
            if getattr(self, distance) is not None:
                positive(getattr(self, distance), distance, "mm")
        object.__setattr__(self, "views", _views(self.views))
        if self.measured is not None:
            text = text_of(self.measured, self._shape(), "measured", "one for every pixel (views, rows, columns).")
            object.__setattr__(self, "measured", text)
        self._check_distances()
        check_size(len(self.views), self.detector_shape)
        for view in range(len(self.views)):
            check_view(*self._placed(view))

    @property
    def reference_hu(self) -> float:
        """Air, which attenuates nothing."""
        return AIR_HU

    def _check_distances(self) -> None:
        if self.beam != "parallel":
            return
        for what, owner in [("the operator", self), *((f"view {i}", view) for i, view in enumerate(self.views))]:
            if given := [distance for distance in _DISTANCES if getattr(owner, distance) is not None]:
                raise ValueError(
                    f"{', '.join(given)} of {what} is set, and a parallel beam has no source; leave it out, or take beam: cone."
                )

    def _shape(self) -> tuple[int, ...]:
        return (len(self.views), *self.detector_shape)

    @cached_property
    def measured_pixels(self) -> Tensor | None:
        """Which pixels have a value, booleans (views, rows, columns) on the CPU; None: all."""
        return None if self.measured is None else booleans_of(self.measured, self._shape(), "measured")

    @cached_property
    def _kept(self) -> dict[tuple[int, torch.dtype, torch.device], list[Bundle]]:
        return {}

    @staticmethod
    def measured_text(measured: Any) -> str:
        """The text of `measured`, as `to_dict` writes it, of booleans (views, rows, columns)."""
        return text_of(measured, np.shape(measured), "measured", "")

    @property
    def detector(self) -> Detector:
        """Shape and pitch, of every view."""
        pitch: Any = self.detector_pitch_mm
        return Detector(self.detector_shape, pitch)

    def placed_views(self) -> list[View]:
        """The views with their distances."""
        return [self._placed(number)[0] for number in range(len(self.views))]

    def _placed(self, number: int) -> tuple[View, str, Detector, Grid3, Float3]:
        """A view with its distances, and what else its rays depend on."""
        view = self.views[number]
        own = {name: getattr(view, name) or getattr(self, name) for name in _DISTANCES}
        isocentre = view.isocentre_mm or self.isocentre_mm
        return replace(view, **own), self.beam, self.detector, self.grid, isocentre

    def _bundles(self, view: int, like: Tensor) -> list[Bundle]:
        """Rays of a view, kept between calls while there are not too many."""
        key = (view, like.dtype, like.device)
        if key in self._kept:
            return self._kept[key]
        wanted = None if self.measured_pixels is None else self.measured_pixels[view].flatten()
        made = [bundle.to(like) for bundle in bundles(*self._placed(view), wanted)]
        rows, columns = self.detector_shape
        if len(self.views) * rows * columns <= _MAX_KEPT_RAYS:
            self._kept[key] = made
        return made

    def _linear(self, volume: Tensor) -> Tensor:
        batch = len(volume)
        out = volume.new_zeros(batch, *self._shape()).flatten(2)
        planes: dict[int, Tensor] = {}
        for view in range(len(self.views)):
            for bundle in self._bundles(view, volume):
                if bundle.axis not in planes:
                    planes[bundle.axis] = volume[:, 0].movedim(bundle.axis + 1, 0).contiguous()
                out[:, view, bundle.pixels] = project(bundle, planes[bundle.axis])
        return out.view(batch, *self._shape()) / 1000

    def _transposed(self, measurement: Tensor) -> Tensor:
        batch = len(measurement)
        values = measurement.flatten(2) / 1000
        volume = measurement.new_zeros(batch, *self.grid.shape)
        planes: dict[int, Tensor] = {}
        for view in range(len(self.views)):
            for bundle in self._bundles(view, measurement):
                if bundle.axis not in planes:
                    planes[bundle.axis] = torch.zeros_like(volume.movedim(bundle.axis + 1, 0).contiguous())
                backproject(bundle, values[:, view, bundle.pixels], planes[bundle.axis])
        for axis, part in planes.items():
            volume += part.movedim(0, axis + 1)
        return volume[:, None]


def check_size(num_views: int, detector_shape: tuple[int, int]) -> None:
    """Refuse more values than a measurement can have in memory. Raises: ValueError."""
    rows, columns = detector_shape
    if num_views * rows * columns > _MAX_VALUES:
        raise ValueError(
            f"{num_views} views of {rows} × {columns} pixels are {num_views * rows * columns:.3g} values, more than "
            f"{_MAX_VALUES:.3g}; take fewer views or a coarser detector."
        )


def _views(views: Any) -> tuple[View, ...]:
    """Views, of which each may be a mapping of its fields."""
    if not isinstance(views, tuple | list) or not views:
        raise ValueError(f"views is {views!r}; expected at least one view, such as - {{angle_deg: 0}}.")
    known = [field.name for field in fields(View)]
    found = []
    for number, view in enumerate(views):
        if isinstance(view, Mapping):
            unknown = [key for key in view if key not in known]
            if unknown or "angle_deg" not in view:
                raise ValueError(
                    f"View {number} is {dict(view)}; expected angle_deg and any of {', '.join(known[1:])}."
                )
            found.append(View(**view))
        elif isinstance(view, View):
            found.append(view)
        else:
            raise ValueError(f"View {number} is {view!r}; expected a mapping with its geometry: at least angle_deg.")
    return tuple(found)
