"""The anatomy of synthetic chest phantoms: HU as a function of position, drawn from a seed.

Positions are LPS world coordinates (mm, origin in the middle of the chest), so that every acquisition orientation shows the
same patient: heart and smaller lung on the patient's left, liver under the right lung, spine posterior, trachea superior.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Anatomy:
    """One phantom patient's measures, drawn from a seed (mm, HU)."""

    half_width: float
    half_depth: float
    lung_scale: float
    lung_hu: float
    heart: float
    liver_top: float
    table_front: bool
    vessels: Array  # (n, 7): start xyz, end xyz, radius

    @classmethod
    def draw(cls, seed: int, patient: int, *, table_front: bool = False) -> "Anatomy":
        """The anatomy of patient number `patient`."""
        rng = np.random.default_rng([seed, patient])
        # Plain floats: a NumPy scalar would make every array below float64.
        width, depth, scale = (float(rng.uniform(*limits)) for limits in ((108, 121), (78, 92), (0.9, 1.06)))
        return cls(
            half_width=width,
            half_depth=depth,
            lung_scale=scale,
            lung_hu=float(rng.uniform(-880, -820)),
            heart=float(rng.uniform(0.9, 1.12)),
            liver_top=float(rng.uniform(-62, -42)),
            table_front=table_front,
            vessels=_draw_vessels(rng, width, scale),
        )

    def hu(self, x: Array, y: Array, z: Array) -> Array:
        """HU at LPS positions (mm from the chest's middle), any shape."""
        side = -1.0 if self.table_front else 1.0
        plate = np.abs(side * y - (self.half_depth + 7) + 0.0012 * x * x)
        hu = np.where((plate < 3) & (np.abs(x) < 95), np.float32(-380), np.float32(-1000))
        # The rest is drawn where the body can be: less than half of the field of view.
        near = (x / (self.half_width + 3)) ** 2 + (y / (self.half_depth + 3)) ** 2 < 1.06
        hu[near] = self._body(hu[near], x[near], y[near], z[near])
        return hu

    def _body(self, hu: Array, x: Array, y: Array, z: Array) -> Array:
        taper = np.clip((z - 60) / 64, 0, 1) ** 2
        a, b = self.half_width * (1 - 0.10 * taper), self.half_depth * (1 - 0.12 * taper)
        radius = np.hypot(x / a, y / b)
        hu = _paint(hu, (1 - radius) * b, -95.0)  # fat
        hu = _paint(hu, (0.93 - radius) * b, 48.0)  # muscle
        wave = np.cos(2 * np.pi * (z + 0.45 * y) / 26)
        rib = np.minimum((0.045 - np.abs(radius - 0.865)) * b, (wave - 0.1) * 5)
        hu = _paint(hu, np.minimum(rib, 112 - np.abs(z)), 420.0)
        hu = self._lungs(hu, x, y, z)
        middle = np.abs(x) < 0.62 * self.half_width
        hu[middle] = self._mediastinum(hu[middle], x[middle], y[middle], z[middle])
        back = (np.abs(x) < 34) & (y > 0.2 * self.half_depth)
        hu[back] = self._spine(hu[back], x[back], y[back], z[back])
        return hu

    def _lungs(self, hu: Array, x: Array, y: Array, z: Array) -> Array:
        s, w, d = self.lung_scale, self.half_width, self.half_depth
        right = _ellipsoid(x + 0.44 * w, y - 2, z - 2, 0.37 * w * s, 0.70 * d * s, 106 * s)
        left = _ellipsoid(x - 0.46 * w, y - 4, z - 6, 0.32 * w * s, 0.66 * d * s, 98 * s)
        dome = _ellipsoid(x + 0.40 * w, y + 4, z - (self.liver_top - 70), 0.62 * w, 0.80 * d, 70)
        stomach = _ellipsoid(x - 0.42 * w, y - 2, z - (self.liver_top - 86), 0.50 * w, 0.72 * d, 70)
        gravity = 55 * np.clip(y / d, -1, 1) * (-1 if self.table_front else 1)
        lungs = np.minimum(np.maximum(right, left), np.minimum(-dome, -stomach))
        hu = _paint(hu, lungs, self.lung_hu + gravity)
        inside = lungs > 2
        if inside.any():  # vessels: only the voxels of the lungs, only the branches this slice meets
            xs, ys, zs, values = x[inside], y[inside], z[inside], hu[inside]
            low, high = zs.min(), zs.max()
            for x0, y0, z0, x1, y1, z1, r in self.vessels.tolist():
                if high < min(z0, z1) - r - 1 or low > max(z0, z1) + r + 1:
                    continue
                values = _paint(values, r - _segment_distance(xs, ys, zs, (x0, y0, z0), (x1, y1, z1)), 35.0)
            hu[inside] = values
        body = 0.9 - np.hypot(x / w, y / d)
        hu = _paint(hu, np.minimum(dome, body * d), 60.0)
        return _paint(hu, np.minimum(stomach, body * d) - 2, 12.0)

    def _mediastinum(self, hu: Array, x: Array, y: Array, z: Array) -> Array:
        k, w, d = self.heart, self.half_width, self.half_depth
        heart = _ellipsoid(x - 0.20 * w, y + 0.26 * d, z + 26, 0.36 * w * k, 0.42 * d * k, 46 * k)
        hu = _paint(hu, _ellipsoid(x, y + 0.1 * d, z - 10, 0.17 * w, 0.55 * d, 140), 20.0)
        hu = _paint(hu, heart, 45.0)
        hu = _paint(hu, _ellipsoid(x - 0.24 * w, y + 0.25 * d, z + 30, 0.20 * w * k, 0.22 * d * k, 28 * k), 130.0)
        hu = _paint(hu, 12 - np.hypot(x - 0.16 * w, y - 0.36 * d), 125.0)  # descending aorta, left of the spine
        arch = 13 - np.hypot(np.hypot(x - 4, y - 2) - 20, z - 42)
        hu = _paint(hu, np.where(x > -6, arch, -1), 125.0)
        trachea = np.minimum(8 - np.hypot(x + 2, y - 0.10 * d), z - 22)
        for bronchus in ((-2.0, -38.0, -6.0), (-2.0, 42.0, -14.0)):
            start, end, low = bronchus
            tube = 5.5 - _segment_distance(x, y, z, (start, 0.10 * d, 24.0), (end, 0.16 * d, low))
            trachea = np.maximum(trachea, tube)
        hu = _paint(hu, trachea + 2, 30.0)
        hu = _paint(hu, trachea, -990.0)
        sternum = np.minimum(5 - np.abs(y + 0.84 * d), 14 - np.abs(x))
        return _paint(hu, np.minimum(sternum, z + 60), 260.0)

    def _spine(self, hu: Array, x: Array, y: Array, z: Array) -> Array:
        centre = 0.55 * self.half_depth
        disc = np.where(np.cos(2 * np.pi * z / 24) > -0.72, np.float32(0), np.float32(-150))
        hu = _paint(hu, 17 - np.hypot(x, (y - centre) * 1.15), 230.0 + disc)
        hu = _paint(hu, 13 - np.hypot(x * 0.8, y - centre - 22), 300.0)
        hu = _paint(hu, 8 - np.hypot(x, y - centre - 21), 25.0)
        wings = np.minimum(4 - np.abs(y - centre - 20 + 0.2 * np.abs(x)), 30 - np.abs(x))
        wings = np.minimum(wings, np.abs(x) - 9)
        return _paint(hu, np.where(np.cos(2 * np.pi * z / 24) > 0.2, wings, -1), 320.0)


def _paint(hu: Array, inside_mm: Array, value: "float | Array") -> Array:
    """Blend a tissue in where the (approximate) signed distance is positive, over an edge 1.5 mm wide."""
    weight = np.clip(inside_mm / np.float32(1.5) + np.float32(0.5), 0, 1)
    painted: Array = hu + weight * (value - hu)
    return painted


def _ellipsoid(x: Array, y: Array, z: Array, a: float, b: float, c: float) -> Array:
    """Approximate signed distance (mm, positive inside) to an ellipsoid of half axes a, b, c."""
    inside: Array = (1 - np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)) * min(a, b, c)
    return inside


def _segment_distance(
    x: Array, y: Array, z: Array, start: tuple[float, float, float], end: tuple[float, float, float]
) -> Array:
    d = [b - a for a, b in zip(start, end, strict=True)]
    t = np.clip(((x - start[0]) * d[0] + (y - start[1]) * d[1] + (z - start[2]) * d[2]) / sum(c * c for c in d), 0, 1)
    distance: Array = np.sqrt(
        (x - start[0] - t * d[0]) ** 2 + (y - start[1] - t * d[1]) ** 2 + (z - start[2] - t * d[2]) ** 2
    )
    return distance


def _draw_vessels(rng: np.random.Generator, half_width: float, scale: float) -> Array:
    """Two generations of straight branches from each hilum: (n, 7)."""
    rows = []
    for side, reach in ((-1.0, 0.66), (1.0, 0.62)):
        hilum = np.array([side * 0.22 * half_width, 6.0, -2.0])
        for _ in range(9):
            direction = np.array([side * rng.uniform(0.2, 1.0), rng.uniform(-1, 1), rng.uniform(-1.2, 1.2)])
            middle = hilum + direction / np.linalg.norm(direction) * rng.uniform(22, 36)
            rows.append([*hilum, *middle, rng.uniform(2.2, 4.2)])
            for _ in range(2):
                turn = direction + rng.normal(0, 0.6, 3)
                end = middle + turn / np.linalg.norm(turn) * rng.uniform(18, 40) * scale
                end[0] = side * min(abs(end[0]), reach * half_width)
                rows.append([*middle, *end, rng.uniform(1.2, 2.2)])
    return np.asarray(rows, dtype=np.float32)
