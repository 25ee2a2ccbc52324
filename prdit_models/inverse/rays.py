"""Rays of X-ray views through a volume, and the integrals along them.

World coordinates are millimetres (x, y, z) from the volume's centre; axes grow towards the patient's left, posterior and superior.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prdit_models.inverse.grid import Float3, Grid3, is_number, position, positive

BEAMS = ("parallel", "fan", "cone")
_MAX_SAMPLES = 2**21  # per chunk of rays: bounds the memory of a projection to about 50 MB, and more of a batch


@dataclass(frozen=True)
class View:
    """Where the detector stands. An angle of 0 is a PA radiograph, 90 a left lateral one.

    Attributes:
        angle_deg: of the detector's centre about the patient, from anterior (0) to the patient's left (90); DICOM's Positioner
            Primary Angle.
        tilt_deg: of the detector towards cranial (positive) or caudal; DICOM's Positioner Secondary Angle.
        detector_offset_mm: of the detector's centre from the central ray, along rows' and columns' indices (down, right).
        source_to_isocentre_mm, source_to_detector_mm: of fan and cone beams, where they differ from those of the other views.
        isocentre_mm: what the view turns about, where it differs from that of the other views.

    Raises: ValueError: at construction, for a value that is not finite, or a distance that is not positive.
    """

    angle_deg: float
    tilt_deg: float = 0.0
    detector_offset_mm: tuple[float, float] = (0.0, 0.0)
    source_to_isocentre_mm: float | None = None
    source_to_detector_mm: float | None = None
    isocentre_mm: Float3 | None = None

    def __post_init__(self) -> None:
        for field in ("angle_deg", "tilt_deg"):
            if not is_number(getattr(self, field)):
                raise ValueError(f"{field} of a view is {getattr(self, field)!r}; expected degrees.")
        offset: Any = self.detector_offset_mm
        if not isinstance(offset, tuple | list) or len(offset) != 2 or not all(is_number(o) for o in offset):
            raise ValueError(f"detector_offset_mm of a view is {offset!r}; expected millimetres (down, right).")
        object.__setattr__(self, "detector_offset_mm", (float(offset[0]), float(offset[1])))
        for field in ("source_to_isocentre_mm", "source_to_detector_mm"):
            if getattr(self, field) is not None:
                positive(getattr(self, field), f"{field} of a view", "mm")
        if self.isocentre_mm is not None:
            object.__setattr__(self, "isocentre_mm", position(self.isocentre_mm, "isocentre_mm of a view"))


@dataclass(frozen=True)
class Detector:
    """A flat detector: shape (rows, columns), pitch in mm (rows, columns)."""

    shape: tuple[int, int]
    pitch_mm: tuple[float, float]


@dataclass(frozen=True)
class Bundle:
    """Rays of one view that advance fastest along one axis: what is sampled of each plane of voxels across that axis.

    Attributes:
        axis: of (D, H, W).
        pixels: of the flat detector, shape (R,).
        middle: where a ray meets the middle of the axis, (1, 2R): for each ray the two other axes, last one first, in the
            coordinates of `grid_sample`.
        slope: how far that moves from plane to plane, (1, 2R).
        step_mm: length of a ray from plane to plane, (R,).
    """

    axis: int
    pixels: Tensor
    middle: Tensor
    slope: Tensor
    step_mm: Tensor

    def to(self, like: Tensor) -> "Bundle":
        """The same where and as precise as a tensor is."""
        return Bundle(
            self.axis,
            self.pixels.to(like.device),
            self.middle.to(like),
            self.slope.to(like),
            self.step_mm.to(like),
        )


def bundles(
    view: View, beam: str, detector: Detector, grid: Grid3, isocentre_mm: Float3, wanted: Tensor | None = None
) -> list[Bundle]:
    """The rays of a view that meet the volume, by the axis they advance along; rays go to the centres of pixels.

    Args:
        view: with its distances, if the beam has a source.
        beam: one of `BEAMS`. Of `fan` the source moves along with the rows, so that every row has a flat fan of its own.
        detector: flat, across the central ray; columns grow to the right as seen from the detector, rows downwards.
        grid: of the volume.
        isocentre_mm: what the detector turns about, from the volume's centre.
        wanted: of which pixels, booleans (pixels,); None: all.
    Returns: at most three, float64 on the CPU.
    """
    origin, direction = _rays(view, beam, detector, isocentre_mm)
    spacing = torch.tensor(grid.spacing_mm, dtype=torch.float64)
    sizes = torch.tensor(grid.shape[::-1], dtype=torch.float64)
    start = (origin / spacing + (sizes - 1) / 2).flip(-1)  # in voxels, z, y, x
    move = (direction / spacing).flip(-1)
    length = direction.norm(dim=-1)
    fastest = move.abs().argmax(dim=-1)
    if wanted is not None:
        fastest = torch.where(wanted, fastest, -1)
    found = []
    for axis in range(3):
        rays = (fastest == axis).nonzero()[:, 0]
        if not len(rays):
            continue
        slope = move[rays] / move[rays, axis, None]
        middle = start[rays] + ((grid.shape[axis] - 1) / 2 - start[rays, axis, None]) * slope
        meets = _meets(middle, slope, axis, grid)
        rays, slope, middle = rays[meets], slope[meets], middle[meets]
        others = [a for a in (2, 1, 0) if a != axis]
        counts = torch.tensor([grid.shape[a] for a in others], dtype=torch.float64)
        found.append(
            Bundle(
                axis,
                rays,
                ((2 * middle[:, others] + 1) / counts - 1).reshape(1, -1),
                (2 * slope[:, others] / counts).reshape(1, -1),
                length[rays] / move[rays, axis].abs(),
            )
        )
    return [bundle for bundle in found if len(bundle.pixels)]


def check_view(view: View, beam: str, detector: Detector, grid: Grid3, isocentre_mm: Float3) -> None:
    """Refuse a view that lacks its geometry or does not see the volume; arguments as of `bundles`.

    Raises: ValueError: a source without distances, a volume that is not between source and detector, or beside the detector.
    """
    towards, down, right = detector_axes(view)
    corners = torch.tensor(list(product((-0.5, 0.5), repeat=3)), dtype=torch.float64) * torch.tensor(grid.extent_mm)
    corners = corners - torch.tensor(isocentre_mm)
    shadow = torch.stack([corners @ down, corners @ right])
    if beam != "parallel":
        to_isocentre, to_detector = view.source_to_isocentre_mm, view.source_to_detector_mm
        if to_isocentre is None or to_detector is None:
            raise ValueError(
                f"The view at {view.angle_deg:g}° has source_to_isocentre_mm {to_isocentre} and source_to_detector_mm "
                f"{to_detector}; a {beam} beam needs both: give them to the view or to the operator, or take beam: parallel."
            )
        depths = corners @ towards + to_isocentre
        near, far = float(depths.min()), float(depths.max())
        if near <= 0 or far > to_detector:
            raise ValueError(
                f"In the view at {view.angle_deg:g}° the volume reaches from {near:.0f} to {far:.0f} mm after the source, and the "
                f"detector stands at {to_detector:g} mm; the volume has to lie in between. Enlarge "
                f"{'source_to_isocentre_mm' if near <= 0 else 'source_to_detector_mm'}, or crop the volume."
            )
        scale = to_detector / depths
        shadow = shadow * torch.stack([scale if beam == "cone" else torch.ones_like(scale), scale])
    sides = zip(("rows", "columns"), shadow, detector.shape, detector.pitch_mm, view.detector_offset_mm, strict=True)
    for what, places, count, pitch, offset in sides:
        first, last = offset - count * pitch / 2, offset + count * pitch / 2
        if float(places.max()) < first or float(places.min()) > last:
            raise ValueError(
                f"In the view at {view.angle_deg:g}° the volume's shadow reaches from {float(places.min()):.0f} to "
                f"{float(places.max()):.0f} mm along the detector's {what}, which reach from {first:.0f} to {last:.0f} mm; check "
                "isocentre_mm, detector_offset_mm and the detector's size."
            )


def project(bundle: Bundle, planes: Tensor) -> Tensor:
    """Integrals along the rays of a bundle, by Joseph's method: one bilinear sample of each plane of voxels.

    Args:
        bundle: rays, as precise as the planes.
        planes: volumes with the bundle's axis first, (S, B, n, m); the volume is 0 outside, linear between voxel centres.
    Returns: shape (B, R), in the volume's unit times mm.
    Source: Joseph, IEEE Trans. Med. Imaging 1 (1982) 192.
    """
    out = planes.new_zeros(planes.shape[1], len(bundle.pixels))
    for chunk, places in _chunks(bundle, len(planes)):
        samples = F.grid_sample(planes, places, mode="bilinear", padding_mode="zeros", align_corners=False)
        out[:, chunk] = samples[:, :, 0].sum(dim=0) * bundle.step_mm[chunk]
    return out


def backproject(bundle: Bundle, values: Tensor, planes: Tensor) -> None:
    """The transpose of `project`, added to planes: every sample gives its value back to the voxels it was made of, in equal parts.

    Args:
        bundle: rays, as precise as the values.
        values: of the rays, (B, R).
        planes: what is added to, (S, B, n, m).
    """
    for chunk, places in _chunks(bundle, len(planes)):
        weighted = (values[:, chunk] * bundle.step_mm[chunk])[None, :, None].expand(len(planes), -1, -1, -1)
        # the derivative of grid_sample by its input, without the sampling itself; bilinear (0), zeros outside (0)
        part, _ = torch.ops.aten.grid_sampler_2d_backward(weighted, planes, places, 0, 0, False, [True, False])
        planes += part


def _chunks(bundle: Bundle, num_planes: int) -> Any:
    """(slice of the rays, where they meet each plane (S, 1, r, 2)) for so many rays at a time that memory stays small."""
    count = max(1, _MAX_SAMPLES // num_planes)
    steps = torch.arange(num_planes, dtype=bundle.middle.dtype, device=bundle.middle.device) - (num_planes - 1) / 2
    for begin in range(0, len(bundle.pixels), count):
        end = min(begin + count, len(bundle.pixels))
        both = slice(2 * begin, 2 * end)
        places = (steps[:, None] * bundle.slope[:, both]).add_(bundle.middle[:, both])
        yield slice(begin, end), places.view(num_planes, 1, end - begin, 2)


def detector_axes(view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors (x, y, z) towards the detector, and along its rows' and columns' indices: down and right."""
    angle, tilt = math.radians(view.angle_deg), math.radians(view.tilt_deg)
    level = torch.tensor([math.sin(angle), -math.cos(angle), 0.0], dtype=torch.float64)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    right = torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64)
    return math.cos(tilt) * level + math.sin(tilt) * up, math.sin(tilt) * level - math.cos(tilt) * up, right


def _rays(view: View, beam: str, detector: Detector, isocentre_mm: Float3) -> tuple[Tensor, Tensor]:
    """A point and the direction (any length) of every pixel's ray, both (pixels, 3), x, y, z."""
    towards, down, right = detector_axes(view)
    rows, columns = (
        (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * pitch + offset
        for n, pitch, offset in zip(detector.shape, detector.pitch_mm, view.detector_offset_mm, strict=True)
    )
    vertical = (rows[:, None, None] * down).expand(-1, len(columns), -1).reshape(-1, 3)
    pixels = vertical + (columns[None, :, None] * right).expand(len(rows), -1, -1).reshape(-1, 3)
    isocentre = torch.tensor(isocentre_mm, dtype=torch.float64)
    source_mm, detector_mm = view.source_to_isocentre_mm, view.source_to_detector_mm
    if beam == "parallel" or source_mm is None or detector_mm is None:
        return pixels + isocentre, towards.expand_as(pixels)
    direction = pixels + detector_mm * towards
    source = isocentre - source_mm * towards
    if beam == "fan":
        return source + vertical, direction - vertical
    return source.expand_as(pixels), direction


def _meets(middle: Tensor, slope: Tensor, axis: int, grid: Grid3) -> Tensor:
    """Which rays come within a voxel of the volume, where samples are not 0; positions and slopes are in voxels, (R, 3)."""
    half = (grid.shape[axis] - 1) / 2
    enter = torch.full_like(middle[:, 0], -half)
    leave = torch.full_like(middle[:, 0], half)
    for other in range(3):
        if other == axis:
            continue
        # a ray that runs along the planes of this axis is inside for ever, or never: a tiny slope says the same
        along = slope[:, other]
        along = torch.where(along.abs() < 1e-12, torch.full_like(along, 1e-12), along)
        ends = torch.stack([(-1 - middle[:, other]) / along, (grid.shape[other] - middle[:, other]) / along])
        enter, leave = torch.maximum(enter, ends.amin(0)), torch.minimum(leave, ends.amax(0))
    return enter <= leave
