"""The picture of a drift verdict: slices of suspicious volumes beside one of the store, and histograms; no names."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from storage.geometry import Volume
from storage.volume_store import VolumeStore
from tasks.drift.checks import Batch
from tasks.drift.finding import Finding
from tasks.drift.measure import BIN_HU, HISTOGRAM_HU, view_of
from tasks.drift.reference import Reference, shares
from tasks.model.slices import LUNG, draw_plane, orthogonal_planes, png_bytes

_TILE, _GAP, _TEXT, _MARKS = 220, 8, 18, 14
_PLOT = (3 * _TILE, 180)
_MOST_VOLUMES = 4
_STORE, _BATCH = (90, 90, 90), (200, 60, 30)


def draw(store: VolumeStore, batch: Batch, reference: Reference, findings: Sequence[Finding]) -> bytes:
    """PNG: a row of slices per volume, the store's most typical one last, with the findings' names; histograms below."""
    counts = Counter(volume for finding in findings for volume in finding.volumes)
    order = sorted(batch.measured, key=lambda name: (-counts[name], name))[:_MOST_VOLUMES]
    rows = []
    for name in order:
        why = sorted({finding.name for finding in findings if name in finding.volumes})
        rows.append(_row(store, name, f"new {name[:8]}: {', '.join(why) or 'nothing found'}"))
    if reference.ids:
        typical = _typical(reference)
        rows.append(_row(store, typical, f"store {typical[:8]}: the most typical of {len(reference.ids)}"))
    rows.append(_histograms(batch, reference))
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height + _GAP for row in rows) - _GAP), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + _GAP
    return png_bytes(sheet)


def _row(store: VolumeStore, volume_id: str, title: str) -> Image.Image:
    size, edge = view_of(store)
    hu = np.rint(np.clip(store.read_view(volume_id, size, edge), -1024, 3000)).astype(np.int16)
    voxel_mm = store.spacing_mm * edge / size
    planes = orthogonal_planes(Volume(hu, (voxel_mm,) * 3, (0.0, 0.0, 0.0)))
    row = Image.new("RGB", (3 * _TILE + 2 * _GAP, _TILE + _TEXT + 4), "white")
    ImageDraw.Draw(row).text((0, 0), title, fill="black", font=ImageFont.load_default(size=_TEXT - 4))
    for place, plane in enumerate(planes):
        row.paste(draw_plane(plane, LUNG, _TILE, _MARKS), (place * (_TILE + _GAP), _TEXT + 4))
    return row


def _typical(reference: Reference) -> str:
    """The volume whose histogram is nearest to the mean one."""
    rows = np.array(reference.histograms)
    return reference.ids[int(np.abs(np.cumsum(rows - rows.mean(0), axis=1)).sum(1).argmin())]


def _histograms(batch: Batch, reference: Reference) -> Image.Image:
    """Shares of HU of store and batch, square roots, so that tissue is seen beside air."""
    width, height = _PLOT
    picture = Image.new("RGB", (width + 2 * _GAP, height + 2 * _TEXT), "white")
    canvas = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=_TEXT - 6)
    curves = [(_BATCH, np.mean([shares(one.histogram) for one in batch.measured.values()], axis=0))]
    if reference.histograms:
        curves.insert(0, (_STORE, np.mean(reference.histograms, axis=0)))
    highest = max(float(np.sqrt(curve).max()) for _, curve in curves) or 1.0
    for colour, curve in curves:
        canvas.line(_points(np.sqrt(curve) / highest), fill=colour, width=2)
    canvas.line((0, height, width, height), fill="black")
    for hu in range(-1000, 1001, 500):
        x = (hu - HISTOGRAM_HU[0]) / BIN_HU * width / ((HISTOGRAM_HU[1] - HISTOGRAM_HU[0]) / BIN_HU)
        canvas.text((x, height + 2), f"{hu} HU", fill="black", font=font, anchor="ma" if hu > -1000 else "la")
    canvas.text((width, 2), f"batch, {len(batch.measured)} volumes", fill=_BATCH, font=font, anchor="ra")
    canvas.text((width, 2 + _TEXT), f"store, {len(reference.ids)} volumes", fill=_STORE, font=font, anchor="ra")
    return picture


def _points(curve: NDArray[np.float64]) -> list[tuple[float, float]]:
    width, height = _PLOT
    return [((place + 0.5) * width / len(curve), height * (1 - value)) for place, value in enumerate(curve.tolist())]
