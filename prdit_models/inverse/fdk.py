"""FDK: filtered backprojection of views on a circular arc, which is what scanners do with many views and few do well with."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prdit_models.inverse.operator import MeasurementOperator
from prdit_models.inverse.projection import Projection
from prdit_models.inverse.rays import View
from prdit_models.inverse.sparse_view import SparseView

_LEAST_VIEWS = 3  # any two views are evenly spaced, and on no arc in particular
_EVEN = 0.01  # steps between views may differ by this share
_TAPER_DEG = 10.0  # of the weights at both ends of an arc, at most


@dataclass(frozen=True)
class CircularArc:
    """Views evenly on an arc of a circle about the patient's axis.

    Attributes:
        projection: the operator.
        start_deg: angle of the first view.
        step_deg: between views, positive.
        full: whether the arc is closed.
        source_mm: from the isocentre; None of a parallel beam.
        magnification: of what lies in the isocentre, on the detector.
    """

    projection: Projection
    start_deg: float
    step_deg: float
    full: bool
    source_mm: float | None
    magnification: float

    @property
    def arc_deg(self) -> float:
        """What the views stand for, half a step before the first one and after the last one included."""
        return self.step_deg * len(self.projection.views)


def circular_arc(operator: MeasurementOperator) -> CircularArc | None:
    """The arc of an operator's views.

    Returns: None where it does not measure projections, or its views are fewer than three, tilted, of different distances,
        not evenly on one arc, or not measured in every pixel.
    """
    projection = operator.projection if isinstance(operator, SparseView) else operator
    if not isinstance(projection, Projection) or len(projection.views) < _LEAST_VIEWS:
        return None
    placed = projection.placed_views()
    distances = {(view.source_to_isocentre_mm, view.source_to_detector_mm) for view in placed}
    if (
        len(distances) > 1
        or any(view.tilt_deg or view.isocentre_mm for view in placed)
        or projection.measured is not None
    ):
        return None
    angles = sorted(view.angle_deg % 360 for view in placed)
    gaps = [after - angle for angle, after in zip(angles, [*angles[1:], angles[0] + 360], strict=True)]
    widest = max(range(len(gaps)), key=gaps.__getitem__)
    steps = gaps[:widest] + gaps[widest + 1 :]
    step = sum(steps) / len(steps)
    if step <= 0 or any(abs(each - step) > _EVEN * step for each in steps):
        return None
    full = abs(gaps[widest] - step) <= _EVEN * step
    first = angles[(widest + 1) % len(angles)]
    ((source, detector),) = distances
    magnification = 1.0 if source is None or detector is None else detector / source
    return CircularArc(projection, first, 360 / len(angles) if full else step, full, source, magnification)


@torch.no_grad()
def fdk(arc: CircularArc, measurement: Tensor, limits_hu: tuple[float, float] = (-1000.0, 1000.0)) -> Tensor:
    """Weight, filter and backproject views: right in the plane of a full arc of many, streaked with few.

    Rays that a short arc measures twice share their weight, smoothly (as Parker 1982, in the form of Noo et al. 2002). What an arc
    of less than 180° and the fan's angle leaves out is missing in the volume.

    Args:
        arc: of the operator that measured.
        measurement: mm of water, shape (B, views, rows, columns).
        limits_hu: values are kept between them.
    Returns: HU, shape (B, 1, D, H, W).
    Source: Feldkamp, Davis and Kress, J. Opt. Soc. Am. A 1 (1984) 612; parallel and fan beams: Kak and Slaney, Principles of
        Computerized Tomographic Imaging (1988), chapter 3.
    """
    grid, cone = arc.projection.grid, arc.projection.beam == "cone"
    z, y, x = _axes(arc, measurement)
    volume = measurement.new_zeros(len(measurement), *grid.shape)
    for number, view in enumerate(arc.projection.views):
        rows, columns = _detector(arc, view, measurement)
        filtered = _filtered(arc, view, measurement[:, number], rows.centres, columns)
        angle = math.radians(view.angle_deg)
        aside = x * math.cos(angle) + y[:, None] * math.sin(angle)  # (H, W)
        weight, down = torch.ones_like(aside), -z[:, None, None]
        if arc.source_mm is not None:
            towards = x * math.sin(angle) - y[:, None] * math.cos(angle)
            weight = arc.source_mm / (arc.source_mm + towards)  # how much larger a shadow is than in the isocentre
        places = torch.stack(
            torch.broadcast_tensors(columns.place(aside * weight), rows.place(down * weight if cone else down)), dim=-1
        )
        found = F.grid_sample(filtered[None], places.view(1, -1, len(x), 2), mode="bilinear", align_corners=False)
        volume += found.view_as(volume) * weight**2
    return (1000 * (volume * math.radians(arc.step_deg) - 1))[:, None].clamp(*limits_hu)


@dataclass(frozen=True)
class _Pixels:
    """Centres of rows or columns on a detector that stands in the isocentre, mm, and their distance."""

    centres: Tensor
    pitch_mm: float

    def place(self, positions: Tensor) -> Tensor:
        """Positions as `grid_sample` has them: -1 and 1 are the outer edges."""
        return (2 * ((positions - self.centres[0]) / self.pitch_mm) + 1) / len(self.centres) - 1


def _axes(arc: CircularArc, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of voxels along z, y and x, from the isocentre, mm."""
    grid, isocentre = arc.projection.grid, arc.projection.isocentre_mm
    z, y, x = (
        ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * step - middle).to(like)
        for n, step, middle in zip(grid.shape, reversed(grid.spacing_mm), reversed(isocentre), strict=True)
    )
    return z, y, x


def _detector(arc: CircularArc, view: View, like: Tensor) -> tuple[_Pixels, _Pixels]:
    """Rows (down) and columns (right)."""
    detector, found = arc.projection.detector, []
    scales = (arc.magnification if arc.projection.beam == "cone" else 1.0, arc.magnification)
    for n, pitch, offset, scale in zip(detector.shape, detector.pitch_mm, view.detector_offset_mm, scales, strict=True):
        centres = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * pitch + offset
        found.append(_Pixels((centres / scale).to(like), pitch / scale))
    rows, columns = found
    return rows, columns


def _filtered(arc: CircularArc, view: View, values: Tensor, rows: Tensor, columns: _Pixels) -> Tensor:
    """Values of a view (B, rows, columns), weighted for obliqueness and redundancy, through the ramp filter along the rows."""
    aside = columns.centres
    fan = torch.zeros_like(aside)
    if arc.source_mm is not None:
        fan = torch.atan(aside / arc.source_mm)
        square = aside**2 + (rows[:, None] ** 2 if arc.projection.beam == "cone" else 0)
        values = values * arc.source_mm / torch.sqrt(arc.source_mm**2 + square)
    return _ramp(values * _redundancy(arc, view.angle_deg, fan), columns.pitch_mm)


def _redundancy(arc: CircularArc, angle_deg: float, fan: Tensor) -> Tensor:
    """Weight of each column's rays; the weights of a ray and its reverse add up to 1, where both are measured.

    Args:
        arc: of the views.
        angle_deg: of this view.
        fan: angles of the rays from the central one, radians, (columns,).
    """
    own = _presence(arc, torch.full_like(fan, angle_deg))
    reverse = _presence(arc, angle_deg + 180 + 2 * torch.rad2deg(fan))
    return own / (own + reverse)


def _presence(arc: CircularArc, angle_deg: Tensor) -> Tensor:
    """1 on the arc, falling to 0 at its ends, 0 outside."""
    if arc.full:
        return torch.ones_like(angle_deg)
    since = (angle_deg - arc.start_deg + arc.step_deg / 2) % 360
    taper = min(_TAPER_DEG, arc.arc_deg / 2)
    inside = torch.minimum(since, arc.arc_deg - since).clamp(0, taper) / taper
    return torch.sin(math.pi / 2 * inside) ** 2


def _ramp(values: Tensor, pitch_mm: float) -> Tensor:
    """The ramp filter up to the Nyquist frequency, by its samples in space, so that a mean keeps its value.

    Source: Kak and Slaney, equation 3.61.
    """
    count = values.shape[-1]
    length = 2 ** math.ceil(math.log2(2 * count))  # no wrapping around
    offsets = torch.arange(length, device=values.device)
    offsets = torch.minimum(offsets, length - offsets).to(torch.float64)
    odd = -1 / (math.pi * offsets * pitch_mm) ** 2
    kernel = torch.where(offsets % 2 == 1, odd, torch.zeros_like(offsets))
    kernel[0] = 1 / (4 * pitch_mm**2)
    response = torch.fft.rfft(kernel).real.to(values.dtype) * pitch_mm
    return torch.fft.irfft(torch.fft.rfft(values, n=length) * response, n=length)[..., :count]
