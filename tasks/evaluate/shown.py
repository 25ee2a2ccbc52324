"""Which volumes the report shows, with what is known of each; their pictures are also written to `figures/`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prdit_models.metrics.anatomy import LIMITS
from prdit_models.metrics.metric import Hu
from storage.documents.report import Report
from storage.files import write_bytes_atomic
from tasks.evaluate.report import Shown
from tasks.evaluate.sources import Sources
from tasks.evaluate.stacks import Row, as_volume, pair_stacks, shifted, slice_places, volume_stacks
from tasks.model.slices import draw_volume, draw_volumes, png_bytes


def show_volumes(metrics: Report, sources: Sources, num_shown: int, folder: Path) -> Shown:
    """Slices of some volumes of each side, and of the closest pairs of generated and training volumes.

    Args:
        metrics: what was measured; without pairs of a metric `memorisation`, none are shown.
        sources: the volumes; held-out ones are shown first.
        num_shown: volumes of each side, and pairs.
        folder: where the pictures go as files, too.
    """
    real, generated, roles = sources.real, sources.generated, sources.roles
    real_ids, generated_ids = (
        _spread(roles.role("val"), roles.role("train"), num_shown),
        sources.drawn.volume_ids[:num_shown],
    )
    pairs = closest_pairs(metrics)[:num_shown]
    places = slice_places(metrics.volume_size, len(real_ids) + len(generated_ids) + len(pairs))
    rows = Shown(places)
    held_out = set(roles.role("val"))
    for number, name in enumerate(real_ids):
        role = "held out" if name in held_out else "training"
        caption = f"{name} ({role})" if sources.trained_on_split else name
        rows.real.append(_row(caption, real.hu(name), places, metrics.voxel_mm, folder / f"real-{number}.png"))
    for number, name in enumerate(generated_ids):
        caption, outside = sample_caption(name, metrics)
        path = folder / f"generated-{number}.png"
        rows.generated.append(_row(caption, generated.hu(name), places, metrics.voxel_mm, path, caution=outside))
    for number, pair in enumerate(pairs):
        drawn, moved = generated.saturated(pair["generated"]), laid_on(real.saturated(pair["training"]), pair)
        stacks = pair_stacks(drawn, moved, places)
        rows.pairs.append(Row(pair_caption(pair), stacks, caution=pair["copy"]))
        both = [as_volume(each, metrics.voxel_mm) for each in (drawn, np.nan_to_num(moved, nan=float(drawn.min())))]
        write_bytes_atomic(folder / f"pair-{number}.png", png_bytes(draw_volumes(both)))
    return rows


def closest_pairs(metrics: Report) -> list[dict[str, Any]]:
    """`{generated, training, distance_hu, shift, mirrored, copy}` of samples and their nearest training volumes, closest first."""
    pairs: list[dict[str, Any]] = metrics.details.get("memorisation", {}).get("closest", [])
    return pairs


def laid_on(training: Hu, pair: dict[str, Any]) -> Hu:
    """The training volume of a pair where it fits the generated one best: mirrored where it is so found, then moved."""
    return shifted(training[..., ::-1] if pair["mirrored"] else training, pair["shift"])


def pair_caption(pair: dict[str, Any]) -> str:
    """Which two volumes, how far apart."""
    moved = ", mirrored left to right" if pair["mirrored"] else ""
    if any(pair["shift"]):
        moved += f", moved by {' × '.join(map(str, pair['shift']))} voxels (z, y, x)"
    verdict = "; counts as a copy" if pair["copy"] else ""
    return f"{pair['generated']} and training volume {pair['training']}{moved}: {pair['distance_hu']:.0f} HU apart{verdict}"


def sample_caption(name: str, metrics: Report) -> tuple[str, bool]:
    """A generated volume's name and, where anatomy is measured, whether it is inside the limits; whether it is outside."""
    seen = metrics.details.get("anatomy", {}).get("generated", {}).get(name)
    if seen is None:
        return name, False
    outside = ", ".join(LIMITS[figure].title for figure in seen["failed"])
    return (f"{name}: outside the limits of {outside}", True) if outside else (f"{name}: inside all limits", False)


def _row(caption: str, hu: Hu, places: range, voxel_mm: float, path: Path, *, caution: bool = False) -> Row:
    write_bytes_atomic(path, png_bytes(draw_volume(as_volume(hu, voxel_mm))))
    return Row(caption, volume_stacks(hu, places), caution)


def _spread(first: Sequence[str], second: Sequence[str], count: int) -> list[str]:
    """`count` entries of two lists, half from each where both have enough."""
    from_first = min(len(first), max(count // 2, count - len(second)))
    return [*first[:from_first], *second[: count - from_first]]
