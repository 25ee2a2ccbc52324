"""The world that the scans of the corpus show: HU linear in LPS position, seen by one scanner per seed.

Every voxel of a right volume can be computed from its place, whatever the orientation, spacing and order of the slices.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.geometry import AIR_HU, Volume

# HU per mm along x, y, z: a spline that mirrors its samples at a face is wrong by a sixth of a voxel's step there, 5 HU here
GRADIENT = np.array([1.25, -0.75, 1.5])
MIDDLE_HU = -300.0
Hu = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Array = NDArray[Any]


@dataclass(frozen=True)
class Geometry:
    """How slices lie in the world.

    Attributes:
        row, column: direction cosines of index i and j.
        spacing_mm: distances along i, j and k.
        shape: (k, j, i).
        centre_mm: LPS place of the middle of the scan.
        step: step from slice to slice in mm instead of normal × distance (gantry tilt).
        whole: first voxel on multiples of 4 mm, so that HU are whole numbers where axes and distances are.
    """

    row: tuple[float, float, float] = (1.0, 0.0, 0.0)
    column: tuple[float, float, float] = (0.0, 1.0, 0.0)
    spacing_mm: tuple[float, float, float] = (8.0, 9.0, 7.0)
    shape: tuple[int, int, int] = (24, 26, 28)
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    step: tuple[float, float, float] | None = None
    whole: bool = False

    @property
    def matrix(self) -> NDArray[np.float64]:
        """4 × 4 from index (i, j, k) to LPS mm."""
        row, column = np.asarray(self.row), np.asarray(self.column)
        step = np.cross(row, column) * self.spacing_mm[2] if self.step is None else np.asarray(self.step)
        linear = np.stack([row * self.spacing_mm[0], column * self.spacing_mm[1], step], axis=1)
        first = np.asarray(self.centre_mm) - linear @ ((np.asarray(self.shape[::-1]) - 1) / 2)
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = linear, 4 * np.rint(first / 4) if self.whole else first
        return matrix

    @property
    def positions(self) -> NDArray[np.float64]:
        """LPS place of the first voxel of every slice, shape (k, 3)."""
        matrix = self.matrix
        return matrix[:3, 3] + np.arange(self.shape[0])[:, None] * matrix[:3, 2]

    def turned(self, **changes: Any) -> "Geometry":
        """With other attributes."""
        return replace(self, **changes)


def rotated(x_deg: float, z_deg: float) -> dict[str, tuple[float, float, float]]:
    """Row and column of slices turned about x, then about z."""
    a, b = np.deg2rad(x_deg), np.deg2rad(z_deg)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    row, column = ((about_z @ about_x)[:, axis].round(9) for axis in (0, 1))
    return {
        "row": (float(row[0]), float(row[1]), float(row[2])),
        "column": (float(column[0]), float(column[1]), float(column[2])),
    }


@dataclass(frozen=True)
class World:
    """What differs between seeds.

    Attributes:
        seed: 0 to 2.
        geometry: of scans whose HU are stored in sixteenths.
        whole: of scans whose HU are whole numbers: along the patient's axes.
        file_name: format of a file's name, by number.
        shuffled: whether files are named in another order than slices lie.
        extra_hu: added everywhere, so that equal scans are told apart.
    """

    seed: int
    geometry: Geometry
    whole: Geometry
    file_name: str
    shuffled: bool
    extra_hu: float = 0.0

    def hu(self, world_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """HU (...) at LPS positions (..., 3)."""
        values: NDArray[np.float64] = (
            (world_mm - np.asarray(self.geometry.centre_mm)) @ GRADIENT + MIDDLE_HU + self.extra_hu
        )
        return values

    def rng(self, name: str) -> np.random.Generator:
        """Random numbers of one member."""
        return np.random.default_rng([self.seed, *name.encode()])


_X, _Y, _RIGHT, _FRONT = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)
_CENTRES = ((0.0, 0.0, 0.0), (16.0, -132.0, 224.0), (-8.0, -140.0, -312.0))
WORLDS = (
    World(
        0,
        Geometry(_X, _Y, (8.0, 8.7, 7.1), centre_mm=_CENTRES[0]),
        Geometry(_X, _Y, (8.0, 8.0, 8.0), (24, 28, 30), _CENTRES[0], whole=True),
        "{:03d}.dcm",
        shuffled=False,
    ),
    World(
        1,
        Geometry(**rotated(4.0, 9.0), spacing_mm=(8.3, 8.9, 7.2), centre_mm=_CENTRES[1]),
        Geometry(_RIGHT, _FRONT, (8.0, 8.0, 8.0), (25, 30, 28), _CENTRES[1], whole=True),
        "IM{:05d}",
        shuffled=True,
    ),
    World(
        2,
        Geometry(_RIGHT, _Y, (7.8, 8.6, 6.8), centre_mm=_CENTRES[2]),
        Geometry(_RIGHT, _Y, (8.0, 8.0, 8.0), (26, 29, 31), _CENTRES[2], whole=True),
        "1.2.840.{:d}",
        shuffled=True,
    ),
)


@dataclass(frozen=True)
class Truth:
    """What a committed volume must be.

    Attributes:
        geometry: of the slices; `positions` of their first voxels replaces its even ones where they are uneven.
        hu: HU at a place.
        positions: shape (k, 3).
        fill: voxels (k, j, i) that were not measured; None where all were.
        num_duplicates: files that repeat another.
        completeness: "complete", "unknown" or "" where either is right.
        scan: SeriesInstanceUID; "" where the scan's id is another.
        inside, faces: largest |HU - hu| two voxels from faces and fill, and nearer to them but between measured voxels.
    """

    geometry: Geometry
    hu: Hu
    positions: NDArray[np.float64] | None = None
    fill: NDArray[np.bool_] | None = None
    num_duplicates: int = 0
    completeness: str = ""
    scan: str = ""
    inside: float = 1.0
    faces: float = 5.0

    def index_of(self, world_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fractional index (..., 3) in i, j, k of places."""
        matrix = self.geometry.matrix
        if self.positions is None:
            return (world_mm - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T
        linear = matrix[:3, :3].copy()
        along = self.positions[-1] - self.positions[0]
        linear[:, 2] = along / np.linalg.norm(along)
        offset = (world_mm - self.positions[0]) @ np.linalg.inv(linear).T
        depth = (self.positions - self.positions[0]) @ np.linalg.inv(linear).T[:, 2]
        below, above = depth[1] - depth[0], depth[-1] - depth[-2]
        padded = np.concatenate([[depth[0] - 9 * below], depth, [depth[-1] + 9 * above]])
        numbers = np.concatenate([[-9], np.arange(len(depth)), [len(depth) + 8]])
        offset[..., 2] = np.interp(offset[..., 2], padded, numbers)
        return offset


@dataclass
class Compared:
    """Largest differences of a volume from its truth, in HU.

    Attributes:
        inside, faces: as the limits of `Truth`.
        rim: in the half voxel beyond the outermost centres; limited by one voxel's step of HU.
        not_air: voxels outside the scan, or between voxels that are all fill, that are not air.
        num_inside: voxels that were compared.
    """

    inside: float = 0.0
    faces: float = 0.0
    rim: float = 0.0
    not_air: int = 0
    num_inside: int = 0
    problems: list[str] = field(default_factory=list)


def compare(volume: Volume, truth: Truth) -> Compared:
    """Every voxel of a committed volume against what its place says."""
    index_zyx = np.stack(np.meshgrid(*(np.arange(n) for n in volume.hu.shape), indexing="ij"), axis=-1)
    world = volume.world_mm(index_zyx.astype(np.float64))
    index = truth.index_of(world)
    last = np.asarray(truth.geometry.shape[::-1]) - 1
    if truth.positions is not None:
        last[2] = len(truth.positions) - 1
    margin = np.minimum(index, last - index).min(axis=-1)  # voxels inside the outermost centres
    error = np.nan_to_num(np.abs(volume.hu - truth.hu(world)))  # a truth that is no number is not judged
    fill_near = np.zeros(volume.hu.shape, dtype=bool)
    fill_all = np.zeros(volume.hu.shape, dtype=bool)
    fill_two = np.zeros(volume.hu.shape, dtype=bool)
    if truth.fill is not None:
        fill_near, fill_all, fill_two = _fill_around(truth.fill, index, last)
    measured = (margin >= -1e-6) & ~fill_near
    inside = measured & (margin >= 2) & ~fill_two
    # Half a voxel of what is stored may stick out of the scan; where is up to the grid.
    rim = (margin < -1e-6) & (margin > -0.45) & ~fill_near
    outside = margin < -0.55
    found = Compared(num_inside=int(inside.sum()))
    found.inside = float(error.max(where=inside, initial=0.0))
    found.faces = float(error.max(where=measured & ~inside, initial=0.0))
    found.rim = float(error.max(where=rim, initial=0.0))
    found.not_air = int((volume.hu[outside | (fill_all & (margin >= 0))] != AIR_HU).sum())
    step = float(np.abs(GRADIENT @ truth.geometry.matrix[:3, :3]).sum())
    for what, value, limit in (
        ("inside", found.inside, truth.inside),
        ("at faces", found.faces, truth.faces),
        ("in the outer half voxel", found.rim, step + 1),
        ("voxels that should be air", found.not_air, 0),
    ):
        if value > limit:
            found.problems.append(f"{what}: {value:.4g}, limit {limit:.4g}")
    if not found.num_inside:
        found.problems.append("no voxel of the volume lies inside the scan")
    size = np.linalg.norm(truth.geometry.matrix[:3, :3], axis=0)  # of a source voxel; a coarser grid may end within it
    short = last + 1 - np.maximum(1.5, max(volume.spacing_mm) / size) - np.ptp(index.reshape(-1, 3), axis=0)
    if short.max() > 1e-3:
        found.problems.append(f"part of the scan is not in the volume: {short.max():.2f} voxels of it")
    return found


def _fill_around(
    fill: NDArray[np.bool_], index: NDArray[np.float64], last: NDArray[np.int_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """(some, all) of the eight voxels around each place are fill; (some) of the 6³ around it are."""
    base = np.clip(np.floor(index).astype(int) + 3, 0, last + 6)
    place = base[..., 2], base[..., 1], base[..., 0]
    padded = np.pad(fill, 3, mode="edge")
    return (
        _window(padded, 0, 1, np.logical_or)[place],
        _window(padded, 0, 1, np.logical_and)[place],
        _window(padded, -2, 3, np.logical_or)[place],
    )


def _window(values: NDArray[np.bool_], low: int, high: int, join: np.ufunc) -> NDArray[np.bool_]:
    """What `join` gives of all values from `low` to `high` places further along every axis."""
    for axis in range(3):
        values = join.reduce([np.roll(values, -shift, axis) for shift in range(low, high + 1)])
    return values
