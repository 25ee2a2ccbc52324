"""What conditions a training: encodings measured on its training volumes, and the inputs of every volume."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import torch

from prdit_models.conditions import Conditions
from storage.documents.checkpoint import Category, Number
from storage.documents.snapshot import Snapshot
from storage.errors import InputError
from tasks.model.checkpoint import CheckpointInfo
from tasks.model.conditions import (
    FIELD_OF_VIEW_MM,
    PROPERTIES,
    SCAN_LENGTH_MM,
    VOXEL_MM,
    Condition,
    as_number,
    as_text,
    encoded,
)
from tasks.model.view import ViewConfig
from tasks.train.labels import MOST_VALUES, labels_of

_IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID")


def measured(
    snapshot: Snapshot, names: Sequence[str], volume_ids: Sequence[str], view: ViewConfig
) -> tuple[Condition, ...]:
    """How named conditions are encoded, by the training volumes alone.

    A column is a number where all of its values are (labels are text that may be a number), else a category.

    Args:
        snapshot: lists the volumes.
        names: columns of it, or properties of its scans, in the order of the inputs.
        volume_ids: the training volumes.
        view: what is seen of them.
    Raises: InputError: no such column, one of identifiers, a number that does not vary, or a category of one value or of more than
        a hundred.
    """
    columns = sorted({name for volume in snapshot.volumes.values() for name in volume.columns})
    if unknown := [name for name in names if name not in (*columns, *PROPERTIES)]:
        offered = [name for name in columns if name not in _IDENTIFIERS]
        raise InputError(
            f"conditions names {', '.join(unknown)}, which is no column of the snapshot; it has "
            f"{', '.join(offered) or 'none'}, and every volume has {', '.join(PROPERTIES)}. Columns come from the scans and from "
            "labels.csv in the source (docs/data-model.md)."
        )
    if named := [name for name in names if name in _IDENTIFIERS]:
        raise InputError(
            f"conditions names {', '.join(named)}, which identifies a scan and would be written into the checkpoint. Choose "
            "columns that say what a scan is like."
        )
    rows = list(_rows(snapshot, volume_ids, view))
    return tuple(_measured(name, [row.get(name) for row in rows]) for name in names)


def nearly_numbers(conditions: Sequence[Condition]) -> list[str]:
    """Sentences on categories most of whose values are numbers, which one that is none, such as NA, has made of a column."""
    sentences = []
    for one in conditions:
        texts = [repr(text) for text in getattr(one, "values", ()) if as_number(text) is None]
        if isinstance(one, Category) and 0 < 2 * len(texts) < len(one.values):
            sentences.append(
                f"The condition {one.name} is taken as a category of {len(one.values)} values, although most are numbers; "
                f"{', '.join(texts[:3])} {'is' if len(texts) == 1 else 'are'} no number. Leave the field in labels.csv empty where "
                "nothing is known, if it should be a number."
            )
    return sentences


def conditions_of(info: CheckpointInfo, snapshot: Snapshot, volume_ids: Sequence[str]) -> Conditions | None:
    """What a model is told of volumes: row k·V + i is of volume i of V at edge k of the view; None where it takes nothing.

    Args:
        info: of the checkpoint.
        snapshot: lists the volumes.
        volume_ids: which.
    """
    if not volume_ids or not (info.label_column or info.conditions):
        return None
    labels = values = None
    if info.label_column:
        of_each = labels_of(snapshot, info.label_column, info.label_values, volume_ids)
        labels = torch.tensor(of_each * len(info.view.edges))
    if info.conditions:
        rows = _rows(snapshot, volume_ids, info.view)
        values = torch.tensor([encoded(info.conditions, row) for row in rows])
    return Conditions(labels, values)


def _rows(snapshot: Snapshot, volume_ids: Sequence[str], view: ViewConfig) -> Iterator[Mapping[str, Any]]:
    """All that is known of each volume at each edge of the view, by name; edge by edge."""
    spacing = snapshot.grid.spacing_mm
    for edge in view.edges:
        for name in volume_ids:
            volume = snapshot.volumes[name]
            z, y, x = volume.shape
            yield volume.columns | {
                VOXEL_MM: view.at(edge).voxel_mm(spacing),
                FIELD_OF_VIEW_MM: spacing * (x + y) / 2,
                SCAN_LENGTH_MM: spacing * z,
            }


def _measured(name: str, values: Sequence[Any]) -> Condition:
    known = [value for value in values if as_text(value)]
    numbers = [number for value in known if (number := as_number(value)) is not None]
    if known and len(numbers) == len(known):
        if (std := pstdev(numbers)) > 0:
            return Number(name=name, mean=fmean(numbers), std=std)
        remedy = "Add edges to the view (view.more_edges), or leave it out." if name == VOXEL_MM else "Leave it out."
        raise InputError(
            f"conditions names {name}, which is {numbers[0]:g} for all training volumes: a number that does not vary teaches "
            f"nothing. {remedy}"
        )
    found = sorted({as_text(value) for value in known})
    texts = [repr(text) for text in found if as_number(text) is None]
    why = f"; {', '.join(texts[:3])} {'is' if len(texts) == 1 else 'are'} no number" if numbers else ""
    if not 2 <= len(found) <= MOST_VALUES:
        raise InputError(
            f"conditions names {name}, which has {len(found)} distinct values in the training volumes "
            f"({', '.join(found[:5]) or 'none'}); expected 2 to {MOST_VALUES} of a category, or numbers alone{why}. Choose another "
            "column, or leave its field empty where nothing is known."
        )
    return Category(name=name, values=tuple(found))
